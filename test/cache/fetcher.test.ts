import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { closeSync, openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import fc from "fast-check";
import { DiskCache, Fetcher, readLocal, type Segment } from "../../src/cache/index.ts";
import {
  BlobStore,
  type ByteRange,
  blobKey,
  type DatamonError,
  type Hash,
  hashOf,
  type ObjectBody,
  type ObjectInfo,
  type ObjectStore,
  openStore,
} from "../../src/cas/index.ts";
import { containerPath, freshDirectory, MIB, sample } from "./support.ts";

/** A store whose gets are counted, and held back while its gate is closed. */
class WatchedStore implements ObjectStore {
  readonly gets: string[] = [];
  readonly #store: ObjectStore;
  #gate: PromiseWithResolvers<void> | undefined;

  constructor(store: ObjectStore) {
    this.#store = store;
  }

  get url(): string {
    return this.#store.url;
  }

  async get(key: string, range?: ByteRange): Promise<Buffer> {
    this.gets.push(key);
    await this.#gate?.promise;
    return this.#store.get(key, range);
  }

  put(key: string, body: ObjectBody, options?: { ifAbsent?: boolean }): Promise<boolean> {
    return this.#store.put(key, body, options);
  }

  head(key: string): Promise<ObjectInfo | undefined> {
    return this.#store.head(key);
  }

  list(prefix: string, options?: { after?: string; limit?: number }): Promise<ObjectInfo[]> {
    return this.#store.list(prefix, options);
  }

  delete(key: string): Promise<void> {
    return this.#store.delete(key);
  }

  closeGate(): void {
    this.#gate = Promise.withResolvers();
  }

  openGate(): void {
    this.#gate?.resolve();
    this.#gate = undefined;
  }
}

interface Bench {
  store: WatchedStore;
  blobs: BlobStore;
  cache: DiskCache;
  directory: string;
  hashes: Hash[];
  contents: Buffer[];
}

/** A store of `count` blobs of `size` bytes and an empty cache. */
function ahead(hashes: string[]): { blob: string }[] {
  return hashes.map((blob) => ({ blob }));
}

async function setUp(t: TestContext, count: number, size: number): Promise<Bench> {
  const store = new WatchedStore(await openStore(`file://${freshDirectory(t)}`));
  const blobs = new BlobStore(store);
  const samples = Array.from({ length: count }, (_, seed) => sample(seed, size));
  for (const { hash, content } of samples) await blobs.put(hash, content);
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  const [hashes, contents] = [samples.map(({ hash }) => hash), samples.map(({ content }) => content)];
  return { store, blobs, cache, directory, hashes, contents };
}

test("a blob that many ask for at once is fetched once, and then comes from memory and disk", async (t) => {
  const { store, blobs, cache, hashes, contents } = await setUp(t, 1, 100_000);
  const [hash = "", content] = [hashes[0], contents[0]!];
  const fetcher = new Fetcher(blobs, cache);
  const answers = await Promise.all(Array.from({ length: 20 }, () => fetcher.fetch(hash)));
  for (const answer of answers) assert.ok(answer.equals(content));
  assert.ok((await fetcher.fetch(hash)).equals(content));
  await fetcher.settled();
  assert.equal(store.gets.length, 1);
  assert.deepEqual(
    { ...fetcher.stats },
    { memoryHits: 1, diskHits: 0, storeHits: 20, fetches: 1, prefetches: 0, failures: 0, bytesFetched: 100_000 },
  );
  const other = new Fetcher(blobs, cache);
  assert.ok((await other.fetch(hash)).equals(content));
  assert.equal(other.stats.diskHits, 1);
  assert.equal(store.gets.length, 1);
});

test("memory keeps no more than its limit", async (t) => {
  const { store, blobs, hashes } = await setUp(t, 4, 100_000);
  const fetcher = new Fetcher(blobs, undefined, { memoryLimit: 250_000 });
  for (const hash of hashes) await fetcher.fetch(hash);
  for (const hash of hashes.slice(2)) await fetcher.fetch(hash);
  assert.equal(store.gets.length, 4);
  await fetcher.fetch(hashes[0]!);
  assert.equal(store.gets.length, 5);
});

test("a failed fetch goes to all that wait and is not remembered", async (t) => {
  const { store, blobs, cache } = await setUp(t, 0, 0);
  const { hash, content } = sample(1, 1000);
  const fetcher = new Fetcher(blobs, cache);
  const outcomes = await Promise.allSettled([fetcher.fetch(hash), fetcher.fetch(hash)]);
  for (const outcome of outcomes) {
    assert.equal(outcome.status, "rejected");
    assert.equal((outcome.reason as DatamonError).code, "not-found");
  }
  assert.equal(store.gets.length, 1);
  await blobs.put(hash, content);
  assert.ok((await fetcher.fetch(hash)).equals(content));
});

/** A blob of small files, all of the same size, as a catalog has them. */
function groupOf(files: readonly Buffer[]): { group: Buffer; segments: (Segment & { kind: "blob" })[] } {
  const group = Buffer.concat(files);
  const blob = hashOf(group);
  const segments = files.map((content, index) => {
    const [offset, length] = [index * content.length, content.length];
    return { kind: "blob", blob, offset, length, slice: { file: hashOf(content), offset, length } } as const;
  });
  return { group, segments };
}

test("small files here and there are fetched alone, once each, and kept; many of a blob bring all of it", async (t) => {
  const { store, blobs, cache } = await setUp(t, 0, 0);
  const files = Array.from({ length: 20 }, () => randomBytes(5000));
  const { group, segments } = groupOf(files);
  await blobs.put(segments[0]!.blob, group);
  const fetcher = new Fetcher(blobs, cache);
  const read = async (index: number, by = fetcher): Promise<void> => {
    const target = Buffer.alloc(3000);
    const { offset } = segments[index]!;
    await by.read([{ ...segments[index]!, offset: offset + 1000, length: 3000 }], target);
    assert.ok(target.equals(files[index]!.subarray(1000, 4000)));
  };
  await Promise.all([read(12), read(12), read(12)]);
  assert.equal(store.gets.length, 1);
  await read(3);
  assert.equal(fetcher.stats.bytesFetched, 10_000);
  await fetcher.settled();
  const other = new Fetcher(blobs, cache);
  for (const index of [3, 12]) await read(index, other);
  assert.equal(store.gets.length, 2, "they are in the cache");
  for (const index of [7, 16]) await read(index);
  assert.equal(fetcher.stats.bytesFetched, 20_000);
  await read(0);
  assert.equal(fetcher.stats.bytesFetched, 20_000 + group.length, "the fifth brings all");
  for (const index of segments.keys()) await read(index);
  assert.equal(store.gets.length, 5);
});

test("who goes on from one small file to the next has the whole blob fetched", async (t) => {
  const { store, blobs } = await setUp(t, 0, 0);
  const { group, segments } = groupOf(Array.from({ length: 20 }, () => randomBytes(5000)));
  await blobs.put(segments[0]!.blob, group);
  const fetcher = new Fetcher(blobs, undefined);
  for (const index of [4, 5, 6, 7]) await fetcher.read([segments[index]!], Buffer.alloc(5000));
  assert.equal(store.gets.length, 2);
});

test("small files in blobs that are compressed come right, and no more slices of such are tried", async (t) => {
  const { store, blobs } = await setUp(t, 0, 0);
  const fetcher = new Fetcher(blobs, undefined);
  for (let blob = 0; blob < 6; blob++) {
    const files = Array.from({ length: 20 }, (_, index) => Buffer.alloc(5000, `file ${blob} ${index} `));
    const { group, segments } = groupOf(files);
    await blobs.put(segments[0]!.blob, group);
    const target = Buffer.alloc(5000);
    await fetcher.read([segments[9]!], target);
    assert.ok(target.equals(files[9]!));
  }
  assert.equal(store.gets.length, 6 + 2);
});

test("two who read a small file at once get it, though it is all of a blob that is compressed", async (t) => {
  const { store, blobs } = await setUp(t, 0, 0);
  const content = Buffer.alloc(5000, "all alone ");
  const { segments } = groupOf([content]);
  await blobs.put(segments[0]!.blob, content);
  const fetcher = new Fetcher(blobs, undefined);
  store.closeGate();
  const targets = [Buffer.alloc(5000), Buffer.alloc(5000)];
  const reads = targets.map((target) => fetcher.read(segments, target));
  store.openGate();
  await Promise.all(reads);
  for (const target of targets) assert.ok(target.equals(content));
  assert.equal(store.gets.length, 2);
});

test("more memory than any machine has may be allowed", async (t) => {
  const { blobs, hashes, contents } = await setUp(t, 1, 100_000);
  const fetcher = new Fetcher(blobs, undefined, { memoryLimit: 2 ** 45 });
  assert.ok(fetcher.shared.memory.byteLength <= 2 ** 31 + 4096, "places are told in 32 bits");
  assert.ok((await fetcher.fetch(hashes[0]!)).equals(contents[0]!));
});

test("a slice that is damaged in the store is not served", async (t) => {
  const { store, blobs, cache } = await setUp(t, 0, 0);
  const { group, segments } = groupOf(Array.from({ length: 20 }, () => randomBytes(5000)));
  const [, second] = segments;
  await blobs.put(second!.blob, group);
  const frame = await store.get(blobKey(second!.blob));
  frame[8 + 5000 + 77]! ^= 1;
  await store.put(blobKey(second!.blob), frame);
  const fetcher = new Fetcher(blobs, cache);
  await assert.rejects(fetcher.read([second!], Buffer.alloc(5000)), { code: "damaged" });
  assert.equal(cache.has(second!.slice!.file), false);
});

test("a blob that is damaged in the store is neither served nor kept", async (t) => {
  const { store, blobs, cache, hashes } = await setUp(t, 1, 1000);
  const hash = hashes[0]!;
  const frame = await store.get(blobKey(hash));
  frame[frame.length - 1]! ^= 1;
  await store.put(blobKey(hash), frame);
  const fetcher = new Fetcher(blobs, cache);
  await assert.rejects(fetcher.fetch(hash), { code: "damaged" });
  assert.equal(cache.has(hash), false);
});

test("a container that is damaged on disk is fetched again and healed", async (t) => {
  const { store, blobs, cache, directory, hashes, contents } = await setUp(t, 1, 100_000);
  const [hash, content] = [hashes[0]!, contents[0]!];
  const plan: Segment[] = [{ kind: "blob", blob: hash, offset: 500, length: 1000 }];
  const fetcher = new Fetcher(blobs, cache, { memoryLimit: 0 });
  const target = Buffer.alloc(1000);
  await fetcher.read(plan, target);
  await fetcher.settled();
  assert.equal(readLocal(plan, cache, target), 1000);
  writeFileSync(containerPath(directory, hash), "wrong", { flag: "r+" });
  assert.equal(readLocal(plan, cache, target), undefined);
  target.fill(0);
  assert.equal(await fetcher.read(plan, target), 1000);
  assert.ok(target.equals(content.subarray(500, 1500)));
  await fetcher.settled();
  assert.equal(readLocal(plan, cache, target), 1000);
  assert.equal(store.gets.length, 2);
  assert.equal(cache.stats.damaged, 1);
});

test("prefetch is bounded, leaves room for demand, and goes on when there is room", async (t) => {
  const { store, blobs, cache, hashes } = await setUp(t, 60, 1000);
  const fetcher = new Fetcher(blobs, cache);
  store.closeGate();
  fetcher.prefetch(ahead(hashes.slice(0, 20)));
  fetcher.prefetch(ahead(hashes.slice(0, 20)));
  assert.equal(store.gets.length, 4, "half of 64 MiB, at the largest size while none is known");
  fetcher.prefetch(ahead(hashes.slice(20, 40)));
  assert.equal(store.gets.length, 4, "of all streams together");
  const demanded = hashes.slice(30, 54).map((hash) => fetcher.fetch(hash));
  assert.deepEqual(store.gets.slice(4), hashes.slice(30, 50).map(blobKey), "24 in all start at once");
  const joined = fetcher.fetch(hashes[0]!);
  store.openGate();
  await Promise.all([...demanded, joined]);
  await fetcher.settled();
  assert.equal(fetcher.stats.prefetches, 4);
  assert.equal(fetcher.stats.fetches, 28);
  fetcher.prefetch(ahead(hashes.slice(0, 4)));
  assert.equal(fetcher.stats.prefetches, 4, "what is here is left alone");
  fetcher.prefetch(ahead(["0".repeat(64)]));
  await fetcher.settled();
  assert.equal(fetcher.stats.failures, 1, "a prefetch that fails disturbs nobody");
  fetcher.prefetch(ahead(hashes.slice(4, 24)));
  await fetcher.settled();
  assert.equal(fetcher.stats.fetches, 44, "small blobs are fetched sixteen at once");
});

test("reading ahead without a disk cache fetches nothing twice", async (t) => {
  const { store, blobs, hashes } = await setUp(t, 30, 2000);
  const fetcher = new Fetcher(blobs, undefined, { memoryLimit: 16 * 2000 });
  const target = Buffer.alloc(500);
  for (const [index, hash] of hashes.entries()) {
    for (let offset = 0; offset < 2000; offset += 500) {
      fetcher.prefetch(ahead(hashes.slice(index + 1, index + 20)));
      await fetcher.read([{ kind: "blob", blob: hash, offset, length: 500 }], target);
    }
  }
  await fetcher.settled();
  assert.equal(store.gets.length, 30);
});

test("what waits for its reader stays in memory, whatever is read meanwhile", async (t) => {
  const { store, blobs, hashes } = await setUp(t, 10, 2000);
  const fetcher = new Fetcher(blobs, undefined, { memoryLimit: 4 * 2000 });
  const size = (index: number) => ({ file: hashes[index]!, size: 2000, start: 0, length: 2000 });
  const upcoming = hashes.map((blob, index) => ({ blob, home: size(index) }));
  await fetcher.fetch(hashes[0]!);
  await fetcher.fetch(hashes[1]!);
  assert.equal(fetcher.prefetch(upcoming.slice(2, 4)), 2);
  await fetcher.settled();
  assert.equal(fetcher.prefetch(upcoming.slice(2, 6), 2), 2, "what was fetched ahead takes its room until it is read");
  await fetcher.fetch(hashes[0]!);
  await fetcher.fetch(hashes[1]!);
  await fetcher.fetch(hashes[4]!);
  assert.equal(store.gets.length, 5);
  await fetcher.fetch(hashes[2]!);
  await fetcher.fetch(hashes[3]!);
  assert.equal(store.gets.length, 5);
});

test("a prefetch that waits is moved up when it is asked for", async (t) => {
  const { store, blobs, cache, hashes } = await setUp(t, 30, 1000);
  const fetcher = new Fetcher(blobs, cache);
  store.closeGate();
  const demanded = hashes.slice(0, 24).map((hash) => fetcher.fetch(hash));
  fetcher.prefetch(ahead(hashes.slice(24, 28)));
  const wanted = fetcher.fetch(hashes[27]!);
  store.openGate();
  await Promise.all([...demanded, wanted]);
  await fetcher.settled();
  assert.equal(store.gets[24], blobKey(hashes[27]!));
});

test("closing gives up what waits and lets the rest end", async (t) => {
  const { store, blobs, cache, hashes } = await setUp(t, 40, 1000);
  const fetcher = new Fetcher(blobs, cache);
  store.closeGate();
  const fetches = hashes.map((hash) => fetcher.fetch(hash));
  const outcomes = Promise.allSettled(fetches);
  await Promise.resolve();
  const closed = fetcher.close();
  store.openGate();
  await closed;
  const settled = await outcomes;
  assert.equal(settled.filter(({ status }) => status === "fulfilled").length, 24);
  for (const outcome of settled) if (outcome.status === "rejected") assert.equal(outcome.reason.code, "interrupted");
});

test("a plan with a part that fails is not written to afterwards", async (t) => {
  const { store, blobs, cache, hashes } = await setUp(t, 1, 1000);
  const fetcher = new Fetcher(blobs, cache);
  const target = Buffer.alloc(2000);
  store.closeGate();
  const read = fetcher.read(
    [
      { kind: "blob", blob: hashes[0]!, offset: 0, length: 1000 },
      { kind: "file", fd: 1_000_000, offset: 0, length: 1000 },
    ],
    target,
  );
  let settled = false;
  const outcome = assert.rejects(read, { code: "io" }).then(() => {
    settled = true;
  });
  await new Promise(setImmediate);
  assert.equal(settled, false);
  store.openGate();
  await outcome;
});

test("a slice beyond its blob is an error that names the blob, on disk and from the store", async (t) => {
  const { blobs, cache, hashes } = await setUp(t, 1, 1000);
  const fetcher = new Fetcher(blobs, cache);
  const plan: Segment[] = [{ kind: "blob", blob: hashes[0]!, offset: 990, length: 11 }];
  const expected = { code: "damaged", message: new RegExp(hashes[0]!) };
  await assert.rejects(fetcher.read(plan, Buffer.alloc(11)), expected);
  await fetcher.settled();
  assert.throws(() => readLocal(plan, cache, Buffer.alloc(11)), expected);
});

test("any plan is executed alike from disk, from memory and from the store", async (t) => {
  const { store, blobs, cache, hashes, contents } = await setUp(t, 6, 5000);
  const path = join(freshDirectory(t), "local");
  const local = Buffer.from(Array.from({ length: 3000 }, (_, index) => index % 251));
  writeFileSync(path, local);
  const fd = openSync(path, "r");
  t.after(() => closeSync(fd));
  for (const [index, hash] of hashes.entries()) if (index < 4) cache.insert(hash, contents[index]!);
  const part = fc.record({ offset: fc.nat(4000), length: fc.nat(1000) });
  const segment = fc.oneof(
    fc.record({ kind: fc.constant("zeros" as const), length: fc.nat(2000) }),
    part.map((run) => ({ kind: "file" as const, fd, ...run })),
    fc.tuple(part, fc.nat(5)).map(([run, index]) => ({ kind: "blob" as const, blob: hashes[index]!, ...run })),
  );
  type Part = Exclude<Segment, { kind: "bytes" }>;
  const expect = (plan: Part[]): Buffer =>
    Buffer.concat(
      plan.map((one) => {
        if (one.kind === "zeros") return Buffer.alloc(one.length);
        const source = one.kind === "file" ? local : contents[hashes.indexOf(one.blob)]!;
        const bytes = source.subarray(one.offset, one.offset + one.length);
        return Buffer.concat([bytes, Buffer.alloc(one.length - bytes.length)]);
      }),
    );
  await fc.assert(
    fc.asyncProperty(fc.array(segment, { maxLength: 8 }), async (plan) => {
      const expected = expect(plan);
      const target = Buffer.alloc(expected.length + 10, 0xee);
      const isResident = plan.every((one) => one.kind !== "blob" || cache.has(one.blob));
      const done = readLocal(plan, cache, target);
      assert.equal(done, isResident ? expected.length : undefined);
      if (isResident) assert.ok(target.subarray(0, expected.length).equals(expected));
      for (const fetcher of [new Fetcher(blobs, undefined), new Fetcher(blobs, cache, { memoryLimit: 0 })]) {
        target.fill(0xee);
        assert.equal(await fetcher.read(plan, target), expected.length);
        assert.ok(target.subarray(0, expected.length).equals(expected));
        assert.ok(target.subarray(expected.length).every((byte) => byte === 0xee));
        // What is on its way into the cache counts as there before it can be read from there.
        await fetcher.settled();
      }
    }),
    { numRuns: 60 },
  );
  assert.ok(store.gets.length > 0);
});

test("a large blob keeps its bytes on the way through memory and disk", async (t) => {
  const { blobs, cache, hashes, contents } = await setUp(t, 1, 8 * MIB);
  const fetcher = new Fetcher(blobs, cache);
  assert.ok((await fetcher.fetch(hashes[0]!)).equals(contents[0]!));
  await fetcher.settled();
  assert.ok(cache.load(hashes[0]!)?.equals(contents[0]!));
});
