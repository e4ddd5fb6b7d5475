import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, type TestContext, test } from "node:test";
import { DiskCache, Fetcher } from "../../src/cache/index.ts";
import { BlobStore, type Hash, openStore, setFault } from "../../src/cas/index.ts";
import {
  bytesOf,
  bytesOnDisk,
  containerPath,
  freshDirectory,
  insertPiece,
  KIB,
  largeFile,
  MIB,
  sample,
  smallDisk,
} from "./support.ts";

afterEach(() => setFault(undefined));

async function storeWith(t: TestContext, count: number, size: number): Promise<{ blobs: BlobStore; hashes: Hash[] }> {
  const blobs = new BlobStore(await openStore(`file://${freshDirectory(t)}`));
  const hashes: Hash[] = [];
  for (let seed = 0; seed < count; seed++) {
    const { hash, content } = sample(seed, size);
    await blobs.put(hash, content);
    hashes.push(hash);
  }
  return { blobs, hashes };
}

test("a full disk: reads stay right, what is cached stays, and the cache says so once", async (t) => {
  const directory = smallDisk(t, 8 * MIB);
  if (directory === undefined) return;
  const { blobs, hashes } = await storeWith(t, 30, 512 * KIB);
  const reasons: string[] = [];
  const cache = DiskCache.open(directory, { sizeLimit: 1000 * MIB, onDegraded: (reason) => reasons.push(reason) });
  t.after(() => cache.close());
  const fetcher = new Fetcher(blobs, cache, { memoryLimit: 0 });
  for (let round = 0; round < 2; round++) {
    for (const [seed, hash] of hashes.entries()) {
      assert.ok((await fetcher.fetch(hash)).equals(sample(seed, 512 * KIB).content));
      await fetcher.settled();
    }
  }
  assert.equal(reasons.length, 1);
  assert.match(reasons[0] ?? "", /cache directory .* full/);
  assert.equal(cache.status().degraded, reasons[0]);
  assert.ok(fetcher.stats.diskHits >= 10, "what fitted is served");
  assert.ok(fetcher.stats.diskHits < 30);
  assert.ok(bytesOnDisk(directory) <= 8 * MIB);
  assert.deepEqual(readdirSync(join(directory, "tmp")), [], "no half-written file stays");
});

test("many inserts at once into a disk that fills up leave nothing half done", async (t) => {
  const directory = smallDisk(t, 8 * MIB);
  if (directory === undefined) return;
  const cache = DiskCache.open(directory, { sizeLimit: 1000 * MIB });
  t.after(() => cache.close());
  const samples = Array.from({ length: 40 }, (_, seed) => sample(seed, 512 * KIB));
  const kept = await Promise.all(samples.map(({ hash, content }) => cache.insertAsync(hash, content)));
  assert.ok(kept.includes(false));
  for (const { hash, content } of samples) {
    const found = cache.load(hash);
    if (found !== undefined) assert.ok(found.equals(content));
  }
  assert.deepEqual(readdirSync(join(directory, "tmp")), []);
  assert.equal(cache.status().bytes, bytesOnDisk(directory));
});

test("a disk that is full from the start: reads stay right", async (t) => {
  const directory = smallDisk(t, MIB);
  if (directory === undefined) return;
  try {
    writeFileSync(join(directory, "filler"), Buffer.alloc(2 * MIB));
  } catch {
    // The disk is full, as it is to be.
  }
  const { blobs, hashes } = await storeWith(t, 3, 10_000);
  const reasons: string[] = [];
  const cache = DiskCache.open(directory, { onDegraded: (reason) => reasons.push(reason) });
  t.after(() => cache.close());
  const fetcher = new Fetcher(blobs, cache);
  for (const [seed, hash] of hashes.entries())
    assert.ok((await fetcher.fetch(hash)).equals(sample(seed, 10_000).content));
  assert.equal(reasons.length, 1);
  assert.equal(cache.status().containers, 0);
});

test("a cache directory that is mounted read-only serves what it holds, and never wrong bytes", async (t) => {
  const directory = smallDisk(t, 32 * MIB);
  if (directory === undefined) return;
  const { blobs, hashes } = await storeWith(t, 10, 100_000);
  const [kept, damaged] = [hashes.slice(0, 6), hashes[5]!];
  const before = DiskCache.open(directory);
  for (const [seed, hash] of kept.entries()) before.insert(hash, sample(seed, 100_000).content);
  const file = largeFile(50);
  for (const index of file.layout.pieces.keys()) insertPiece(before, file, index);
  before.close();
  writeFileSync(containerPath(directory, damaged), "wrong", { flag: "r+" });
  execFileSync("mount", ["-o", "remount,ro", directory]);

  const reasons: string[] = [];
  const cache = DiskCache.open(directory, { onDegraded: (reason) => reasons.push(reason) });
  t.after(() => cache.close());
  const fetcher = new Fetcher(blobs, cache, { memoryLimit: 0 });
  for (let round = 0; round < 2; round++)
    for (const [seed, hash] of hashes.entries())
      assert.ok((await fetcher.fetch(hash)).equals(sample(seed, 100_000).content));
  assert.equal(fetcher.stats.diskHits, 10);
  assert.equal(fetcher.stats.storeHits, 10);
  assert.equal(reasons.length, 1);
  assert.equal(cache.status().containers, 7);
  for (const [index, { blob }] of file.layout.pieces.entries())
    assert.ok(cache.load(blob)?.equals(bytesOf(file, index)));
  assert.throws(() => cache.clear(), { code: "denied" });
});

test("after a failed write nothing is tried for 30 seconds, then all is well again", (t) => {
  t.mock.timers.enable({ apis: ["Date"], now: Date.now() });
  const reasons: string[] = [];
  const cache = DiskCache.open(freshDirectory(t), { onDegraded: (reason) => reasons.push(reason) });
  t.after(() => cache.close());
  const [one, two] = [sample(1, 1000), sample(2, 1000)];
  setFault("cache.written:1:nospace");
  assert.equal(cache.insert(one.hash, one.content), false);
  assert.equal(cache.status().bytes, 0, "the reservation is taken back");
  setFault(undefined);
  t.mock.timers.tick(29_000);
  assert.equal(cache.insert(two.hash, two.content), false);
  assert.ok(cache.status().degraded);
  t.mock.timers.tick(2000);
  assert.equal(cache.insert(two.hash, two.content), true);
  assert.equal(cache.status().degraded, undefined);
  assert.ok(cache.load(two.hash)?.equals(two.content));
  setFault("cache.renamed:1:error");
  assert.equal(cache.insert(one.hash, one.content), false);
  assert.equal(reasons.length, 2, "told once each time");
});

test("a directory in the place of the index: what is there is served", (t) => {
  const directory = freshDirectory(t);
  const before = DiskCache.open(directory);
  const { hash, content } = sample(1, 1000);
  before.insert(hash, content);
  before.close();
  rmSync(join(directory, "index.sqlite"));
  mkdirSync(join(directory, "index.sqlite"));
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  assert.ok(cache.load(hash)?.equals(content));
  assert.ok(cache.status().degraded);
});
