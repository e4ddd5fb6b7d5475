/**
 * A program that uses a mount until its stdin ends, and fails at the first error or wrong byte. What it
 * did is printed as one line of JSON.
 *
 *     load.ts warm|cold <directory> <manifest>     reads: through the page cache, or past it with O_DIRECT
 *     load.ts write <directory> <seed>             writes, renames, appends, removes, and reads back
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { noise } from "./reading.ts";

/** Paths below the directory → SHA-256 of the content. */
export type Manifest = Record<string, string>;

export interface LoadReport {
  readonly rounds: number;
  readonly bytes: number;
  /** Of a writer: what its directory holds. */
  readonly manifest: Manifest;
}

function digest(content: Buffer): string {
  return createHash("sha256").update(content).digest("hex");
}

/** What is in a directory, by reading it. */
export function manifestOf(directory: string, below = ""): Manifest {
  const found: Manifest = {};
  for (const entry of readdirSync(join(directory, below), { withFileTypes: true })) {
    const path = join(below, entry.name);
    if (entry.isDirectory()) Object.assign(found, manifestOf(directory, path));
    else found[path] = digest(readFileSync(join(directory, path)));
  }
  return found;
}

const CHUNK = 256 * 1024;

function readAll(path: string, flags: number): Buffer {
  const fd = openSync(path, constants.O_RDONLY | flags);
  try {
    const content = Buffer.alloc(fstatSync(fd).size);
    for (let at = 0; at < content.length; ) {
      const count = readSync(fd, content, at, Math.min(CHUNK, content.length - at), at);
      assert.ok(count > 0, `${path} ends at ${at}`);
      at += count;
    }
    return content;
  } finally {
    closeSync(fd);
  }
}

function* readRounds(directory: string, expected: Manifest, flags: number): Generator<number> {
  for (;;) {
    for (const [path, hash] of Object.entries(expected)) {
      const content = readAll(join(directory, path), flags);
      assert.equal(digest(content), hash, path);
      yield content.length;
    }
    assert.deepEqual(readdirSync(directory).sort(), Object.keys(expected).sort());
    assert.throws(() => lstatSync(join(directory, `none-${performance.now()}`)), { code: "ENOENT" });
  }
}

/** Names in a directory that is listed while its entries are removed. */
const CROWD = 300;

function* writeRounds(directory: string, seed: number, manifest: Manifest): Generator<number> {
  const files = new Map<string, Buffer>();
  const path = (name: string): string => join(directory, name);
  // Stays open from the first to the last round, without a name.
  const nameless = openSync(path("nameless"), "wx+");
  unlinkSync(path("nameless"));
  let held = Buffer.alloc(0);
  for (let round = 0; ; round++) {
    const content = noise(seed + round, (round * 7919) % 200_000);
    const draft = openSync(path("draft"), "wx", 0o640);
    for (let at = 0; at < content.length; at += 50_000)
      writeSync(draft, content, at, Math.min(50_000, content.length - at));
    fsyncSync(draft);
    closeSync(draft);
    const name = `file-${round % 20}`;
    renameSync(path("draft"), path(name));
    const tail = noise(seed - round, 1000 + (round % 5000));
    const end = openSync(path(name), "a");
    writeSync(end, tail);
    writeSync(end, tail);
    closeSync(end);
    files.set(name, Buffer.concat([content, tail, tail]));

    const more = noise(round, 3000);
    writeSync(nameless, more, 0, more.length, held.length);
    held = Buffer.concat([held, more]).subarray(0, 60_000);
    const back = Buffer.alloc(held.length);
    assert.equal(readSync(nameless, back, 0, back.length, 0), held.length);
    assert.ok(back.equals(held), "an open file without a name");

    const cut = [...files.keys()][round % files.size]!;
    const kept = files.get(cut)!.subarray(0, 1000);
    truncateSync(path(cut), kept.length);
    files.set(cut, kept);
    mkdirSync(path("made"));
    mkdirSync(path("made/below"));
    linkSync(path(name), path("made/other"));
    symlinkSync(name, path("made/link"));
    assert.ok(readFileSync(path("made/other")).equals(files.get(name)!));
    assert.equal(lstatSync(path(name)).nlink, 2);
    renameSync(path("made"), path("moved"));
    unlinkSync(path("moved/other"));
    unlinkSync(path("moved/link"));
    rmdirSync(path("moved/below"));
    rmdirSync(path("moved"));
    assert.equal(lstatSync(path(name)).nlink, 1);

    if (round % 10 === 9) {
      mkdirSync(path("crowd"));
      for (let at = 0; at < CROWD; at++) closeSync(openSync(path(`crowd/${String(at).repeat(20)}`), "wx"));
      rmSync(path("crowd"), { recursive: true });
    }
    for (const [file, bytes] of files) manifest[file] = digest(bytes);
    yield content.length;
  }
}

if (import.meta.main) {
  const [kind, directory, argument] = process.argv.slice(2) as [string, string, string];
  const manifest: Manifest = {};
  let ended = false;
  process.stdin.on("end", () => {
    ended = true;
  });
  process.stdin.resume();
  const rounds =
    kind === "write"
      ? writeRounds(directory, Number(argument), manifest)
      : readRounds(
          directory,
          JSON.parse(readFileSync(argument, "utf8")) as Manifest,
          kind === "cold" ? constants.O_DIRECT : 0,
        );
  let count = 0;
  let bytes = 0;
  for (const size of rounds) {
    count++;
    bytes += size;
    await setImmediate();
    if (ended) break;
  }
  if (kind === "write") assert.deepEqual(manifestOf(directory), manifest);
  process.stdout.write(JSON.stringify({ rounds: count, bytes, manifest } satisfies LoadReport));
}
