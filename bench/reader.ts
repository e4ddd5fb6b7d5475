/**
 * The program whose work is timed on every side: `node reader.ts [--at MS] WORK PATH …`. It prints one
 * line of JSON: when the work began and ended (milliseconds since the epoch), and how many operations
 * and bytes it came to. Starting Node is not part of it; `--at` makes several begin at one time.
 */
import { spawnSync } from "node:child_process";
import { closeSync, fstatSync, mkdirSync, openSync, readdirSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";

/** What a piece of work came to. */
export interface Work {
  began: number;
  ended: number;
  operations: number;
  bytes: number;
}

const MIB = 1 << 20;
type Done = { operations: number; bytes: number };

const works: Record<string, (path: string, ...rest: string[]) => Done> = {
  /** Lists a tree and stats every file: find does it at several times the speed of Node. */
  scan(path) {
    const found = spawnSync("find", [path, "-printf", "%s\n"], { stdio: ["ignore", "ignore", "inherit"] });
    if (found.status !== 0) throw new Error(`find ${path} failed`);
    return { operations: 0, bytes: 0 };
  },

  /** Lists a tree. */
  find(path) {
    const found = spawnSync("find", [path], { stdio: ["ignore", "ignore", "inherit"] });
    if (found.status !== 0) throw new Error(`find ${path} failed`);
    return { operations: 0, bytes: 0 };
  },

  /** Lists the directories below `path`, of which it takes the share `part` of `parts`, and reads each file in them. */
  files(path, part = "0", parts = "1") {
    const buffer = Buffer.allocUnsafeSlow(64 * 1024);
    const done = { operations: 0, bytes: 0 };
    for (const [number, folder] of readdirSync(path).entries()) {
      if (number % Number(parts) !== Number(part)) continue;
      const prefix = `${path}/${folder}/`;
      for (const name of readdirSync(prefix)) {
        const file = openSync(prefix + name, "r");
        done.bytes += readSync(file, buffer, 0, buffer.length, null);
        closeSync(file);
        done.operations += 1;
      }
    }
    return done;
  },

  /** Reads the share `part` of `parts` of a file from front to back, a MiB at a time. */
  sequential(path, part = "0", parts = "1") {
    const buffer = Buffer.allocUnsafeSlow(MIB);
    const file = openSync(path, "r");
    const share = Math.ceil(fstatSync(file).size / Number(parts) / MIB) * MIB;
    const done = { operations: 0, bytes: 0 };
    let at = share * Number(part);
    for (const end = at + share; at < end; ) {
      const count = readSync(file, buffer, 0, Math.min(MIB, end - at), at);
      if (count === 0) break;
      at += count;
      done.bytes += count;
      done.operations += 1;
    }
    closeSync(file);
    return done;
  },

  /** Reads `count` pages of a file, in an order that `seed` decides. */
  random(path, count = "1", seed = "1") {
    const buffer = Buffer.allocUnsafeSlow(4096);
    const file = openSync(path, "r");
    const pages = Math.floor(fstatSync(file).size / 4096);
    const done = { operations: 0, bytes: 0 };
    let state = Number(seed);
    for (; done.operations < Number(count); done.operations += 1) {
      // Numerical Recipes' linear congruential generator; its upper bits are good enough to pick pages.
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      done.bytes += readSync(file, buffer, 0, 4096, Math.floor((state / 2 ** 32) * pages) * 4096);
    }
    closeSync(file);
    return done;
  },

  /** Writes a new file from front to back, a MiB at a time. */
  write(path, mebibytes = "1") {
    const buffer = Buffer.alloc(MIB, "datamon ");
    const file = openSync(path, "wx");
    for (let piece = 0; piece < Number(mebibytes); piece += 1) writeSync(file, buffer, 0, MIB);
    closeSync(file);
    return { operations: Number(mebibytes), bytes: Number(mebibytes) * MIB };
  },

  /** Makes a directory and in it `count` files of 4 KiB. */
  create(path, count = "1") {
    const buffer = Buffer.alloc(4096, "datamon ");
    mkdirSync(path);
    for (let number = 0; number < Number(count); number += 1) {
      const file = openSync(join(path, `f${number}`), "wx");
      writeSync(file, buffer, 0, buffer.length);
      closeSync(file);
    }
    return { operations: Number(count), bytes: Number(count) * buffer.length };
  },
};

if (import.meta.main) {
  const [first, ...others] = process.argv.slice(2);
  const [at, name, path, ...rest] = first === "--at" ? [Number(others[0]), ...others.slice(1)] : [0, first, ...others];
  const work = works[String(name)];
  if (work === undefined || path === undefined)
    throw new Error(`usage: reader.ts [--at MS] ${Object.keys(works).join("|")} PATH …`);
  // Asleep, so that those who are still coming up have the processors to themselves.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, Math.max(0, Number(at) - now()));
  const began = now();
  const done = work(path, ...rest);
  const told: Work = { began, ended: now(), ...done };
  console.log(JSON.stringify(told));
}

function now(): number {
  return performance.timeOrigin + performance.now();
}
