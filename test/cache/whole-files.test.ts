import assert from "node:assert/strict";
import { closeSync, existsSync, fstatSync, readdirSync, readSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { DiskCache, Fetcher } from "../../src/cache/index.ts";
import { BlobStore, openStore } from "../../src/cas/index.ts";
import {
  bytesOf,
  bytesOnDisk,
  containerPath,
  containersIn,
  freshDirectory,
  homeOf,
  insertPiece,
  KIB,
  type LargeFile,
  largeFile,
  MIB,
  sample,
  startChild,
} from "./support.ts";

/** The content of the whole container of a file, undefined where there is none. */
function readWhole(cache: DiskCache, file: LargeFile): Buffer | undefined {
  const fd = cache.openWhole(file.layout.file);
  if (fd === undefined) return undefined;
  try {
    const content = Buffer.alloc(fstatSync(fd).size);
    readSync(fd, content, 0, content.length, 0);
    return content;
  } finally {
    closeSync(fd);
  }
}

function containerOf(directory: string, file: LargeFile): string {
  return `${containerPath(directory, file.layout.file)}.file`;
}

async function setUp(
  t: TestContext,
  files: LargeFile[],
): Promise<{ fetcher: Fetcher; cache: DiskCache; directory: string }> {
  const blobs = new BlobStore(await openStore(`file://${freshDirectory(t)}`));
  for (const file of files) {
    for (const [index, { blob }] of file.layout.pieces.entries()) await blobs.put(blob, bytesOf(file, index));
  }
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory, { sizeLimit: 100 * MIB });
  t.after(() => cache.close());
  return { fetcher: new Fetcher(blobs, cache), cache, directory };
}

/** Reads a file through the fetcher as a mount does. */
async function readAll(fetcher: Fetcher, file: LargeFile): Promise<void> {
  for (const [index, { blob, length }] of file.layout.pieces.entries()) {
    const target = Buffer.alloc(length);
    await fetcher.read([{ kind: "blob", blob, offset: 0, length, home: homeOf(file, index) }], target);
    assert.ok(target.equals(bytesOf(file, index)));
  }
  await fetcher.settled();
}

test("the blobs of a large file come into one container, at their places, and nowhere else", (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  const file = largeFile(1);
  for (const index of [3, 0, 1]) assert.equal(insertPiece(cache, file, index), true);
  assert.equal(insertPiece(cache, file, 1), true, "again");
  assert.deepEqual(
    containersIn(directory).filter((name) => !name.endsWith(".map")),
    [`${file.layout.file}.file`],
  );
  for (const index of [0, 1, 3]) {
    assert.ok(cache.has(file.layout.pieces[index]!.blob));
    assert.ok(cache.load(file.layout.pieces[index]!.blob)?.equals(bytesOf(file, index)));
  }
  assert.equal(cache.load(file.layout.pieces[2]!.blob), undefined);
  assert.equal(cache.openWhole(file.layout.file), undefined);
  assert.equal(fstatSync(cache.locate(file.layout.pieces[0]!.blob)!.fd).size, file.layout.size);
  assert.ok(cache.status().bytes >= bytesOnDisk(directory), "counted for no less than it takes");
  assert.ok(cache.status().bytes <= 4 * 300_001 + 8 * 4096, "holes are not counted");
  assert.equal(cache.status().containers, 1);
});

test("an index that is built anew knows the blobs of large files", (t) => {
  const directory = freshDirectory(t);
  const file = largeFile(1);
  const before = DiskCache.open(directory);
  for (const index of [0, 1, 3]) insertPiece(before, file, index);
  before.close();
  // A writer that was killed in the middle of a note.
  writeFileSync(containerOf(directory, file).replace(/file$/, "map"), Buffer.alloc(17, 7), { flag: "a" });
  const between = DiskCache.open(directory);
  insertPiece(between, file, 2);
  between.close();
  rmSync(join(directory, "index.sqlite"));
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  for (const index of [0, 1, 2, 3]) {
    assert.ok(cache.load(file.layout.pieces[index]!.blob)?.equals(bytesOf(file, index)), `piece ${index}`);
  }
  assert.ok(cache.status().bytes >= bytesOnDisk(directory));
});

test("a file that was read is whole, verified, and known to be so by others", async (t) => {
  const file = largeFile(1);
  const { fetcher, cache, directory } = await setUp(t, [file]);
  fetcher.files?.want(file.layout);
  assert.ok(readWhole(cache, file) === undefined);
  await readAll(fetcher, file);
  assert.ok(readWhole(cache, file)?.equals(file.content));
  assert.equal(fetcher.stats.fetches, 4, "the blob that is in it twice was fetched once");
  const other = DiskCache.open(directory);
  t.after(() => other.close());
  assert.ok(readWhole(other, file)?.equals(file.content));
  assert.ok(other.status().bytes >= bytesOnDisk(directory));
  // Without its index nothing is known to be verified; it is, once it is wanted.
  other.close();
  cache.close();
  rmSync(join(directory, "index.sqlite"));
  const again = DiskCache.open(directory);
  t.after(() => again.close());
  assert.ok(readWhole(again, file) === undefined);
  const later = new Fetcher(new BlobStore(await openStore(`file://${freshDirectory(t)}`)), again);
  later.files?.want(file.layout);
  await later.settled();
  assert.ok(readWhole(again, file)?.equals(file.content));
});

test("blobs that came to containers of their own, or to another file, are brought together", async (t) => {
  const file = largeFile(1);
  const sibling = largeFile(2);
  const { fetcher, cache, directory } = await setUp(t, [file, sibling]);
  const [first] = file.layout.pieces;
  cache.insert(first!.blob, bytesOf(file, 0));
  await readAll(fetcher, sibling);
  await readAll(fetcher, file);
  assert.ok(readWhole(cache, file) === undefined);
  fetcher.files?.want(file.layout);
  await fetcher.settled();
  assert.ok(readWhole(cache, file)?.equals(file.content));
  assert.equal(existsSync(containerPath(directory, first!.blob)), false, "no second copy stays");
  fetcher.files?.want(sibling.layout);
  await fetcher.settled();
  assert.ok(readWhole(cache, sibling)?.equals(sibling.content));
});

const damages: Record<string, (path: string) => void> = {
  "changed in one place": (path) => writeFileSync(path, "x", { flag: "r+" }),
  "cut short": (path) => truncateSync(path, 1000),
  removed: (path) => rmSync(path),
  "written to in its hole": (path) => {
    const bytes = Buffer.alloc(2 * 300_001 + 10, 1);
    largeFile(1).content.copy(bytes, 0, 0, 2 * 300_001);
    writeFileSync(path, bytes, { flag: "r+" });
  },
};

for (const [name, damage] of Object.entries(damages)) {
  test(`the container of a large file that is ${name} is not handed out, and no wrong byte is served`, async (t) => {
    const file = largeFile(1);
    const { fetcher, cache, directory } = await setUp(t, [file]);
    fetcher.files?.want(file.layout);
    await readAll(fetcher, file);
    assert.ok(readWhole(cache, file));
    damage(containerOf(directory, file));
    assert.ok(readWhole(cache, file) === undefined);
    for (const [index, { blob }] of file.layout.pieces.entries()) {
      const found = cache.load(blob);
      if (found !== undefined) assert.ok(found.equals(bytesOf(file, index)));
    }
    fetcher.files?.want(file.layout);
    await fetcher.settled();
    const again = readWhole(cache, file);
    // A blob that is in the file twice is mended from its other place; anything else is missing.
    assert.equal(again?.equals(file.content), name === "changed in one place" ? true : undefined);
  });
}

test("a large file whose blob was damaged is healed by reading it", async (t) => {
  const file = largeFile(1);
  const { fetcher: first, directory, cache } = await setUp(t, [file]);
  await readAll(first, file);
  writeFileSync(containerOf(directory, file), "x", { flag: "r+" });
  assert.equal(cache.load(file.layout.pieces[0]!.blob), undefined);
  assert.ok(cache.load(file.layout.pieces[1]!.blob), "the others stay");
  assert.equal(insertPiece(cache, file, 0), true);
  first.files?.want(file.layout);
  await first.settled();
  assert.ok(readWhole(cache, file)?.equals(file.content));
});

test("a large file is evicted as one, and one that is too large for the cache is not assembled", (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory, { sizeLimit: 5 * MIB });
  t.after(() => cache.close());
  const file = largeFile(1);
  for (const index of [0, 1, 2, 3]) insertPiece(cache, file, index);
  for (let seed = 100; seed < 120; seed++) {
    const { hash, content } = sample(seed, 256 * KIB);
    cache.insert(hash, content);
  }
  assert.ok(cache.status().bytes <= 5 * MIB);
  assert.equal(existsSync(containerOf(directory, file)), false);
  assert.equal(existsSync(containerOf(directory, file).replace(/file$/, "map")), false);
  for (const { blob } of file.layout.pieces) assert.equal(cache.has(blob), false);
  const large = largeFile(50, 12);
  insertPiece(cache, large, 0);
  assert.ok(existsSync(containerPath(directory, large.layout.pieces[0]!.blob)));
  assert.equal(existsSync(containerOf(directory, large)), false);
});

for (const point of ["reserved", "written"]) {
  test(`a process killed while it adds to a large file, after ${point}, leaves a file that goes on`, async (t) => {
    const directory = freshDirectory(t);
    const file = largeFile(1);
    const child = await startChild(t, directory, 100 * MIB, `cache.${point}:3:kill`);
    assert.equal(await child.ask({ do: "assemble", from: 1, count: 5, size: 300_001 }), undefined);
    assert.equal(await child.ended, "SIGKILL");
    const cache = DiskCache.open(directory, { sizeLimit: 100 * MIB });
    t.after(() => cache.close());
    for (const [index, { blob }] of file.layout.pieces.entries()) {
      const found = cache.load(blob);
      if (found !== undefined) assert.ok(found.equals(bytesOf(file, index)));
      assert.equal(found !== undefined || insertPiece(cache, file, index), true);
    }
    assert.ok(cache.status().bytes >= bytesOnDisk(directory));
    const blobs = new BlobStore(await openStore(`file://${freshDirectory(t)}`));
    const fetcher = new Fetcher(blobs, cache);
    fetcher.files?.want(file.layout);
    await fetcher.settled();
    assert.ok(readWhole(cache, file)?.equals(file.content));
    assert.deepEqual(readdirSync(join(directory, "tmp")), []);
  });
}

test("several processes assemble one file", async (t) => {
  const directory = freshDirectory(t);
  const children = await Promise.all([1, 2, 3].map(() => startChild(t, directory, 100 * MIB)));
  const request = { do: "assemble", from: 1, count: 40, size: 300_001 } as const;
  assert.deepEqual(await Promise.all(children.map((child) => child.ask(request))), [39, 39, 39]);
  await Promise.all(children.map((child) => child.ask({ do: "end" })));
  const cache = DiskCache.open(directory, { sizeLimit: 100 * MIB });
  t.after(() => cache.close());
  const file = largeFile(1, 40);
  const fetcher = new Fetcher(new BlobStore(await openStore(`file://${freshDirectory(t)}`)), cache);
  fetcher.files?.want(file.layout);
  await fetcher.settled();
  assert.ok(readWhole(cache, file)?.equals(file.content));
  assert.ok(cache.status().bytes >= bytesOnDisk(directory));
});
