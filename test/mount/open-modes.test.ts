/** The ways in which the kernel channel has files opened, on real mounts. */

import assert from "node:assert/strict";
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  futimesSync,
  linkSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  statSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { setTimeout } from "node:timers/promises";
import koffi from "koffi";
import { DiskCache } from "../../src/cache/index.ts";
import { hashOf } from "../../src/cas/index.ts";
import { chooseOpenMode, OPEN_MODES } from "../../src/fs/open-mode.ts";
import { at, Fixture, type Mounted, type TreeEntry } from "./fixture.ts";
import { noise } from "./reading.ts";

const MIB = 1024 * 1024;

/** A file of ten pieces that is assembled in the cache; the fourth is a hole. */
const LARGE = Buffer.concat([noise(50, 3 * MIB), Buffer.alloc(MIB), noise(51, 6 * MIB + 12_345)]);
const SMALL = noise(52, 10_000);
const TREE: TreeEntry[] = [
  { path: at("large"), mode: 0o100644, content: LARGE },
  { path: at("small"), mode: 0o100644, content: SMALL },
];

/** How long something may take that takes milliseconds. */
const PATIENCE = 20_000;

/** Waits until the cache of a test has the large file whole. */
async function untilWhole(fixture: Fixture): Promise<void> {
  const cache = DiskCache.open(join(fixture.root, "cache"));
  try {
    for (const deadline = performance.now() + PATIENCE; ; await setTimeout(10)) {
      const fd = cache.openWhole(hashOf(LARGE));
      if (fd !== undefined) return closeSync(fd);
      assert.ok(performance.now() < deadline, "the file is not whole");
    }
  } finally {
    cache.close();
  }
}

/** What `use` comes to while the daemon does nothing; undefined where it waits for the daemon. */
async function whileStopped<T>(mounted: Mounted, use: () => Promise<T>): Promise<T | undefined> {
  mounted.process.kill("SIGSTOP");
  try {
    return await Promise.race([use(), setTimeout(2000, undefined, { ref: false })]);
  } finally {
    mounted.process.kill("SIGCONT");
  }
}

async function readPart(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, position);
  return buffer.subarray(0, bytesRead);
}

const root = process.getuid?.() === 0;

describe("open modes of a read-only mount", () => {
  for (const openMode of OPEN_MODES) {
    it(`shows the same bytes opened as ${openMode}, before and after a file is whole in the cache`, async (t) => {
      const fixture = new Fixture(t);
      const spec = await fixture.snapshot(TREE);
      for (const round of ["first", "second"]) {
        const mounted = await fixture.mount("kernel", spec, { openMode });
        for (let pass = 0; pass < 2; pass++) {
          const held = openSync(mounted.path("large"), "r");
          assert.ok(readFileSync(mounted.path("large")).equals(LARGE), round);
          assert.ok(readFileSync(mounted.path("small")).equals(SMALL), round);
          const part = Buffer.alloc(100_000);
          assert.equal(readSync(held, part, 0, part.length, 3 * MIB - 50_000), part.length);
          assert.ok(part.equals(LARGE.subarray(3 * MIB - 50_000, 3 * MIB + 50_000)));
          assert.equal(readSync(held, part, 0, part.length, LARGE.length), 0);
          if (openMode === "passthrough" && root) await untilWhole(fixture);
          assert.ok(readFileSync(mounted.path("large")).equals(LARGE), "while it is open from before");
          closeSync(held);
        }
        assert.deepEqual(mounted.failures, []);
        await mounted.unmount();
      }
    });
  }

  it("hands a whole file to the kernel, which then asks nobody", { skip: root ? false : "needs root" }, async (t) => {
    const fixture = new Fixture(t);
    const spec = await fixture.snapshot(TREE);
    const first = await fixture.mount("kernel", spec, { openMode: "passthrough" });
    assert.ok(readFileSync(first.path("large")).equals(LARGE));
    await untilWhole(fixture);
    await first.unmount();
    const mounted = await fixture.mount("kernel", spec, { openMode: "passthrough" });
    const file = await open(mounted.path("large"));
    const again = await open(mounted.path("large"));
    assert.ok(
      (await whileStopped(mounted, () => readPart(file, 5 * MIB, 70_000)))?.equals(
        LARGE.subarray(5 * MIB, 5 * MIB + 70_000),
      ),
    );
    await file.close();
    assert.ok(
      (await whileStopped(mounted, () => readPart(again, 3 * MIB - 5, 10)))?.equals(
        LARGE.subarray(3 * MIB - 5, 3 * MIB + 5),
      ),
    );
    await again.close();
    // Damaged, it is not handed out again, and what is read of it is right.
    writeFileSync(containerIn(fixture), "x", { flag: "r+" });
    assert.ok(readFileSync(mounted.path("large")).equals(LARGE));
    await untilWhole(fixture);
    assert.ok(readFileSync(mounted.path("large")).equals(LARGE));
  });

  it("goes on showing a file that is evicted while it is open", { skip: root ? false : "needs root" }, async (t) => {
    const fixture = new Fixture(t);
    const spec = await fixture.snapshot(TREE);
    const mounted = await fixture.mount("kernel", spec, { openMode: "passthrough" });
    const cached = await open(mounted.path("large"));
    assert.ok(readFileSync(mounted.path("large")).equals(LARGE));
    await cached.close();
    await untilWhole(fixture);
    const passed = await open(mounted.path("large"));
    assert.ok((await whileStopped(mounted, () => readPart(passed, 0, 100)))?.equals(LARGE.subarray(0, 100)));
    const cache = DiskCache.open(join(fixture.root, "cache"), { sizeLimit: 16 * MIB });
    for (let seed = 0; seed < 20; seed++) {
      const filler = noise(100 + seed, MIB);
      assert.ok(cache.insert(hashOf(filler), filler));
    }
    assert.equal(existsSync(containerIn(fixture)), false);
    cache.close();
    assert.ok((await passed.readFile()).equals(LARGE));
    await passed.close();
    assert.ok(readFileSync(mounted.path("large")).equals(LARGE), "fetched again");
  });

  it("is chosen by what the bundle holds", { skip: root ? false : "needs root" }, async (t) => {
    const fixture = new Fixture(t);
    assert.equal(chooseOpenMode(await fixture.snapshot(TREE)).mode, "passthrough");
    assert.equal(chooseOpenMode(await fixture.snapshot(TREE.slice(1))).mode, "noopen");
    const many = Array.from({ length: 100 }, (_, index) => ({
      path: at(`f${index}`),
      mode: 0o100644,
      content: noise(index, 10),
    }));
    assert.equal(chooseOpenMode(await fixture.snapshot([...TREE, ...many])).mode, "noopen");
    assert.equal(chooseOpenMode(fixture.overlay()).mode, "passthrough");
  });
});

function containerIn(fixture: Fixture): string {
  const hash = hashOf(LARGE);
  return join(fixture.root, "cache", "containers", hash.slice(0, 2), `${hash}.file`);
}

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;

/** Fills the first `length` bytes of an open file with a byte, through a memory map. */
function fillMapped(fd: number, length: number, byte: number): void {
  const library = koffi.load(null);
  const map = library.func("void* mmap(void*, size_t, int, int, int, int64_t)");
  const fill = library.func("void* memset(void*, int, size_t)");
  const unmap = library.func("int munmap(void*, size_t)");
  const address = map(null, length, PROT_READ_WRITE, MAP_SHARED, fd, 0);
  fill(address, byte, length);
  assert.equal(unmap(address, length), 0);
}

if (root) {
  describe("files of a writable mount that the kernel writes by itself", () => {
    async function mount(
      t: TestContext,
    ): Promise<{ fixture: Fixture; mounted: Mounted; path: (name: string) => string }> {
      const fixture = new Fixture(t);
      const spec = fixture.overlay(await fixture.snapshot(TREE));
      const mounted = await fixture.mount("kernel", spec);
      return { fixture, mounted, path: (name) => mounted.path(name) };
    }

    it("are new ones and those that were emptied, and no others", async (t) => {
      const { mounted, path } = await mount(t);
      for (const name of ["new", "small"]) {
        const file = await open(path(name), "w+");
        // Before the first write, and after attributes were asked for, the kernel asks for a security attribute.
        await file.write("prepared");
        const wrote = await whileStopped(mounted, () => file.write(Buffer.from("straight"), 0, 8, 0));
        assert.equal(wrote?.bytesWritten, 8, name);
        assert.equal((await file.stat()).size, 8);
        assert.equal(readFileSync(path(name), "utf8"), "straight");
        await file.close();
      }
      // A file with a base stays with the daemon, and is right.
      const part = openSync(path("large"), "r+");
      writeSync(part, "patched", 4 * MIB);
      const expected = Buffer.from(LARGE);
      expected.write("patched", 4 * MIB);
      assert.ok(readFileSync(path("large")).equals(expected));
      closeSync(part);
      assert.deepEqual(mounted.failures, []);
    });

    it("are opened the same way by all, whatever happens while they are open", async (t) => {
      const { mounted, path } = await mount(t);
      const early = openSync(path("small"), "r+");
      const late = openSync(path("small"), constants.O_RDWR | constants.O_TRUNC);
      writeSync(late, "after the cut", 0);
      const seen = Buffer.alloc(20);
      assert.equal(seen.toString("utf8", 0, readSync(early, seen, 0, 20, 0)), "after the cut");
      writeSync(early, "AFTER", 0);
      assert.equal(readFileSync(path("small"), "utf8"), "AFTER the cut");
      closeSync(early);
      closeSync(late);
      assert.equal(readFileSync(path("small"), "utf8"), "AFTER the cut");
      assert.deepEqual(mounted.failures, []);
    });

    it("have their sizes and times wherever they are asked for", async (t) => {
      const { path } = await mount(t);
      const fd = openSync(path("file"), "wx+");
      writeSync(fd, Buffer.alloc(1000, 1), 0, 1000, 0);
      assert.equal(statSync(path("file")).size, 1000);
      const append = openSync(path("file"), "a");
      writeSync(append, "tail");
      assert.deepEqual([fstatSync(fd).size, statSync(path("file")).size], [1004, 1004]);
      ftruncateSync(fd, 10);
      assert.equal(statSync(path("file")).size, 10);
      writeSync(append, "end");
      assert.equal(readFileSync(path("file"), "latin1"), `${"\x01".repeat(10)}end`);
      truncateSync(path("file"), 5000);
      assert.equal(fstatSync(append).size, 5000);
      futimesSync(fd, 1000, 1_000_000_000);
      assert.equal(statSync(path("file")).mtimeMs, 1_000_000_000_000);
      writeSync(fd, "x", 0);
      assert.ok(Date.now() - statSync(path("file")).mtimeMs < PATIENCE, "a write after it counts");
      futimesSync(fd, 1000, 2_000_000_000);
      closeSync(fd);
      closeSync(append);
      assert.equal(statSync(path("file")).mtimeMs, 2_000_000_000_000);
      utimesSync(path("file"), 1000, 3_000_000_000);
      const later = openSync(path("file"), "r+");
      assert.equal(fstatSync(later).mtimeMs, 3_000_000_000_000);
      writeSync(later, "y", 0);
      assert.ok(fstatSync(later).mtimeMs < 2_500_000_000_000);
      closeSync(later);
    });

    it("keep their times when somebody only looks into them", async (t) => {
      const { path } = await mount(t);
      truncateSync(path("small"), 0);
      const emptied = statSync(path("small"), { bigint: true }).mtimeNs;
      // Until the clock of files has gone on.
      for (const end = Date.now() + 50; Date.now() < end; ) await setTimeout(10);
      assert.equal(readFileSync(path("small"), "utf8"), "");
      assert.equal(statSync(path("small"), { bigint: true }).mtimeNs, emptied);
    });

    it("can be mapped, renamed, linked and removed while they are open", async (t) => {
      const { fixture, mounted, path } = await mount(t);
      const fd = openSync(path("file"), "wx+");
      ftruncateSync(fd, 10_000);
      fillMapped(fd, 10_000, 0x61);
      renameSync(path("file"), path("renamed"));
      linkSync(path("renamed"), path("second"));
      writeSync(fd, "bcd", 5000);
      const expected = Buffer.alloc(10_000, 0x61);
      expected.write("bcd", 5000);
      assert.ok(readFileSync(path("second")).equals(expected));
      unlinkSync(path("renamed"));
      unlinkSync(path("second"));
      writeSync(fd, "still here", 9_995);
      assert.equal(fstatSync(fd).size, 10_005);
      assert.equal(fstatSync(fd).nlink, 0);
      const data = join(fixture.root, "scratch", "data", String(fstatSync(fd).ino));
      assert.ok(existsSync(data));
      closeSync(fd);
      assert.deepEqual(mounted.failures, []);
      await mounted.unmount();
      assert.equal(existsSync(data), false);
    });

    it("outlive the daemon with all that was written", async (t) => {
      const { fixture, mounted, path } = await mount(t);
      const content = noise(60, 3 * MIB + 7);
      const fd = openSync(path("big"), "wx");
      writeSync(fd, content);
      fsyncSync(fd);
      writeSync(fd, "one more");
      const { mtimeNs } = fstatSync(fd, { bigint: true });
      mounted.process.kill("SIGKILL");
      await mounted.ended;
      // Nobody answers to a close any more.
      assert.throws(() => closeSync(fd), { code: "ENOTCONN" });
      const again = await fixture.mount("kernel", fixture.overlay(await fixture.snapshot(TREE)));
      assert.ok(readFileSync(again.path("big")).equals(Buffer.concat([content, Buffer.from("one more")])));
      assert.equal(statSync(again.path("big"), { bigint: true }).mtimeNs, mtimeNs);
    });
  });
}
