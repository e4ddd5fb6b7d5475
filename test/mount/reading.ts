/** What a read-only mount shows. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  lstatSync,
  opendirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { type ByteString, bytesFrom, bytesOf, hashOf, toFsPath } from "../../src/cas/index.ts";
import type { ChannelKind } from "../../src/fs/channels/channel.ts";
import { at, Fixture, type TreeEntry } from "./fixture.ts";
import type { Abilities } from "./suite.ts";
import { getXattr, listXattrs } from "./xattrs.ts";

/** Bytes that differ everywhere, the same in every run. */
export function noise(seed: number, length: number): Buffer {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = seed * 2654435761 + 1;
  for (let index = 0; index < words.length; index++) {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9;
    words[index] = state;
  }
  return Buffer.from(words.buffer, 0, length);
}

const MIB = 1024 * 1024;

/** A file of four pieces, the third of them a hole. */
const LARGE = Buffer.concat([noise(1, 2 * MIB), Buffer.alloc(MIB), noise(2, MIB / 2 + 17)]);

function richTree(can: Abilities): TreeEntry[] {
  const names = ["new\nline", `quo"te'`, "naïve ☃", "x".repeat(255), " blank ", "-dash", "back\\slash"].map(bytesOf);
  if (can.rawNames) names.push("raw\xff\xfe" as ByteString, "\x80" as ByteString);
  const directory = 0o040755;
  return [
    { path: at("empty"), mode: directory, mtimeNs: 1_500_000_000_000_000_000n },
    { path: at("names"), mode: 0o040711 },
    ...names.map((name, index) => ({
      path: `names/${name}` as ByteString,
      mode: 0o100600 | index,
      mtimeNs: 1_000_000_000_123_456_789n + BigInt(index),
      content: noise(index, 100 * index),
    })),
    { path: at("deep"), mode: directory },
    { path: at("deep/er"), mode: directory },
    { path: at("deep/er/script"), mode: 0o100755, content: Buffer.from("#!/bin/sh\necho ran\n") },
    {
      path: at("deep/er/old"),
      mode: 0o100444,
      content: Buffer.from("old"),
      mtimeNs: can.nanoseconds ? -1_500_000_000n : 0n,
    },
    { path: at("deep/twin"), mode: 0o100644, link: at("deep/er/script") },
    { path: at("large"), mode: 0o100644, content: LARGE },
    { path: at("relative"), mode: 0o120777, target: at("deep/er/script") },
    { path: at("dangling"), mode: 0o120777, target: bytesOf("nowhere ☃") },
    {
      path: at("tagged"),
      mode: 0o100644,
      content: Buffer.from("tagged"),
      xattrs: new Map([[bytesOf("user.color"), Buffer.from("red\0blue")]]),
    },
  ];
}

/** All that can be seen of a mounted tree, by path. */
function see(directory: string, can: Abilities, path = "" as ByteString): Map<ByteString, unknown> {
  const seen = new Map<ByteString, unknown>();
  const here = toFsPath(path === "" ? bytesOf(directory) : (`${bytesOf(directory)}/${path}` as ByteString));
  for (const name of readdirSync(here, { encoding: "buffer" })) {
    const child = (path === "" ? bytesFrom(name) : `${path}/${bytesFrom(name)}`) as ByteString;
    const full = toFsPath(`${bytesOf(directory)}/${child}` as ByteString);
    const info = lstatSync(full, { bigint: true });
    const mtimeNs = can.nanoseconds ? info.mtimeNs : info.mtimeNs / 1_000_000n;
    const common = { mode: Number(info.mode), mtimeNs };
    if (info.isDirectory()) {
      seen.set(child, common);
      for (const [below, entry] of see(directory, can, child)) seen.set(below, entry);
    } else if (info.isSymbolicLink()) {
      seen.set(child, { ...common, target: bytesFrom(readlinkSync(full, { encoding: "buffer" })) });
    } else {
      seen.set(child, {
        ...common,
        size: Number(info.size),
        nlink: Number(info.nlink),
        content: hashOf(readFileSync(full)),
      });
    }
  }
  return seen;
}

function expected(tree: readonly TreeEntry[], can: Abilities): Map<ByteString, unknown> {
  const links = new Map<ByteString, number>();
  for (const entry of tree) {
    const inode = entry.link ?? entry.path;
    links.set(inode, (links.get(inode) ?? 0) + 1);
  }
  return new Map(
    tree.map((entry) => {
      const inode = entry.link === undefined ? entry : tree.find(({ path }) => path === entry.link)!;
      const { mode, mtimeNs = 1_600_000_000_000_000_001n, content, target } = inode;
      const common = { mode, mtimeNs: can.nanoseconds ? mtimeNs : mtimeNs / 1_000_000n };
      if (target !== undefined) return [entry.path, { ...common, target }];
      if (content === undefined) return [entry.path, common];
      const file = { size: content.length, nlink: links.get(inode.path)!, content: hashOf(content) };
      return [entry.path, { ...common, ...file }];
    }),
  );
}

const sorted = (map: Map<ByteString, unknown>): [ByteString, unknown][] =>
  [...map].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));

export function readTests(kind: ChannelKind, can: Abilities): void {
  describe("read-only", () => {
    it("shows names, attributes, links and content as they were", async (t) => {
      const fixture = new Fixture(t);
      const tree = richTree(can);
      const mounted = await fixture.mount(kind, await fixture.snapshot(tree));
      assert.deepEqual(sorted(see(mounted.directory, can)), sorted(expected(tree, can)));
      // Once more, from what the kernel and the cache keep.
      assert.deepEqual(sorted(see(mounted.directory, can)), sorted(expected(tree, can)));
      const twin = lstatSync(mounted.path("deep/twin"));
      assert.equal(twin.ino, lstatSync(mounted.path("deep/er/script")).ino);
      const run = spawn(mounted.path("relative"), { stdio: ["ignore", "pipe", "inherit"] });
      const [output] = (await once(run.stdout!, "data")) as [Buffer];
      assert.equal(output.toString(), "ran\n");
      assert.deepEqual(mounted.failures, []);
      await mounted.unmount();
    });

    it("reads any range", async (t) => {
      const fixture = new Fixture(t);
      const tree: TreeEntry[] = [{ path: at("large"), mode: 0o100644, content: LARGE }];
      const mounted = await fixture.mount(kind, await fixture.snapshot(tree));
      const fd = openSync(mounted.path("large"), "r");
      const ends = [0, 1, 4095, 4096, MIB - 1, 2 * MIB - 5, 2 * MIB + 3, 3 * MIB, LARGE.length - 1, LARGE.length];
      for (const start of [...ends, LARGE.length + 10].reverse()) {
        for (const length of [1, 5000, 1_300_000]) {
          const buffer = Buffer.alloc(length);
          const count = readSync(fd, buffer, 0, length, start);
          assert.equal(Buffer.compare(buffer.subarray(0, count), LARGE.subarray(start, start + length)), 0);
        }
      }
      closeSync(fd);
    });

    it("serves readers side by side", async (t) => {
      const fixture = new Fixture(t);
      const contents = Array.from({ length: 12 }, (_, index) => noise(index + 50, 300_000 + index));
      const tree = contents.map((content, index) => ({ path: at(`file-${index}`), mode: 0o100644, content }));
      const mounted = await fixture.mount(kind, await fixture.snapshot(tree));
      const sums = await Promise.all(
        [0, 1, 2, 3].map(async () => {
          const child = spawn("sh", ["-c", "cat file-* | cksum"], {
            cwd: mounted.directory,
            stdio: ["ignore", "pipe", "inherit"],
          });
          let output = "";
          child.stdout?.on("data", (text) => {
            output += text;
          });
          await once(child, "close");
          return output;
        }),
      );
      assert.equal(new Set(sums).size, 1);
      assert.equal(Number(sums[0]?.split(" ")[1]), Buffer.concat(contents).length);
      contents.forEach((content, index) => {
        assert.deepEqual(readFileSync(mounted.path(`file-${index}`)), content);
      });
    });

    it("lists a large directory, each entry once, in any steps", async (t) => {
      const fixture = new Fixture(t);
      const names = Array.from({ length: 5000 }, (_, index) => `entry ${index} ${"y".repeat(index % 200)}`);
      const tree: TreeEntry[] = [
        { path: at("many"), mode: 0o040755 },
        ...names.map((name) => ({ path: at(`many/${name}`), mode: 0o100644, content: Buffer.alloc(0) })),
      ];
      const mounted = await fixture.mount(kind, await fixture.snapshot(tree));
      const one = opendirSync(mounted.path("many"), { bufferSize: 1 });
      const other = opendirSync(mounted.path("many"), { bufferSize: 3 });
      const seen: string[][] = [[], []];
      for (let turn = 0; turn <= names.length; turn++) {
        for (const [index, handle] of [one, other].entries()) {
          const entry = handle.readSync();
          if (entry !== null) seen[index]?.push(entry.name);
        }
      }
      one.closeSync();
      other.closeSync();
      for (const list of seen) assert.deepEqual(list.sort(), [...names].sort());
      assert.equal(lstatSync(mounted.path("many")).nlink, 2);
    });

    it("refuses every change", async (t) => {
      const fixture = new Fixture(t);
      const tree = [{ path: at("file"), mode: 0o100666, content: Buffer.from("stays") }];
      const mounted = await fixture.mount(kind, await fixture.snapshot(tree));
      for (const name of ["file", "new"]) {
        assert.throws(() => writeFileSync(mounted.path(name), "changed"), { code: "EROFS" });
      }
      assert.equal(readFileSync(mounted.path("file"), "utf8"), "stays");
      assert.throws(() => readFileSync(mounted.path("absent")), { code: "ENOENT" });
      assert.throws(() => readFileSync(mounted.path(`absent/${"n".repeat(256)}`)), { code: /ENOENT|ENAMETOOLONG/ });
      assert.throws(() => readFileSync(mounted.path("n".repeat(256))), { code: "ENAMETOOLONG" });
      assert.throws(() => readFileSync(join(mounted.path("file"), "below")), { code: "ENOTDIR" });
    });

    it("has extended attributes and totals", async (t) => {
      const fixture = new Fixture(t);
      const mounted = await fixture.mount(kind, await fixture.snapshot(richTree(can)));
      const tagged = bytesOf(mounted.path("tagged"));
      assert.deepEqual(listXattrs(tagged), ["user.color", "user.datamon.bundle", "user.datamon.hash"]);
      assert.deepEqual(getXattr(tagged, "user.color"), Buffer.from("red\0blue"));
      assert.equal(getXattr(tagged, "user.datamon.hash").toString(), hashOf(Buffer.from("tagged")));
      assert.equal(getXattr(tagged, "user.datamon.bundle").toString(), "bundle-of-the-test");
      assert.throws(() => getXattr(tagged, "user.absent"), { code: "ENODATA" });
      const totals = statfsSync(mounted.directory);
      assert.ok(totals.blocks * totals.bsize >= LARGE.length);
      assert.equal(totals.bfree, 0);
    });

    it("fails reads of what the store lost, and only those", async (t) => {
      const fixture = new Fixture(t);
      const lost = noise(9, 20_000);
      const tree = [
        { path: at("lost"), mode: 0o100644, content: lost },
        { path: at("there"), mode: 0o100644, content: noise(10, 20_000) },
      ];
      const mounted = await fixture.mount(kind, await fixture.snapshot(tree));
      fixture.loseBlob(lost);
      assert.throws(() => readFileSync(mounted.path("lost")), { code: "EIO" });
      assert.deepEqual(readFileSync(mounted.path("there")), noise(10, 20_000));
      await mounted.unmount();
      assert.notEqual(mounted.failures.length, 0);
      assert.match(mounted.failures[0]!, new RegExp(hashOf(lost)));
    });

    if (can.interrupts) {
      it("lets a reader go that is killed while it waits for the store", async (t) => {
        const fixture = new Fixture(t);
        const slow = noise(11, 20_000);
        const tree = [
          { path: at("slow"), mode: 0o100644, content: slow },
          { path: at("quick"), mode: 0o100644, content: noise(12, 20_000) },
        ];
        const mounted = await fixture.mount(kind, await fixture.snapshot(tree), { stall: slow });
        for (const signal of ["SIGINT", "SIGKILL"] as const) {
          const reader = spawn("sh", ["-c", "echo begun; exec cat slow"], {
            cwd: mounted.directory,
            stdio: ["ignore", "pipe", "ignore"],
          });
          const end = once(reader, "exit");
          await once(reader.stdout!, "data");
          // Others are served while it waits.
          assert.deepEqual(readFileSync(mounted.path("quick")), noise(12, 20_000));
          reader.kill(signal);
          assert.deepEqual(await end, [null, signal]);
        }
        await mounted.unmount();
        assert.deepEqual(mounted.failures, []);
      });
    }
  });
}
