import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, readSync } from "node:fs";
import { mkdir, mkdtemp, rm, symlink, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { BlobStore } from "../../src/cas/blobs.ts";
import { type ByteString, bytesFrom, bytesOf, toFsPath } from "../../src/cas/bytes.ts";
import { ContentHasher, type Extent, type FileContent, LARGE_FILE } from "../../src/cas/content.ts";
import { DatamonError, type ErrorCode } from "../../src/cas/errors.ts";
import { setFault } from "../../src/cas/faults.ts";
import { type Hash, hashOf } from "../../src/cas/hash.ts";
import { hashFiles } from "../../src/cas/ingest/hash-files.ts";
import type { PlaceResult } from "../../src/cas/ingest/placement.ts";
import { Placer, type PlacerOptions } from "../../src/cas/ingest/placer.ts";
import { ReaderPool, type ReadHandlers } from "../../src/cas/ingest/pool.ts";
import type { Range, Source } from "../../src/cas/ingest/source.ts";
import { readStable } from "../../src/cas/ingest/stable.ts";
import { listAll } from "../../src/cas/store.ts";
import { LocalStore } from "../../src/cas/stores/local.ts";
import { pseudoRandom } from "./pseudo-random.ts";

const MIB = 1024 * 1024;
const sample = pseudoRandom(5, 32 * MIB);
let directory: string;
let made = 0;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "datamon-placer-"));
});

after(async () => {
  await rm(directory, { recursive: true });
});

async function newBlobs(): Promise<BlobStore> {
  return new BlobStore(await LocalStore.open(`file://${directory}/store-${made++}`));
}

/** Writes the contents to files of a new directory; answers with their paths. */
async function writeFiles(contents: readonly Buffer[]): Promise<ByteString[]> {
  const folder = join(directory, `files-${made++}`);
  await mkdir(folder);
  const paths = contents.map((_, index) => bytesOf(join(folder, `f${index}`)));
  for (const [index, content] of contents.entries()) await writeFile(toFsPath(paths[index]!), content);
  return paths;
}

async function* sourcesOf(sources: readonly Source[]): AsyncGenerator<{ tag: number; source: Source }> {
  for (const [tag, source] of sources.entries()) yield { tag, source };
}

function pathSources(paths: readonly ByteString[]): Source[] {
  return paths.map((path) => ({ kind: "path", path }));
}

/** Places the sources, which must all succeed. */
async function place(
  blobs: BlobStore,
  sources: readonly Source[],
  options: PlacerOptions = {},
): Promise<FileContent[]> {
  const placer = new Placer(blobs, options);
  try {
    const contents: FileContent[] = [];
    for await (const result of placer.place(sourcesOf(sources))) {
      assert.equal(result.tag, contents.length);
      if ("error" in result) throw result.error;
      contents.push(result.placed.content);
    }
    return contents;
  } finally {
    await placer.close();
  }
}

async function readBack(blobs: BlobStore, { size, extents }: FileContent): Promise<Buffer> {
  const bytes = Buffer.alloc(size);
  let at = 0;
  for (const { start, blob, offset, length } of extents) {
    assert.ok(start >= at && length > 0);
    const content = await blobs.get(blob);
    assert.ok(offset + length <= content.length);
    content.copy(bytes, start, offset, offset + length);
    at = start + length;
  }
  assert.ok(at <= size);
  return bytes;
}

function hashOfContent(content: Buffer): Hash {
  return new ContentHasher().update(content).digest();
}

async function blobCount(blobs: BlobStore): Promise<number> {
  let count = 0;
  for await (const _ of listAll(blobs.store, "blobs/")) count++;
  return count;
}

function isCode(code: ErrorCode): (error: unknown) => boolean {
  return (error) => error instanceof DatamonError && error.code === code;
}

/** Contents of all sorts: empty, small, just below and above the limits, zeros, large. */
const someContent = fc.oneof(
  { weight: 1, arbitrary: fc.constant(Buffer.alloc(0)) },
  {
    weight: 6,
    arbitrary: fc.tuple(fc.nat(16 * MIB), fc.nat(20_000)).map(([at, size]) => sample.subarray(at, at + size)),
  },
  {
    weight: 2,
    arbitrary: fc.tuple(fc.nat(16 * MIB), fc.integer({ min: -1, max: 1 })).map(([at, more]) => {
      return sample.subarray(at, at + LARGE_FILE + more);
    }),
  },
  {
    weight: 2,
    arbitrary: fc.tuple(fc.nat(16 * MIB), fc.nat(6 * MIB)).map(([at, size]) => sample.subarray(at, at + size)),
  },
  { weight: 1, arbitrary: fc.nat(20 * MIB).map((size) => Buffer.alloc(size)) },
  {
    weight: 1,
    arbitrary: fc.tuple(fc.nat(16 * MIB), fc.nat(18 * MIB)).map(([at, size]) => {
      return Buffer.concat([sample.subarray(at, at + 100_000), Buffer.alloc(size), sample.subarray(at, at + 1000)]);
    }),
  },
);

test("any files placed and read back are identical, whether they come as paths or as bytes", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(someContent, { maxLength: 12 }), fc.array(fc.boolean()), async (contents, asBytes) => {
      const blobs = await newBlobs();
      const paths = await writeFiles(contents);
      const mixed = contents.map(
        (bytes, index): Source => (asBytes[index] ? { kind: "bytes", bytes } : { kind: "path", path: paths[index]! }),
      );
      const placed = await place(blobs, mixed);
      assert.equal(placed.length, contents.length);
      for (const [index, content] of contents.entries()) {
        assert.equal(placed[index]!.hash, hashOfContent(content));
        assert.ok((await readBack(blobs, placed[index]!)).equals(content));
      }
      // A size that is not what was thought makes no difference.
      const lied = paths.map((path, index): Source => ({ kind: "path", path, size: index % 2 === 0 ? 0 : 9 * MIB }));
      const again = await place(blobs, lied);
      for (const [index, content] of contents.entries()) {
        assert.equal(again[index]!.hash, placed[index]!.hash);
        if (content.length >= LARGE_FILE) assert.deepEqual(again[index], placed[index]);
        else assert.ok((await readBack(blobs, again[index]!)).equals(content));
      }
    }),
    { numRuns: 8 },
  );
});

test("many small files make few blobs, the same each time and with several batches", async () => {
  const contents = Array.from({ length: 1500 }, (_, index) => sample.subarray(index * 5000, index * 5000 + 3000));
  const paths = await writeFiles(contents);
  const blobs = await newBlobs();
  const first = await place(blobs, pathSources(paths));
  const count = await blobCount(blobs);
  assert.ok(count >= 1 && count <= 4, `${count} blobs`);
  for (const index of [0, 750, 1499]) assert.ok((await readBack(blobs, first[index]!)).equals(contents[index]!));

  const asBytes = contents.map((bytes): Source => ({ kind: "bytes", bytes }));
  const placer = new Placer(blobs);
  const again: FileContent[] = [];
  for await (const result of placer.place(sourcesOf(asBytes))) {
    assert.ok("placed" in result);
    again.push(result.placed.content);
  }
  await placer.close();
  assert.deepEqual(again, first);
  assert.equal(placer.stats.blobsPut, 0);
  assert.equal(placer.stats.bytesReused, 1500 * 3000);
});

test("the same small content is stored once, what the caller knows not at all", async () => {
  const blobs = await newBlobs();
  const same = sample.subarray(0, 5000);
  const known = sample.subarray(6000, 9000);
  const extents: Extent[] = [{ start: 0, blob: hashOf(same), offset: 0, length: 1500 }];
  const asked: Hash[] = [];
  const reuse = (hash: Hash, size: number): Extent[] | undefined => {
    asked.push(hash);
    return hash === hashOf(known) && size === 3000 ? extents : undefined;
  };
  const paths = await writeFiles([same, known, same, Buffer.alloc(0), sample.subarray(9000, 10_000)]);
  const [first, reused, second, empty] = await place(blobs, pathSources(paths), { reuse });
  assert.deepEqual(second, first);
  assert.deepEqual(reused, { hash: hashOf(known), size: 3000, extents });
  assert.deepEqual(empty?.extents, []);
  assert.equal(await blobCount(blobs), 1);
  assert.equal((await blobs.get(first!.extents[0]!.blob)).length, 6000);
  assert.equal(asked.length, 4);
});

test("zeros are not stored", async () => {
  const blobs = await newBlobs();
  const [path] = await writeFiles([Buffer.alloc(0)]);
  await truncate(toFsPath(path!), 100 * MIB);
  const [content] = await place(blobs, pathSources([path!]));
  assert.equal(content?.size, 100 * MIB);
  assert.deepEqual(content?.extents, []);
  assert.equal(content?.hash, hashOfContent(Buffer.alloc(100 * MIB)));
  assert.equal(await blobCount(blobs), 0);
});

test("a stat and the counts of what was done come with the results", async () => {
  const blobs = await newBlobs();
  const [small, large] = await writeFiles([sample.subarray(0, 1000), sample.subarray(0, 3 * MIB)]);
  await utimes(toFsPath(small!), 1, 1_600_000_000);
  let bytes = 0;
  const placer = new Placer(blobs, { onBytes: (count) => (bytes += count) });
  const results: PlaceResult<number>[] = [];
  for await (const result of placer.place(sourcesOf(pathSources([small!, large!])))) results.push(result);
  await placer.close();
  assert.ok("placed" in results[0]!);
  assert.equal(results[0].placed.stat?.mtimeNs, 1_600_000_000_000_000_000n);
  assert.equal(results[0].placed.stat?.size, 1000);
  assert.equal(bytes, 3 * MIB + 1000);
  assert.equal(placer.stats.bytesRead, 3 * MIB + 1000);
  assert.equal(placer.stats.blobsPut, await blobCount(blobs));
  assert.ok(placer.stats.bytesPut > 3 * MIB);
});

test("what cannot be read comes as an error that names it, in its place", async () => {
  const blobs = await newBlobs();
  const [file, odd] = await writeFiles([sample.subarray(0, 10), sample.subarray(10, 20)]);
  const folder = join(directory, `odd-${made++}`);
  await mkdir(folder);
  await symlink("elsewhere", join(folder, "link"));
  execFileSync("mkfifo", [join(folder, "fifo")]);
  const name = bytesFrom(Buffer.concat([Buffer.from(`${folder}/`), Buffer.from([0xff, 0x0a])]));
  await writeFile(toFsPath(name), "bytes");
  const paths = [file!, "missing", "link", "fifo", ".", name, odd!].map((path, index) =>
    index >= 1 && index <= 4 ? bytesOf(`${folder}/${path}`) : (path as ByteString),
  );
  const placer = new Placer(blobs);
  const outcomes: string[] = [];
  for await (const result of placer.place(sourcesOf(pathSources(paths)))) {
    if ("placed" in result) outcomes.push("placed");
    else {
      assert.ok(result.error.message.includes(paths[result.tag]!));
      outcomes.push(result.error.code);
    }
  }
  await placer.close();
  assert.deepEqual(outcomes, ["placed", "not-found", "unsupported", "unsupported", "unsupported", "placed", "placed"]);
});

test("a file that changes while it is read is read again", async () => {
  const [path] = await writeFiles([Buffer.from("one")]);
  const read = (fd: number, size: number): string => {
    const buffer = Buffer.alloc(size);
    readSync(fd, buffer, 0, size, 0);
    return buffer.toString();
  };
  let attempts = 0;
  const { value, stat } = readStable(path!, (fd, { size }) => {
    const text = read(fd, size);
    if (attempts++ < 2) appendFileSync(toFsPath(path!), "+");
    return text;
  });
  assert.equal(value, "one++");
  assert.equal(stat.size, 5);
  assert.equal(attempts, 3);
  assert.throws(
    () =>
      readStable(path!, () => {
        appendFileSync(toFsPath(path!), "+");
        return 1;
      }),
    (error) => isCode("changed")(error) && (error as Error).message.includes(path!),
  );
  assert.throws(() => readStable(path!, () => undefined), isCode("changed"));
});

test("a large file that grows all the time is an error, and nothing hangs", async () => {
  const blobs = await newBlobs();
  const [path, other] = await writeFiles([sample, sample.subarray(0, 5)]);
  const file = toFsPath(path!) as string;
  // Each reading takes so long that the appender gets its turn meanwhile, however busy the machine is.
  await truncate(file, 192 * 1024 * 1024);
  const appender = spawn("sh", ["-c", 'echo started; while :; do echo x >> "$0"; done', file]);
  try {
    await once(appender.stdout, "data");
    const placer = new Placer(blobs);
    const results: PlaceResult<number>[] = [];
    for await (const result of placer.place(sourcesOf(pathSources([path!, other!])))) results.push(result);
    await placer.close();
    assert.ok("error" in results[0]! && results[0].error.code === "changed");
    assert.ok("placed" in results[1]!);
  } finally {
    appender.kill();
    await once(appender, "exit");
  }
});

test("a failure of the store ends it, and a new attempt completes it", async () => {
  const contents = Array.from({ length: 12 }, (_, index) =>
    sample.subarray(index * MIB, index * MIB + 2 * MIB + index),
  );
  contents.push(...Array.from({ length: 600 }, (_, index) => sample.subarray(index * 9000, index * 9000 + 8000)));
  const paths = await writeFiles(contents);
  const blobs = await newBlobs();
  const placer = new Placer(blobs);
  const run = async (): Promise<FileContent[]> => {
    const placed: FileContent[] = [];
    for await (const result of placer.place(sourcesOf(pathSources(paths)))) {
      assert.ok("placed" in result);
      placed.push(result.placed.content);
    }
    return placed;
  };
  try {
    setFault("put.blobs:3+:nospace");
    await assert.rejects(run, isCode("no-space"));
    setFault(undefined);
    const placed = await run();
    for (const [index, content] of contents.entries()) {
      if (index > 20 && index % 50 !== 0) continue;
      assert.ok((await readBack(blobs, placed[index]!)).equals(content));
    }
  } finally {
    setFault(undefined);
    await placer.close();
  }
});

test("the signal stops it at once, and its threads end", async () => {
  const contents = Array.from({ length: 8 }, () => sample);
  const paths = await writeFiles(contents);
  const blobs = await newBlobs();
  const controller = new AbortController();
  const placer = new Placer(blobs, { signal: controller.signal, onBytes: () => controller.abort() });
  const run = async (): Promise<void> => {
    for await (const _ of placer.place(sourcesOf(pathSources(paths)))) assert.fail("nothing can be done yet");
  };
  await assert.rejects(run, isCode("interrupted"));
  await placer.close();
  assert.ok(placer.stats.bytesRead < 8 * sample.length);
  await assert.rejects(run, isCode("interrupted"));
  await assert.rejects(place(blobs, pathSources(paths), { signal: AbortSignal.abort() }), isCode("interrupted"));
});

test("an iteration that is left early leaves nothing running", async () => {
  const paths = await writeFiles(
    Array.from({ length: 4 }, (_, index) => sample.subarray(index * MIB, (index + 6) * MIB)),
  );
  const placer = new Placer(await newBlobs());
  let closed = false;
  async function* sources(): AsyncGenerator<{ tag: number; source: Source }> {
    try {
      yield* sourcesOf(pathSources(paths));
      for (;;) {
        await setImmediate();
        yield { tag: -1, source: { kind: "bytes", bytes: sample.subarray(0, 100) } };
      }
    } finally {
      closed = true;
    }
  }
  for await (const result of placer.place(sources())) if (result.tag === 1) break;
  await placer.close();
  while (!closed) await setImmediate();
});

test("a thread that fails is an error, and another takes its place", async () => {
  const [path] = await writeFiles([sample.subarray(0, 10)]);
  const pool = new ReaderPool(false);
  const hashes: Hash[] = [];
  const handlers: ReadHandlers = {
    small: (_file, hash) => hashes.push(hash),
    chunk: () => assert.fail(),
    large: () => assert.fail(),
    failed: (_file, error) => assert.fail(error),
    progress: () => {},
  };
  await assert.rejects(pool.run([42 as unknown as ByteString], handlers), TypeError);
  await pool.run([path!], handlers);
  await pool.stop();
  assert.deepEqual(hashes, [hashOf(sample.subarray(0, 10))]);
});

test("a failure of the sources is thrown", async () => {
  const placer = new Placer(await newBlobs());
  async function* sources(): AsyncGenerator<{ tag: number; source: Source }> {
    yield { tag: 0, source: { kind: "bytes", bytes: Buffer.from("x") } };
    throw new Error("the walk failed");
  }
  await assert.rejects(async () => {
    for await (const _ of placer.place(sources()));
  }, /the walk failed/);
  await placer.close();
});

test("more sources than may be under way, all behind one small file", async () => {
  const blobs = await newBlobs();
  const [path] = await writeFiles([sample.subarray(0, 50)]);
  async function* sources(): AsyncGenerator<{ tag: number; source: Source }> {
    yield { tag: 0, source: { kind: "path", path: path! } };
    for (let tag = 1; tag < 30_000; tag++) yield { tag, source: { kind: "bytes", bytes: Buffer.alloc(0) } };
  }
  const placer = new Placer(blobs);
  let next = 0;
  for await (const result of placer.place(sources())) assert.equal(result.tag, next++);
  assert.equal(next, 30_000);
  await placer.close();
});

interface Edit {
  kind: "write" | "zero" | "truncate";
  at: number;
  length: number;
}

/** Applies the edits as a file would take them; answers with the new content and the ranges written. */
function applyEdits(base: Buffer, edits: readonly Edit[]): { content: Buffer; dirty: Range[] } {
  let content = Buffer.from(base);
  const dirty: Range[] = [];
  for (const { kind, at, length } of edits) {
    if (kind === "truncate") {
      const grown = Buffer.alloc(at);
      content.copy(grown);
      // What was cut off and comes back as zeros is not what the base has there.
      if (at < content.length) dirty.push({ start: at, length: base.length });
      content = grown;
    } else {
      if (at + length > content.length) content = Buffer.concat([content, Buffer.alloc(at + length - content.length)]);
      content.fill(kind === "zero" ? 0 : sample.subarray(at % 1000, (at % 1000) + length + 1), at, at + length);
      dirty.push({ start: at, length });
    }
  }
  return { content, dirty };
}

const someEdit: fc.Arbitrary<Edit> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant("write" as const),
      at: fc.nat(22 * MIB),
      length: fc.integer({ min: 1, max: 5000 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("zero" as const), at: fc.nat(20 * MIB), length: fc.nat(9 * MIB) }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("truncate" as const), at: fc.nat(30 * MIB), length: fc.constant(0) }),
  },
);

test("a patched file is what placing the whole of it gives", async () => {
  const blobs = await newBlobs();
  const bases = [
    sample.subarray(0, 20 * MIB),
    Buffer.concat([sample.subarray(0, 3 * MIB), Buffer.alloc(15 * MIB), sample.subarray(0, 2 * MIB)]),
    sample.subarray(0, 300_000),
  ];
  const placed = await place(
    blobs,
    bases.map((bytes) => ({ kind: "bytes", bytes })),
  );
  await fc.assert(
    fc.asyncProperty(fc.nat(2), fc.array(someEdit, { maxLength: 5 }), async (which, edits) => {
      const { content, dirty } = applyEdits(bases[which]!, edits);
      const read = async (offset: number, length: number): Promise<Buffer> => {
        assert.ok(offset + length <= content.length);
        return content.subarray(offset, offset + length);
      };
      const patched: Source = { kind: "patched", size: content.length, base: placed[which]!, dirty, read };
      const [fromPatch, whole] = await place(blobs, [patched, { kind: "bytes", bytes: content }]);
      assert.equal(fromPatch!.hash, hashOfContent(content));
      assert.deepEqual(fromPatch, whole);
      assert.ok((await readBack(blobs, fromPatch!)).equals(content));
    }),
    { numRuns: 16 },
  );
});

test("of a patched file only what is around the change is read", async () => {
  const blobs = await newBlobs();
  const base = sample;
  const [placed] = await place(blobs, [{ kind: "bytes", bytes: base }]);
  const { content, dirty } = applyEdits(base, [{ kind: "write", at: 17 * MIB, length: 10 }]);
  const read = async (offset: number, length: number): Promise<Buffer> => content.subarray(offset, offset + length);
  const placer = new Placer(blobs);
  const source: Source = { kind: "patched", size: content.length, base: placed!, dirty, read };
  for await (const result of placer.place(sourcesOf([source]))) assert.ok("placed" in result);
  assert.ok(placer.stats.bytesRead <= 10 * MIB, `${placer.stats.bytesRead} bytes`);
  assert.ok(placer.stats.blobsPut <= 3);

  const failing: Source = { ...source, read: () => Promise.reject(new DatamonError("unavailable", "no answer")) };
  const short: Source = { ...source, read: async () => Buffer.alloc(1) };
  const codes: string[] = [];
  for await (const result of placer.place(sourcesOf([failing, short]))) {
    codes.push("error" in result ? result.error.code : "placed");
  }
  assert.deepEqual(codes, ["unavailable", "io"]);
  await placer.close();
});

test("files are hashed in order without being stored", async () => {
  const contents = [
    sample.subarray(0, 12 * MIB),
    ...Array.from({ length: 500 }, (_, index) => sample.subarray(index * 100, index * 190)),
    Buffer.alloc(0),
    sample.subarray(MIB, 3 * MIB),
  ];
  const paths = await writeFiles(contents);
  paths.push(bytesOf(`${directory}/missing`));
  async function* files(): AsyncGenerator<{ tag: number; path: ByteString }> {
    for (const [tag, path] of paths.entries()) yield { tag, path };
  }
  let bytes = 0;
  let next = 0;
  for await (const result of hashFiles(files(), { onBytes: (count) => (bytes += count) })) {
    assert.equal(result.tag, next++);
    if (result.tag === contents.length) {
      assert.ok("error" in result && result.error.code === "not-found");
    } else {
      assert.ok("hash" in result);
      assert.equal(result.hash, hashOfContent(contents[result.tag]!));
      assert.equal(result.stat.size, contents[result.tag]!.length);
    }
  }
  assert.equal(next, paths.length);
  assert.equal(
    bytes,
    contents.reduce((sum, content) => sum + content.length, 0),
  );
  await assert.rejects(async () => {
    for await (const _ of hashFiles(files(), { signal: AbortSignal.abort() }));
  }, isCode("interrupted"));
});
