/** What programs expect of a file system beyond reading, writing and naming. */

import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  appendFileSync,
  chmodSync,
  chownSync,
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { bytesOf } from "../../src/cas/index.ts";
import type { ChannelKind } from "../../src/fs/channels/channel.ts";
import { alignedBuffer, copyFileRange, fallocate, lockRange, lseek, Mapping, SEEK_DATA, SEEK_HOLE } from "./calls.ts";
import { at, Fixture, type Mounted, type TreeEntry } from "./fixture.ts";
import { noise } from "./reading.ts";
import type { Abilities } from "./suite.ts";
import { getXattr, listXattrs, removeXattr, setXattr } from "./xattrs.ts";

const MIB = 1024 * 1024;
const NOBODY = 65534;
const LARGE = Buffer.concat([noise(1, 2 * MIB), Buffer.alloc(MIB), noise(2, MIB / 2 + 17)]);

const TREE: TreeEntry[] = [
  { path: at("dir"), mode: 0o040755 },
  { path: at("file"), mode: 0o100644, content: Buffer.from("content of the base") },
  { path: at("large"), mode: 0o100644, content: LARGE, xattrs: new Map([[at("user.note"), Buffer.from("kept")]]) },
];

const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const COLLAPSE_RANGE = 8;
const ZERO_RANGE = 16;

async function mountTree(t: TestContext, kind: ChannelKind, allowOther = false): Promise<Mounted> {
  const fixture = new Fixture(t);
  return await fixture.mount(kind, fixture.overlay(await fixture.snapshot(TREE)), { allowOther });
}

export function posixTests(kind: ChannelKind, can: Abilities): void {
  describe("as programs expect it", () => {
    it("keeps every line of several that append", async (t) => {
      const mounted = await mountTree(t, kind);
      const script = 'for i in $(seq 200); do echo "$1 line $i" >> log; done';
      const ends = await Promise.all(
        ["a", "b", "c", "d"].map((name) =>
          once(spawn("sh", ["-c", script, "sh", name], { cwd: mounted.directory, stdio: "inherit" }), "exit"),
        ),
      );
      assert.deepEqual(ends, Array(4).fill([0, null]));
      const lines = readFileSync(mounted.path("log"), "utf8").trimEnd().split("\n");
      const expected = ["a", "b", "c", "d"].flatMap((name) =>
        Array.from({ length: 200 }, (_, i) => `${name} line ${i + 1}`),
      );
      assert.deepEqual(lines.toSorted(), expected.toSorted());
      const [one, other] = [openSync(mounted.path("file"), "a"), openSync(mounted.path("file"), "a")];
      writeSync(one, "+1");
      writeSync(other, "+2");
      writeSync(one, "+3");
      closeSync(one);
      closeSync(other);
      assert.equal(readFileSync(mounted.path("file"), "utf8"), "content of the base+1+2+3");
    });

    it("reads and writes past the page cache", async (t) => {
      const { path } = await mountTreeOf(t, kind);
      const fd = openSync(path("large"), constants.O_RDWR | constants.O_DIRECT);
      const block = alignedBuffer(8192);
      assert.equal(readSync(fd, block, 0, 8192, 4096), 8192);
      assert.equal(Buffer.compare(block, LARGE.subarray(4096, 12_288)), 0);
      noise(5, 8192).copy(block);
      assert.equal(writeSync(fd, block, 0, 8192, 8192), 8192);
      const expected = Buffer.from(LARGE);
      noise(5, 8192).copy(expected, 8192);
      assert.equal(Buffer.compare(readFileSync(path("large")), expected), 0);
      appendFileSync(path("large"), "cached");
      const end = LARGE.length - (LARGE.length % 4096);
      const tail = readSync(fd, block, 0, 8192, end);
      assert.equal(block.toString("latin1", tail - 6, tail), "cached");
      closeSync(fd);
      const made = openSync(path("made"), constants.O_RDWR | constants.O_CREAT | constants.O_DIRECT);
      assert.equal(writeSync(made, block, 0, 4096, 4096), 4096);
      closeSync(made);
      assert.equal(
        Buffer.compare(readFileSync(path("made")), Buffer.concat([Buffer.alloc(4096), block.subarray(0, 4096)])),
        0,
      );
    });

    it("maps files into memory, shared and writable", async (t) => {
      const { path } = await mountTreeOf(t, kind);
      for (const name of ["large", "made"]) {
        if (name === "made") writeFileSync(path(name), noise(6, 3 * MIB));
        const expected = readFileSync(path(name)).subarray(0, MIB);
        const fd = openSync(path(name), "r+");
        const mapping = new Mapping(fd, MIB);
        assert.equal(Buffer.compare(mapping.read(), expected), 0);
        writeSync(fd, "written", 5000);
        assert.equal(mapping.read().toString("latin1", 5000, 5007), "written");
        const content = noise(7, MIB);
        mapping.write(content);
        mapping.sync();
        assert.equal(Buffer.compare(readFileSync(path(name)).subarray(0, MIB), content), 0);
        closeSync(fd);
        // The file is closed: the map alone keeps it.
        mapping.write(noise(8, MIB));
        mapping.close();
        assert.equal(Buffer.compare(readFileSync(path(name)).subarray(0, MIB), noise(8, MIB)), 0);
        assert.equal(statSync(path(name)).size, name === "large" ? LARGE.length : 3 * MIB);
      }
    });

    it("locks files between processes", async (t) => {
      const { path } = await mountTreeOf(t, kind);
      const holder = spawn("flock", [path("file"), "sh", "-c", "echo held; read line"], {
        stdio: ["pipe", "pipe", "inherit"],
      });
      await once(holder.stdout, "data");
      const tryLock = (): number | null => spawnSync("flock", ["--nonblock", path("file"), "true"]).status;
      assert.equal(tryLock(), 1);
      holder.stdin.end();
      await once(holder, "exit");
      assert.equal(tryLock(), 0);

      const child = join(import.meta.dirname, "lock-child.ts");
      const tryRange = (start: number, length: number): number | null =>
        spawnSync(process.execPath, [child, path("file"), String(start), String(length)], { stdio: "inherit" }).status;
      const fd = openSync(path("file"), "r+");
      assert.equal(lockRange(fd, 0, 10), true);
      assert.deepEqual([tryRange(5, 1), tryRange(10, 5)], [1, 0]);
      lockRange(fd, 0, 10, false);
      assert.equal(tryRange(5, 1), 0);
      closeSync(fd);
    });

    it("copies ranges within and between files", async (t) => {
      const { path } = await mountTreeOf(t, kind);
      const from = openSync(path("large"), "r+");
      const to = openSync(path("copy"), "w+");
      for (let done = 0; done < LARGE.length; ) done += copyFileRange(from, done, to, done, LARGE.length - done);
      assert.equal(Buffer.compare(readFileSync(path("copy")), LARGE), 0);
      assert.equal(copyFileRange(from, 0, from, 2 * MIB, 100_000), 100_000);
      const expected = Buffer.from(LARGE);
      expected.copy(expected, 2 * MIB, 0, 100_000);
      assert.equal(Buffer.compare(readFileSync(path("large")), expected), 0);
      closeSync(from);
      closeSync(to);
    });

    it("keeps extended attributes within their limits, and copies them", async (t) => {
      const { path, directory } = await mountTreeOf(t, kind);
      const file = bytesOf(path("file"));
      const longest = `user.${"n".repeat(250)}`;
      setXattr(file, longest, Buffer.alloc(0));
      setXattr(file, "user.value", noise(9, 60_000));
      assert.deepEqual(getXattr(file, "user.value"), noise(9, 60_000));
      assert.equal(getXattr(file, longest).length, 0);
      assert.deepEqual(listXattrs(file), [longest, "user.value"]);
      assert.throws(() => setXattr(file, `${longest}n`, Buffer.alloc(0)), { code: "ERANGE" });
      assert.throws(() => setXattr(file, "user.over", Buffer.alloc(65_537)), { code: "E2BIG" });
      assert.throws(() => setXattr(file, "user.datamon.hash", Buffer.alloc(1)), { code: "EPERM" });
      removeXattr(file, "user.value");
      removeXattr(file, longest);
      assert.deepEqual(listXattrs(file), []);
      // Datamon's own answer whoever asks, and are not in the way of who copies all there are.
      assert.equal(getXattr(file, "user.datamon.hash").length, 64);
      const copy = spawnSync("cp", ["-a", "large", "copy"], { cwd: directory, encoding: "utf8" });
      assert.deepEqual([copy.status, copy.stderr], [0, ""]);
      assert.deepEqual(listXattrs(bytesOf(path("copy"))), ["user.note"]);
      assert.deepEqual(getXattr(bytesOf(path("copy")), "user.note"), Buffer.from("kept"));
    });

    it("lets sockets and named pipes be used", async (t) => {
      const { path } = await mountTreeOf(t, kind);
      const server = createServer((socket) => socket.end("through the socket"));
      server.listen(path("socket"));
      await once(server, "listening");
      const client = connect(path("socket"));
      let heard = "";
      client.on("data", (text) => {
        heard += text;
      });
      await once(client, "close");
      assert.equal(heard, "through the socket");
      assert.equal(statSync(path("socket")).isSocket(), true);
      server.close();
      await once(server, "close");
      execFileSync("mkfifo", [path("pipe")]);
      const reader = spawn("cat", [path("pipe")], { stdio: ["ignore", "pipe", "inherit"] });
      execFileSync("sh", ["-c", 'echo "through the pipe" > "$1"', "sh", path("pipe")]);
      const [text] = await once(reader.stdout, "data");
      assert.equal(String(text), "through the pipe\n");
    });

    it("lets a directory go whose entries are open", async (t) => {
      const { path } = await mountTreeOf(t, kind);
      mkdirSync(path("gone"));
      const fd = openSync(path("gone/file"), "wx+");
      unlinkSync(path("gone/file"));
      writeSync(fd, "still here");
      assert.equal(fstatSync(fd).size, 10);
      ftruncateSync(fd, 5);
      const read = Buffer.alloc(10);
      assert.equal(readSync(fd, read, 0, 10, 0), 5);
      assert.equal(read.toString("latin1", 0, 5), "still");
      closeSync(fd);
      assert.deepEqual(readdirSync(path("gone")), []);
    });

    if (can.fallocate) {
      it("allocates, keeps sizes, zeroes and punches, in files of the base and in others", async (t) => {
        const { path } = await mountTreeOf(t, kind);
        writeFileSync(path("made"), LARGE);
        for (const name of ["large", "made"]) {
          const expected = Buffer.concat([LARGE, Buffer.alloc(MIB)]);
          const fd = openSync(path(name), "r+");
          const same = (): void => assert.equal(Buffer.compare(readFileSync(path(name)), expected), 0);
          fallocate(fd, 0, LARGE.length, MIB);
          same();
          fallocate(fd, KEEP_SIZE, 0, 8 * MIB);
          same();
          fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4096, 65_536);
          expected.fill(0, 4096, 4096 + 65_536);
          same();
          fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 100, 50);
          expected.fill(0, 100, 150);
          same();
          fallocate(fd, ZERO_RANGE | KEEP_SIZE, MIB, MIB);
          expected.fill(0, MIB, 2 * MIB);
          same();
          writeSync(fd, "in the hole", 5000);
          expected.write("in the hole", 5000);
          same();
          fallocate(fd, ZERO_RANGE, expected.length - 10, 110);
          expected.fill(0, expected.length - 10);
          assert.equal(Buffer.compare(readFileSync(path(name)), Buffer.concat([expected, Buffer.alloc(100)])), 0);
          assert.throws(() => fallocate(fd, COLLAPSE_RANGE, 0, 4096), { code: "EOPNOTSUPP" });
          assert.throws(() => fallocate(fd, 0, 0, 0), { code: "EINVAL" });
          closeSync(fd);
        }
      });
    }

    if (can.holes) {
      it("tells where data and holes are", async (t) => {
        const { path } = await mountTreeOf(t, kind);
        const fd = openSync(path("large"), "r+");
        const [data, hole] = [
          (from: number) => lseek(fd, from, SEEK_DATA),
          (from: number) => lseek(fd, from, SEEK_HOLE),
        ];
        assert.deepEqual([data(0), hole(0), data(2 * MIB), hole(3 * MIB)], [0, 2 * MIB, 3 * MIB, LARGE.length]);
        writeSync(fd, noise(3, 4096), 0, 4096, 2 * MIB + 8192);
        assert.deepEqual([data(2 * MIB), hole(2 * MIB + 8192)], [2 * MIB + 8192, 2 * MIB + 12_288]);
        ftruncateSync(fd, MIB);
        ftruncateSync(fd, 64 * MIB);
        assert.equal(hole(0), MIB);
        assert.throws(() => data(MIB), { code: "ENXIO" });
        assert.throws(() => hole(64 * MIB), { code: "ENXIO" });
        closeSync(fd);
        const made = openSync(path("made"), "w+");
        writeSync(made, "x", 10 * MIB);
        assert.deepEqual([lseek(made, 0, SEEK_DATA), lseek(made, 0, SEEK_HOLE)], [10 * MIB, 0]);
        closeSync(made);
      });

      it("tells where data and holes of a read-only mount are", async (t) => {
        const fixture = new Fixture(t);
        const mounted = await fixture.mount(kind, await fixture.snapshot(TREE));
        const fd = openSync(mounted.path("large"), "r");
        assert.deepEqual([lseek(fd, 5, SEEK_DATA), lseek(fd, 5, SEEK_HOLE)], [5, 2 * MIB]);
        assert.equal(lseek(fd, 2 * MIB + 1, SEEK_DATA), 3 * MIB);
        assert.throws(() => lseek(fd, LARGE.length, SEEK_DATA), { code: "ENXIO" });
        closeSync(fd);
      });
    }

    if (can.callers && process.getuid?.() === 0) {
      it("follows the rules of sticky and setgid directories", async (t) => {
        const mounted = await mountTree(t, kind, true);
        const { path } = bound(mounted);
        chmodSync(mounted.directory, 0o755);
        const asNobody = (script: string): number | null =>
          spawnSync("sh", ["-c", script], { cwd: mounted.directory, uid: NOBODY, gid: NOBODY, stdio: "ignore" }).status;
        mkdirSync(path("team"));
        chownSync(path("team"), 0, 1234);
        chmodSync(path("team"), 0o3777);
        assert.equal(asNobody("echo mine > team/mine && mkdir team/sub"), 0);
        assert.deepEqual([statSync(path("team/mine")).gid, statSync(path("team/sub")).gid], [1234, 1234]);
        assert.equal(statSync(path("team/sub")).mode & 0o2000, 0o2000);
        writeFileSync(path("team/roots"), "");
        assert.notEqual(asNobody("rm -f team/roots"), 0);
        assert.notEqual(asNobody("mv team/roots team/taken"), 0);
        assert.equal(asNobody("mv team/mine team/moved && rm team/moved"), 0);
        chmodSync(path("team"), 0o2777);
        assert.equal(asNobody("rm -f team/roots"), 0);
      });

      it("has devices while it is mounted", async (t) => {
        const { path } = await mountTreeOf(t, kind);
        execFileSync("mknod", [path("zero"), "c", "1", "5"]);
        assert.equal(statSync(path("zero")).isCharacterDevice(), true);
        const fd = openSync(path("zero"), "r");
        const read = Buffer.alloc(4, 1);
        assert.equal(readSync(fd, read, 0, 4, null), 4);
        assert.deepEqual(read, Buffer.alloc(4));
        closeSync(fd);
      });
    }
  });
}

async function mountTreeOf(t: TestContext, kind: ChannelKind): Promise<ReturnType<typeof bound>> {
  return bound(await mountTree(t, kind));
}

function bound(mounted: Mounted): { path: (name: string) => string; directory: string } {
  return { path: (name) => mounted.path(name), directory: mounted.directory };
}
