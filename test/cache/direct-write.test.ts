import assert from "node:assert/strict";
import {
  closeSync,
  constants,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import Database from "better-sqlite3";
import fc from "fast-check";
import { blocksOf, DirectRate, DirectWrites } from "../../src/cache/direct-write.ts";
import { DiskCache, type Home, type Piece } from "../../src/cache/index.ts";
import { addressOf, hashOf } from "../../src/cas/index.ts";
import { pseudoRandom } from "../cas/pseudo-random.ts";
import { bufferedDisk, bytesOnDisk, containerPath, freshDirectory, KIB, MIB, smallDisk } from "./support.ts";

const BLOCK = 4096;

/** Shared memory of `length` bytes whose address is `phase` bytes past a multiple of the block's size. */
function memoryAt(phase: number, length: number): Buffer {
  const bytes = Buffer.from(new SharedArrayBuffer(length + BLOCK));
  const start = (((phase - addressOf(bytes)!) % BLOCK) + BLOCK) % BLOCK;
  return bytes.subarray(start, start + length);
}

/** A large file, and pieces of it between `cuts`. */
class CutFile {
  readonly content: Buffer;
  readonly hash: string;
  readonly pieces: readonly Piece[];

  constructor(seed: number, size: number, cuts: readonly number[]) {
    this.content = pseudoRandom(seed, Math.ceil(size / 4) * 4).subarray(0, size);
    this.hash = hashOf(this.content);
    const ends = [...new Set([...cuts.filter((cut) => cut > 0 && cut < size), size])].sort((a, b) => a - b);
    this.pieces = ends.map((end, index) => {
      const offset = ends[index - 1] ?? 0;
      return { blob: hashOf(this.content.subarray(offset, end)), offset, length: end - offset };
    });
  }

  bytesOf({ offset, length }: Piece): Buffer {
    return this.content.subarray(offset, offset + length);
  }

  homeOf({ offset, length }: Piece): Home {
    return { file: this.hash, size: this.content.length, start: offset, length };
  }

  /** Inserts a piece from memory that is aligned as its place is, or is not. */
  insert(cache: DiskCache, piece: Piece, aligned = true): Promise<boolean> {
    const content = memoryAt((piece.offset + (aligned ? 0 : 8)) % BLOCK, piece.length);
    this.bytesOf(piece).copy(content);
    return cache.insertAsync(piece.blob, content, this.homeOf(piece));
  }

  pathIn(directory: string): string {
    return `${containerPath(directory, this.hash)}.file`;
  }
}

/** Pieces of 600,001 bytes. */
function evenFile(seed: number, count: number): CutFile {
  const cuts = Array.from({ length: count - 1 }, (_, index) => (index + 1) * 600_001);
  return new CutFile(seed, count * 600_001, cuts);
}

/** The flags of all descriptors that this process has for a file, removed or not. */
function openFlags(path: string): number[] {
  return readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      if (target !== path && target !== `${path} (deleted)`) return [];
      return Number.parseInt(/flags:\s+(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))![1]!, 8);
    } catch {
      return []; // the descriptor of the directory itself
    }
  });
}

function isWrittenDirectly(path: string): boolean {
  return openFlags(path).some((flags) => (flags & constants.O_DIRECT) !== 0);
}

/** Whether the file system of a directory has direct writes, and takes such bytes. */
function takesDirectly(directory: string, bytes: Buffer): boolean {
  try {
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_DIRECT;
    const fd = openSync(join(directory, "probe"), flags);
    try {
      return writeSync(fd, bytes, 0, bytes.length, 0) === bytes.length;
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, "EINVAL");
    return false;
  } finally {
    rmSync(join(directory, "probe"), { force: true });
  }
}

test("pieces of any place and length, by several writers in any order, come back byte for byte", async (t) => {
  const takesBlocks = takesDirectly(freshDirectory(t), memoryAt(0, BLOCK));
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 2 ** 31 - 1 }),
      fc.integer({ min: 1, max: 3 * MIB }),
      fc.array(
        fc.oneof(
          fc.nat(3 * MIB),
          fc.nat(768).map((block) => block * BLOCK),
        ),
        { maxLength: 8 },
      ),
      fc.infiniteStream(
        fc.record({ key: fc.nat(), writers: fc.constantFrom([0], [1], [0, 1]), aligned: fc.boolean() }),
      ),
      async (seed, size, cuts, choices) => {
        const directory = freshDirectory(t);
        const file = new CutFile(seed, size, cuts);
        const writers = [DiskCache.open(directory), DiskCache.open(directory)];
        const plan = file.pieces.map((piece) => ({ piece, ...choices.next().value }));
        plan.sort((a, b) => a.key - b.key);
        const taken = plan.flatMap(({ piece, writers: which, aligned }) =>
          which.map((index: number) => file.insert(writers[index]!, piece, aligned)),
        );
        for (const isTaken of await Promise.all(taken)) assert.equal(isTaken, true);
        const isDirect = plan.some(
          ({ piece: { offset, length }, aligned }) =>
            aligned && blocksOf(memoryAt(offset % BLOCK, length), offset) !== undefined,
        );
        assert.equal(isWrittenDirectly(file.pathIn(directory)), isDirect && takesBlocks);
        const bytes = writers[0]!.status().bytes;
        for (const writer of writers) writer.close();
        assert.deepEqual(openFlags(file.pathIn(directory)), []);
        assert.ok(readFileSync(file.pathIn(directory)).equals(file.content));
        assert.ok(bytes >= bytesOnDisk(directory));
        // What the index says, and what one says that is built from the notes.
        for (const isRebuilt of [false, true]) {
          if (isRebuilt) rmSync(join(directory, "index.sqlite"));
          const reader = DiskCache.open(directory);
          const found = reader.piecesOf(file.hash).sort((a, b) => a.offset - b.offset);
          assert.deepEqual(found, file.pieces);
          for (const piece of file.pieces) assert.ok(reader.load(piece.blob)?.equals(file.bytesOf(piece)));
          reader.close();
        }
        rmSync(directory, { recursive: true });
      },
    ),
    { numRuns: 30 },
  );
});

test("blocks are all that lies between the first and the last whole one, where memory is aligned as they are", () => {
  for (const position of [0, 1, 4095, 4096, 10_000_000_001]) {
    for (const length of [MIB, MIB + 1, MIB - 1]) {
      const { start, end } = blocksOf(memoryAt(position % BLOCK, length), position)!;
      assert.equal((position + start) % BLOCK, 0);
      assert.equal((position + end) % BLOCK, 0);
      assert.ok(start >= 0 && start < BLOCK && end <= length && end > length - BLOCK);
      assert.equal(blocksOf(memoryAt((position + 1) % BLOCK, length), position), undefined);
    }
  }
  assert.equal(blocksOf(memoryAt(0, 64 * KIB), 0), undefined, "not worth it");
  assert.equal(blocksOf(memoryAt(1, 1), 1), undefined);
});

test("a file system without direct writes gets them through the page cache", async (t) => {
  const directory = bufferedDisk(t);
  if (directory === undefined) return;
  assert.equal(takesDirectly(directory, memoryAt(0, BLOCK)), false);
  const cache = DiskCache.open(directory, { sizeLimit: 100 * MIB });
  t.after(() => cache.close());
  const file = evenFile(1, 4);
  assert.deepEqual(await Promise.all(file.pieces.map((piece) => file.insert(cache, piece))), [true, true, true, true]);
  assert.equal(isWrittenDirectly(file.pathIn(directory)), false);
  assert.equal(cache.status().degraded, undefined);
  for (const piece of file.pieces) assert.ok(cache.load(piece.blob)?.equals(file.bytesOf(piece)));
});

test("a direct write that the file system refuses is the last one; other errors are errors", async (t) => {
  const directory = freshDirectory(t);
  const uneven = memoryAt(1, 1000);
  const all = { start: 0, end: uneven.length };
  const taken = takesDirectly(directory, uneven);
  const fd = openSync(join(directory, "file"), "w+");
  t.after(() => closeSync(fd));
  const writes = new DirectWrites();
  const direct = writes.open(fd);
  if (direct !== undefined) {
    assert.equal(await writes.write(direct, fd, uneven, all, 0), taken);
    closeSync(direct);
  }
  assert.equal(writes.on, taken);

  const full = openSync("/dev/full", "w");
  t.after(() => closeSync(full));
  const others = new DirectWrites();
  await assert.rejects(others.write(full, full, uneven, all, 0), { code: "ENOSPC" });
  assert.equal(others.on, true);
});

test("a disk that fills up: what was kept is right, and nothing else is noted", async (t) => {
  const directory = smallDisk(t, 8 * MIB);
  if (directory === undefined) return;
  const reasons: string[] = [];
  const cache = DiskCache.open(directory, { sizeLimit: 100 * MIB, onDegraded: (reason) => reasons.push(reason) });
  const file = evenFile(1, 24);
  const kept: boolean[] = [];
  for (const piece of file.pieces.slice(0, 8)) kept.push(await file.insert(cache, piece));
  assert.ok(kept.every((isKept) => isKept));
  kept.push(...(await Promise.all(file.pieces.slice(8).map((piece) => file.insert(cache, piece)))));
  assert.ok(kept.includes(false));
  assert.equal(reasons.length, 1);
  assert.match(reasons[0]!, /cache directory .* full/);
  const expected = file.pieces.filter((_, index) => kept[index]);
  const check = (opened: DiskCache): void => {
    assert.deepEqual(
      opened.piecesOf(file.hash).sort((a, b) => a.offset - b.offset),
      expected,
    );
    for (const piece of expected) assert.ok(opened.load(piece.blob)?.equals(file.bytesOf(piece)));
  };
  check(cache);
  cache.close();
  assert.deepEqual(openFlags(file.pathIn(directory)), []);
});

test("a container that is evicted while a piece is written to it: the piece is not kept, and not noted", async (t) => {
  const directory = freshDirectory(t);
  const [cache, other] = [DiskCache.open(directory), DiskCache.open(directory)];
  t.after(() => other.close());
  const file = evenFile(1, 4);
  const [first, second, third, fourth] = file.pieces as [Piece, Piece, Piece, Piece];
  assert.equal(await file.insert(cache, first), true);
  const late = file.insert(cache, second);
  other.clear();
  // The new container is there before the bytes of the last piece are in the old one.
  const next = file.insert(other, third);
  assert.deepEqual(await Promise.all([late, next]), [false, true]);
  assert.deepEqual(cache.piecesOf(file.hash), [third]);
  assert.equal(await file.insert(cache, fourth), true, "into the new container");
  cache.close();
  rmSync(join(directory, "index.sqlite"));
  const rebuilt = DiskCache.open(directory);
  t.after(() => rebuilt.close());
  assert.deepEqual(
    rebuilt.piecesOf(file.hash).sort((a, b) => a.offset - b.offset),
    [third, fourth],
  );
  for (const piece of [third, fourth]) assert.ok(rebuilt.load(piece.blob)?.equals(file.bytesOf(piece)));
  assert.ok(rebuilt.status().bytes >= bytesOnDisk(directory));
});

test("a container whose row is gone when its first piece is there is counted all the same", async (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  const file = evenFile(1, 2);
  const [piece] = file.pieces as [Piece];
  const late = file.insert(cache, piece);
  const database = new Database(realpathSync(join(directory, "index.sqlite")));
  database.exec("DELETE FROM container");
  database.close();
  assert.equal(await late, true);
  assert.deepEqual(cache.piecesOf(file.hash), [piece]);
  assert.ok(cache.status().bytes >= bytesOnDisk(directory));
});

test("a map that outlived its container says nothing of the next one", async (t) => {
  const directory = freshDirectory(t);
  const file = evenFile(1, 2);
  const [first, second] = file.pieces as [Piece, Piece];
  const before = DiskCache.open(directory);
  assert.equal(await file.insert(before, first), true);
  rmSync(file.pathIn(directory));
  assert.equal(await file.insert(before, second), true);
  before.close();
  rmSync(join(directory, "index.sqlite"));
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  assert.deepEqual(cache.piecesOf(file.hash), [second]);
});

test("descriptors of containers are closed when they are not needed", async (t) => {
  t.mock.timers.enable({ apis: ["Date"], now: Date.now() });
  const directory = freshDirectory(t);
  const [cache, other] = [DiskCache.open(directory), DiskCache.open(directory)];
  for (const opened of [cache, other]) t.after(() => opened.close());
  const maintain = (): void => {
    t.mock.timers.tick(6000);
    cache.locate(hashOf(Buffer.from("nothing")));
  };
  const file = evenFile(1, 3);
  const path = file.pathIn(directory);
  const [first, second, third] = file.pieces as [Piece, Piece, Piece];
  assert.equal(await file.insert(cache, first), true);
  assert.ok(openFlags(path).length > 0);
  maintain();
  assert.ok(openFlags(path).length > 0, "it was just used");
  maintain();
  assert.deepEqual(openFlags(path), []);
  assert.equal(await file.insert(cache, second), true);
  other.clear();
  maintain();
  assert.deepEqual(openFlags(path), [], "it was removed");
  const files = Array.from({ length: 20 }, (_, seed) => evenFile(seed + 2, 1));
  for (const each of files) assert.equal(await each.insert(cache, each.pieces[0]!), true);
  assert.ok(files.filter((each) => openFlags(each.pathIn(directory)).length > 0).length <= 16);
  const late = file.insert(cache, third);
  cache.close();
  assert.equal(await late, false);
  for (const each of [file, ...files]) assert.deepEqual(openFlags(each.pathIn(directory)), []);
});

test("a container that is idle is closed alone", async (t) => {
  t.mock.timers.enable({ apis: ["Date"], now: Date.now() });
  const cache = DiskCache.open(freshDirectory(t));
  t.after(() => cache.close());
  const maintain = (): void => {
    t.mock.timers.tick(6000);
    cache.locate(hashOf(Buffer.from("nothing")));
  };
  const files = [1, 2, 3].map((seed) => evenFile(seed, 3));
  const insert = async (index: number, piece: number): Promise<void> => {
    assert.equal(await files[index]!.insert(cache, files[index]!.pieces[piece]!), true);
  };
  for (const piece of [0, 1]) for (const index of files.keys()) await insert(index, piece);
  maintain();
  for (const index of [1, 2]) await insert(index, 2);
  maintain();
  const isOpen = files.map((file) => openFlags(file.pathIn(cache.directory)).length > 0);
  assert.deepEqual(isOpen, [false, true, true]);
});

/** How many MiB are written, in writes of 2 MiB of which several begin at a time, until they are found to be slow. */
function slowAfter(atOnce: number, milliseconds: (write: number) => number): number {
  const rate = new DirectRate();
  let now = 1000;
  for (let count = 0; count < 2000 && !rate.isSlow; ) {
    for (let index = 0; index < atOnce; index++) rate.begin(now);
    for (let index = 0; index < atOnce; index++) {
      now += milliseconds(count++);
      rate.end(2 * MIB, now);
    }
    if (rate.isSlow) return count * 2;
  }
  return Number.POSITIVE_INFINITY;
}

test("direct writes are given up where no 8 MiB of 128 MiB come at 500 MiB/s", () => {
  const never = Number.POSITIVE_INFINITY;
  assert.equal(
    slowAfter(5, () => 3.9),
    never,
    "513 MiB/s",
  );
  // The last one of five is alone, and not counted.
  assert.equal(
    slowAfter(5, () => 4.1),
    160,
    "488 MiB/s",
  );
  assert.equal(
    slowAfter(1, () => 20),
    never,
    "one at a time keeps up with what comes",
  );
  assert.equal(
    slowAfter(5, (write) => (write % 70 < 5 ? 1 : 100)),
    never,
    "now and then it is fast",
  );
  assert.equal(
    slowAfter(5, (write) => (write < 1000 ? 1 : 100)),
    2160,
    "its burst is over",
  );
});

test("what is slow remains so, and writes that failed tell nothing", () => {
  const rate = new DirectRate();
  for (let index = 0; index < 200; index++) rate.begin(0);
  for (let index = 0; index < 63; index++) rate.end(2 * MIB, index * 10);
  assert.equal(rate.isSlow, false, "too little to tell");
  rate.end(2 * MIB, 1000);
  assert.equal(rate.isSlow, true);
  for (let index = 0; index < 100; index++) rate.end(2 * MIB, 1000);
  assert.equal(rate.isSlow, true);

  const failing = new DirectRate();
  for (let index = 0; index < 200; index++) failing.begin(0);
  for (let index = 0; index < 199; index++) failing.end(0, index * 10);
  assert.equal(failing.isSlow, false);
});
