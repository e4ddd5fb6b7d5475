import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { DiskCache, Fetcher, type Outlook, Readahead, type Upcoming } from "../../src/cache/index.ts";
import { BlobStore, openStore } from "../../src/cas/index.ts";
import { freshDirectory, sample } from "./support.ts";

/** Blobs of a tree in path order: three large files of 30, 3 and 3 blobs, then 40 blobs of small files. */
const FILES = [
  { ino: 10, blobs: 30, large: true },
  { ino: 11, blobs: 3, large: true },
  { ino: 12, blobs: 3, large: true },
  ...Array.from({ length: 40 }, (_, index) => ({ ino: 100 + index, blobs: 1, large: false })),
];
const SIZE = 1000;

interface Place extends Upcoming {
  readonly offset: number;
}

const TREE: Place[] = [];
for (const { ino, blobs, large } of FILES) {
  for (let index = 0; index < blobs; index++) {
    TREE.push({ ino, large, offset: index * SIZE, blob: sample(TREE.length, SIZE).hash });
  }
}
const SMALL = 36;

const outlook: Outlook = {
  from(ino, offset) {
    const start = TREE.findIndex(
      (place) => place.ino === ino && offset < place.offset + SIZE && offset >= place.offset,
    );
    return TREE.slice(start).values();
  },
  layout: () => undefined,
};

class Bench {
  readonly fetcher: Fetcher;
  readonly readahead: Readahead;

  constructor(fetcher: Fetcher) {
    this.fetcher = fetcher;
    this.readahead = new Readahead(fetcher, outlook);
  }

  static async open(t: TestContext): Promise<Bench> {
    const blobs = new BlobStore(await openStore(`file://${freshDirectory(t)}`));
    for (let seed = 0; seed < TREE.length; seed++) await blobs.put(TREE[seed]!.blob, sample(seed, SIZE).content);
    const cache = DiskCache.open(freshDirectory(t));
    t.after(() => cache.close());
    return new Bench(new Fetcher(blobs, cache));
  }

  /** A reader comes to the blob with this number; resolves to how many blobs were fetched for it and ahead of it. */
  async read(number: number): Promise<number> {
    const before = this.fetcher.stats.fetches;
    const { ino, offset, blob } = TREE[number]!;
    await this.fetcher.fetch(blob);
    this.readahead.reached(ino, offset, blob);
    await this.fetcher.settled();
    return this.fetcher.stats.fetches - before;
  }
}

test("a sequential reader of a large file is served from what was fetched ahead, ever more of it", async (t) => {
  const bench = await Bench.open(t);
  const fetched: number[] = [];
  for (let number = 0; number < 30; number++) fetched.push(await bench.read(number));
  assert.deepEqual(fetched.slice(0, 3), [1, 2, 2], "the first blob is no reason to fetch others");
  assert.equal(
    fetched.reduce((sum, count) => sum + count),
    30,
    "nothing beyond the end of the file",
  );
  const { storeHits, prefetches } = bench.fetcher.stats;
  assert.equal(storeHits, 2);
  assert.equal(prefetches, 28);
});

test("a reader that jumps has nothing fetched ahead", async (t) => {
  const bench = await Bench.open(t);
  for (const number of [17, 3, 25, 9, 21, 0, 13, 28, 5]) assert.equal(await bench.read(number), 1);
  assert.equal(bench.fetcher.stats.prefetches, 0);
});

test("a reader that jumps after having read in order is not followed, and is once it goes on", async (t) => {
  const bench = await Bench.open(t);
  for (const number of [0, 1, 2, 3]) await bench.read(number);
  const { prefetches } = bench.fetcher.stats;
  assert.equal(await bench.read(25), 1);
  assert.equal(bench.fetcher.stats.prefetches, prefetches);
  assert.equal(await bench.read(26), 2);
});

test("readers side by side, and requests out of order, do not disturb each other", async (t) => {
  const bench = await Bench.open(t);
  for (const number of [0, 15, 1, 16, 0, 17, 2, 16, 3, 18, 4, 19, 5, 20, 6, 21, 7, 22]) await bench.read(number);
  assert.equal(bench.fetcher.stats.storeHits, 4, "each waited for its first two blobs only");
});

test("who reads small files in path order has the blobs of the next ones fetched", async (t) => {
  const bench = await Bench.open(t);
  for (let number = SMALL; number < TREE.length; number++) await bench.read(number);
  assert.equal(bench.fetcher.stats.storeHits, 2);
  assert.equal(bench.fetcher.stats.fetches, 40);
});

test("who reads one file after the other has the next one fetched, and the small files after them", async (t) => {
  const bench = await Bench.open(t);
  for (let number = 0; number < TREE.length; number++) await bench.read(number);
  // The first two blobs, and the first of the second file: from there on it is known that all is read.
  assert.equal(bench.fetcher.stats.storeHits, 3);
});
