/** What a writable mount does. */

import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  appendFileSync,
  chmodSync,
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  opendirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  renameSync,
  rmdirSync,
  statfsSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { describe, it, type TestContext } from "node:test";
import koffi from "koffi";
import { type ByteString, bytesOf, toFsPath } from "../../src/cas/index.ts";
import type { ChannelKind } from "../../src/fs/channels/channel.ts";
import { at, Fixture, type Mounted, type TreeEntry } from "./fixture.ts";
import { noise } from "./reading.ts";
import type { Abilities } from "./suite.ts";
import { getXattr, listXattrs, removeXattr, setXattr } from "./xattrs.ts";

const MIB = 1024 * 1024;
const LARGE = Buffer.concat([noise(1, 2 * MIB), Buffer.alloc(MIB), noise(2, MIB / 2 + 17)]);
const NOBODY = 65534;

const TREE: TreeEntry[] = [
  { path: at("dir"), mode: 0o040755 },
  { path: at("dir/sub"), mode: 0o040755 },
  { path: at("dir/sub/leaf"), mode: 0o100644, content: Buffer.from("leaf") },
  { path: at("dir/file"), mode: 0o100644, content: Buffer.from("content of the base") },
  { path: at("large"), mode: 0o100644, content: LARGE },
  { path: at("other"), mode: 0o100600, content: Buffer.from("other") },
];

async function mountOverlay(t: TestContext, kind: ChannelKind, allowOther = false): Promise<Mounted> {
  const fixture = new Fixture(t);
  return await fixture.mount(kind, fixture.overlay(await fixture.snapshot(TREE)), { allowOther });
}

const AT_FDCWD = -100;
const RENAME_NOREPLACE = 1;
const RENAME_EXCHANGE = 2;

/** renameat2(2); the name of its errno, or undefined. */
function renameWith(flags: number, from: string, to: string): string | undefined {
  const call = koffi.load(null).func("int renameat2(int, const char*, int, const char*, unsigned int)");
  if (call(AT_FDCWD, from, AT_FDCWD, to, flags) === 0) return undefined;
  return Object.entries(koffi.os.errno).find(([, number]) => number === koffi.errno())?.[0];
}

export function writeTests(kind: ChannelKind, can: Abilities): void {
  describe("writable", () => {
    it("keeps what is written to new files", async (t) => {
      const { path } = boundPath(await mountOverlay(t, kind));
      const content = noise(20, 3 * MIB + 5);
      writeFileSync(path("dir/new"), content);
      assert.deepEqual(readFileSync(path("dir/new")), content);
      appendFileSync(path("dir/new"), "end");
      assert.deepEqual(readFileSync(path("dir/new")), Buffer.concat([content, Buffer.from("end")]));
      const fd = openSync(path("sparse"), "wx+", 0o640);
      writeSync(fd, "tail", 5 * MIB);
      writeSync(fd, "head", 0);
      assert.equal(fstatSync(fd).size, 5 * MIB + 4);
      const expected = Buffer.alloc(5 * MIB + 4);
      expected.write("head", 0);
      expected.write("tail", 5 * MIB);
      assert.equal(Buffer.compare(readFileSync(path("sparse")), expected), 0);
      ftruncateSync(fd, 2);
      ftruncateSync(fd, 6);
      assert.deepEqual(readFileSync(path("sparse")), Buffer.from("he\0\0\0\0"));
      fsyncSync(fd);
      closeSync(fd);
      assert.equal(statSync(path("sparse")).mode & 0o777, 0o640 & ~process.umask());
      assert.throws(() => openSync(path("sparse"), "wx"), { code: "EEXIST" });
      assert.throws(() => writeFileSync(path("absent/file"), ""), { code: "ENOENT" });
    });

    it("changes a part of a file of the base", async (t) => {
      const { path } = boundPath(await mountOverlay(t, kind));
      const expected = Buffer.from(LARGE);
      const fd = openSync(path("large"), "r+");
      for (const [offset, text] of [
        [10, "small"],
        [MIB - 3, "across pieces"],
        [2 * MIB + 700, "in the hole"],
        [LARGE.length - 2, "over the end"],
      ] as const) {
        writeSync(fd, text, offset);
        const grown = Math.max(expected.length, offset + text.length);
        if (grown > expected.length) {
          assert.equal(fstatSync(fd).size, grown);
          assert.equal(
            Buffer.compare(
              readFileSync(path("large")),
              Buffer.concat([expected.subarray(0, offset), Buffer.from(text)]),
            ),
            0,
          );
        } else {
          expected.write(text, offset);
          assert.equal(Buffer.compare(readFileSync(path("large")), expected), 0);
        }
      }
      ftruncateSync(fd, MIB + 5);
      ftruncateSync(fd, 2 * MIB);
      closeSync(fd);
      const cut = Buffer.concat([expected.subarray(0, MIB + 5), Buffer.alloc(MIB - 5)]);
      assert.equal(Buffer.compare(readFileSync(path("large")), cut), 0);
      truncateSync(path("dir/file"));
      assert.equal(readFileSync(path("dir/file"), "utf8"), "");
      writeFileSync(path("other"), "replaced");
      assert.equal(readFileSync(path("other"), "utf8"), "replaced");
    });

    it("renames and removes", async (t) => {
      const { path } = boundPath(await mountOverlay(t, kind));
      renameSync(path("dir/file"), path("other"));
      assert.equal(readFileSync(path("other"), "utf8"), "content of the base");
      assert.throws(() => statSync(path("dir/file")), { code: "ENOENT" });
      mkdirSync(path("made"));
      renameSync(path("dir"), path("made/moved"));
      assert.equal(readFileSync(path("made/moved/sub/leaf"), "utf8"), "leaf");
      assert.deepEqual(readdirSync(path("")).sort(), ["large", "made", "other"]);
      assert.deepEqual([statSync(path("")).nlink, statSync(path("made")).nlink], [3, 3]);
      assert.throws(() => renameSync(path("made"), path("made/moved/below")), { code: "EINVAL" });
      assert.throws(() => renameSync(path("large"), path("made")), { code: "EISDIR" });
      assert.throws(() => rmdirSync(path("made")), { code: "ENOTEMPTY" });
      assert.throws(() => mkdirSync(path("made")), { code: "EEXIST" });
      unlinkSync(path("made/moved/sub/leaf"));
      assert.throws(() => unlinkSync(path("made/moved/sub/leaf")), { code: "ENOENT" });
      rmdirSync(path("made/moved/sub"));
      assert.deepEqual(readdirSync(path("made/moved")), []);
      writeFileSync(path("made/moved/sub"), "a file now");
      assert.equal(lstatSync(path("made/moved/sub")).isFile(), true);
      assert.throws(() => mkdirSync(path("n".repeat(256))), { code: "ENAMETOOLONG" });
    });

    it("makes symbolic and hard links", async (t) => {
      const { path } = boundPath(await mountOverlay(t, kind));
      symlinkSync("dir/file", path("soft"));
      assert.equal(readlinkSync(path("soft")), "dir/file");
      assert.equal(readFileSync(path("soft"), "utf8"), "content of the base");
      linkSync(path("dir/file"), path("hard"));
      const nlinks = (): number[] => ["dir/file", "hard"].map((name) => statSync(path(name)).nlink);
      assert.deepEqual(nlinks(), [2, 2]);
      appendFileSync(path("hard"), "!");
      assert.equal(readFileSync(path("dir/file"), "utf8"), "content of the base!");
      assert.equal(statSync(path("dir/file")).size, 20);
      assert.equal(statSync(path("dir/file")).ino, statSync(path("hard")).ino);
      unlinkSync(path("dir/file"));
      assert.equal(statSync(path("hard")).nlink, 1);
      assert.equal(readFileSync(path("hard"), "utf8"), "content of the base!");
      execFileSync("mkfifo", [path("pipe")]);
      assert.equal(lstatSync(path("pipe")).isFIFO(), true);
    });

    it("sets attributes", async (t) => {
      const { path } = boundPath(await mountOverlay(t, kind));
      chmodSync(path("dir/file"), 0o741);
      assert.equal(statSync(path("dir/file")).mode, 0o100741);
      utimesSync(path("dir/file"), 1_000_000_000, 1_100_000_000.5);
      const times = statSync(path("dir/file"), { bigint: true });
      assert.deepEqual([times.atimeMs, times.mtimeMs], [1_000_000_000_000n, 1_100_000_000_500n]);
      const before = statSync(path("dir"), { bigint: true });
      writeFileSync(path("dir/another"), "x");
      appendFileSync(path("dir/file"), "x");
      assert.ok(statSync(path("dir"), { bigint: true }).mtimeMs > before.mtimeMs);
      assert.ok(statSync(path("dir/file"), { bigint: true }).mtimeMs > times.mtimeMs);
      if (can.nanoseconds) {
        execFileSync("touch", ["-d", "2001-02-03 04:05:06.123456789 UTC", path("dir/file")]);
        assert.equal(statSync(path("dir/file"), { bigint: true }).mtimeNs, 981_173_106_123_456_789n);
      }
      if (can.oneTime) {
        execFileSync("touch", ["-m", "-d", "2002-01-01 UTC", path("dir/another")]);
        const { atimeMs, mtimeMs } = statSync(path("dir/another"));
        assert.equal(mtimeMs, 1_009_843_200_000);
        assert.ok(atimeMs > mtimeMs);
      }
      const file = bytesOf(path("dir/file"));
      setXattr(file, "user.note", Buffer.from("kept"));
      assert.deepEqual(getXattr(file, "user.note"), Buffer.from("kept"));
      assert.ok(listXattrs(file).includes("user.note"));
      removeXattr(file, "user.note");
      assert.throws(() => getXattr(file, "user.note"), { code: "ENODATA" });
      assert.ok(statfsSync(path("")).bavail > 0);
    });

    it("keeps the content of an open file that lost its name", async (t) => {
      const { path } = boundPath(await mountOverlay(t, kind));
      const made = openSync(path("made"), "w+");
      const base = openSync(path("large"), constants.O_RDWR);
      writeSync(made, "before");
      unlinkSync(path("made"));
      unlinkSync(path("large"));
      assert.deepEqual(readdirSync(path("")).sort(), ["dir", "other"]);
      writeSync(made, " after");
      writeSync(base, "changed", 0);
      const read = Buffer.alloc(20);
      assert.equal(readSync(made, read, 0, 20, 0), 12);
      assert.equal(read.toString("utf8", 0, 12), "before after");
      assert.equal(readSync(base, read, 0, 20, 0), 20);
      assert.deepEqual(read, Buffer.concat([Buffer.from("changed"), LARGE.subarray(7, 20)]));
      assert.equal(fstatSync(made).nlink, 0);
      closeSync(made);
      closeSync(base);
      writeFileSync(path("made"), "anew");
      assert.equal(readFileSync(path("made"), "utf8"), "anew");
    });

    it("lists names that stay exactly once while others come and go", async (t) => {
      const { path } = boundPath(await mountOverlay(t, kind));
      mkdirSync(path("busy"));
      const stay = Array.from({ length: 2000 }, (_, index) => `stay-${String(index).padStart(4, "0")}`);
      const go = Array.from({ length: 500 }, (_, index) => `go-${String(index).padStart(4, "0")}`);
      for (const name of [...stay, ...go]) writeFileSync(path(`busy/${name}`), "");
      const listing = opendirSync(path("busy"), { bufferSize: 64 });
      const seen: string[] = [];
      for (let count = 0; ; count++) {
        const entry = listing.readSync();
        if (entry === null) break;
        seen.push(entry.name);
        const name = go[count];
        if (name !== undefined) {
          unlinkSync(path(`busy/${name}`));
          writeFileSync(path(`busy/come-${count}`), "");
        }
        // Another listing of the directory as it is now stands at other places.
        if (count % 500 === 0) readdirSync(path("busy"));
      }
      listing.closeSync();
      assert.deepEqual(seen.filter((name) => name.startsWith("stay-")).sort(), stay);
      assert.equal(readdirSync(path("busy")).length, 2500);
    });

    it("serves writers side by side", async (t) => {
      const { path, directory } = boundPath(await mountOverlay(t, kind));
      const script = 'for i in $(seq 100); do echo "$1 $i" > "w-$1-$i" && mv "w-$1-$i" "done-$1-$i" || exit 1; done';
      const ends = await Promise.all(
        ["a", "b", "c"].map((name) =>
          once(spawn("sh", ["-c", script, "sh", name], { cwd: directory, stdio: "inherit" }), "exit"),
        ),
      );
      assert.deepEqual(ends, Array(3).fill([0, null]));
      assert.equal(readdirSync(path("")).filter((name) => name.startsWith("done-")).length, 300);
      assert.equal(readFileSync(path("done-b-77"), "utf8"), "b 77\n");
    });

    it("shows changes again after the daemon was killed", async (t) => {
      const fixture = new Fixture(t);
      const spec = fixture.overlay(await fixture.snapshot(TREE));
      const first = await fixture.mount(kind, spec);
      writeFileSync(first.path("dir/new"), noise(30, 100_000));
      renameSync(first.path("other"), first.path("renamed"));
      first.process.kill("SIGKILL");
      await first.ended;
      const second = await fixture.mount(kind, spec);
      assert.deepEqual(readFileSync(second.path("dir/new")), noise(30, 100_000));
      assert.deepEqual(readdirSync(second.directory).sort(), ["dir", "large", "renamed"]);
    });

    if (can.rawNames) {
      it("takes names of any bytes", async (t) => {
        const { directory } = boundPath(await mountOverlay(t, kind));
        const raw = toFsPath(`${bytesOf(directory)}/raw\xff\n` as ByteString);
        writeFileSync(raw, "raw");
        assert.equal(readFileSync(raw, "utf8"), "raw");
        const names = readdirSync(directory, { encoding: "buffer" }).map((name) => name.toString("latin1"));
        assert.ok(names.includes("raw\xff\n"));
        unlinkSync(raw);
      });
    }

    if (can.renameFlags) {
      it("renames without replacing, and exchanges", async (t) => {
        const { path } = boundPath(await mountOverlay(t, kind));
        assert.equal(renameWith(RENAME_NOREPLACE, path("other"), path("dir/file")), "EEXIST");
        assert.equal(renameWith(RENAME_NOREPLACE, path("other"), path("fresh")), undefined);
        assert.equal(renameWith(RENAME_EXCHANGE, path("fresh"), path("dir")), undefined);
        assert.equal(readFileSync(path("dir"), "utf8"), "other");
        assert.equal(readFileSync(path("fresh/sub/leaf"), "utf8"), "leaf");
      });
    }

    if (can.fallocate) {
      it("allocates and punches holes", async (t) => {
        const { path } = boundPath(await mountOverlay(t, kind));
        execFileSync("fallocate", ["--length", "1000", path("dir/file")]);
        assert.equal(statSync(path("dir/file")).size, 1000);
        execFileSync("fallocate", ["--punch-hole", "--offset", "5000", "--length", "9000", path("large")]);
        const expected = Buffer.from(LARGE).fill(0, 5000, 14_000);
        assert.equal(Buffer.compare(readFileSync(path("large")), expected), 0);
      });
    }

    if (can.callers && process.getuid?.() === 0) {
      it("knows who asks, and checks permissions", async (t) => {
        const mounted = await mountOverlay(t, kind, true);
        const { path } = boundPath(mounted);
        chmodSync(mounted.directory, 0o755);
        mkdirSync(path("shared"));
        chmodSync(path("shared"), 0o777);
        const asNobody = (script: string): number | null =>
          spawnSync("sh", ["-c", script], { cwd: mounted.directory, uid: NOBODY, gid: NOBODY, stdio: "ignore" }).status;
        writeFileSync(path("shared/tool"), "#!/bin/sh\n");
        chmodSync(path("shared/tool"), 0o6777);
        assert.equal(asNobody("echo mine > shared/mine && echo more >> shared/tool"), 0);
        assert.deepEqual([statSync(path("shared/mine")).uid, statSync(path("shared/mine")).gid], [NOBODY, NOBODY]);
        assert.equal(statSync(path("shared/tool")).mode, 0o100777);
        for (const change of [": > shared/tool", "echo x >> shared/tool", "fallocate -l 99 shared/tool"]) {
          chmodSync(path("shared/tool"), 0o6777);
          assert.equal(asNobody(change), 0);
          // `stat` asks for no more than it prints, and what else changed must not be what brings the mode.
          assert.equal(execFileSync("stat", ["-c", "%a", path("shared/tool")], { encoding: "utf8" }), "777\n", change);
        }
        chmodSync(path("shared/tool"), 0o4755);
        execFileSync("chown", [String(NOBODY), path("shared/tool")]);
        assert.equal(statSync(path("shared/tool")).mode, 0o100755);
        assert.notEqual(asNobody("cat other"), 0);
        assert.notEqual(asNobody("echo no > dir/file"), 0);
        assert.notEqual(asNobody("rm -f shared/../dir/file"), 0);
        assert.equal(readFileSync(path("dir/file"), "utf8"), "content of the base");
      });
    }
  });
}

function boundPath(mounted: Mounted): { path: (name: string) => string; directory: string } {
  return { path: (name) => mounted.path(name), directory: mounted.directory };
}
