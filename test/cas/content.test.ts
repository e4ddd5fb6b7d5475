import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { MAX_CHUNK } from "../../src/cas/chunker.ts";
import {
  ChunkListHasher,
  ContentHasher,
  chunkListOf,
  type FileContent,
  LARGE_FILE,
  zeroChunkHash,
} from "../../src/cas/content.ts";
import { DatamonError } from "../../src/cas/errors.ts";
import { DerivedHasher, hashOf } from "../../src/cas/hash.ts";
import { HashIndex } from "../../src/cas/hash-index.ts";
import { pseudoRandom } from "./pseudo-random.ts";

const MIB = 1024 * 1024;
const sample = pseudoRandom(1, 16 * MIB);

test("content hashes are those of the format", () => {
  const hash = (content: Buffer): string => new ContentHasher().update(content).digest();
  assert.equal(hash(Buffer.alloc(0)), hashOf(Buffer.alloc(0)));
  assert.equal(hash(sample.subarray(0, LARGE_FILE - 1)), hashOf(sample.subarray(0, LARGE_FILE - 1)));
  assert.equal(hash(sample), "0dd2972b5b410204cea432151dc02ea74e3e12bf51f2cf899cf6c9c71c090927");
  assert.equal(hash(Buffer.alloc(20 * MIB)), "867784840e87dacfa603ab232087276342e5820227e9907999b3ee6d6fa31cf4");

  const record = Buffer.alloc(40);
  record.write(hashOf(sample.subarray(0, LARGE_FILE)), "hex");
  record.writeUInt32LE(LARGE_FILE, 32);
  const expected = new DerivedHasher("datamon file of chunks 1").update(record).digest();
  assert.equal(hash(sample.subarray(0, LARGE_FILE)), expected);
});

test("a content hash does not depend on the pieces", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 5 * MIB }),
      fc.array(fc.integer({ min: 0, max: 5 * MIB }), { maxLength: 6 }),
      (length, ends) => {
        const whole = new ContentHasher().update(sample.subarray(0, length)).digest();
        const hasher = new ContentHasher();
        let at = 0;
        for (const end of [...ends.filter((each) => each < length).sort((a, b) => a - b), length]) {
          hasher.update(sample.subarray(at, end));
          at = end;
        }
        assert.equal(hasher.digest(), whole);
      },
    ),
    { numRuns: 25 },
  );
});

test("the chunks of a content are its extents and the zeros between", () => {
  const content: FileContent = {
    hash: "",
    size: 2 * MAX_CHUNK + 5 * MIB,
    extents: [
      { start: 0, blob: "a", offset: 0, length: 2 * MIB },
      { start: 2 * MIB + MAX_CHUNK, blob: "b", offset: 0, length: 2 * MIB },
    ],
  };
  const chunks = chunkListOf(content);
  assert.deepEqual(
    chunks.map(({ start, length, zero }) => [start, length, zero]),
    [
      [0, 2 * MIB, false],
      [2 * MIB, MAX_CHUNK, true],
      [2 * MIB + MAX_CHUNK, 2 * MIB, false],
      [4 * MIB + MAX_CHUNK, MAX_CHUNK, true],
      [4 * MIB + 2 * MAX_CHUNK, MIB, true],
    ],
  );
  assert.equal(chunks[1]?.hash, hashOf(Buffer.alloc(MAX_CHUNK)));
  assert.equal(chunks[4]?.hash, zeroChunkHash(MIB));
});

test("extents that are not whole chunks are refused", () => {
  const wrong: FileContent["extents"][] = [
    [{ start: 0, blob: "a", offset: 1, length: MIB }],
    [{ start: MIB, blob: "a", offset: 0, length: MIB }],
    [{ start: 0, blob: "a", offset: 0, length: 20 * MIB }],
    [{ start: 0, blob: "a", offset: 0, length: 0 }],
    [
      { start: 0, blob: "a", offset: 0, length: 2 * MIB },
      { start: MIB, blob: "b", offset: 0, length: 2 * MIB },
    ],
  ];
  for (const extents of wrong) {
    assert.throws(
      () => chunkListOf({ hash: "x", size: 3 * MIB, extents }),
      (error) => error instanceof DatamonError && error.code === "damaged",
    );
  }
});

test("a chunk list is hashed in order", () => {
  const hashes = [hashOf(Buffer.from("a")), hashOf(Buffer.from("b"))];
  const listHash = (list: string[]): string => {
    const hasher = new ChunkListHasher();
    for (const hash of list) hasher.add(hash, 5);
    return hasher.digest();
  };
  assert.notEqual(listHash(hashes), listHash(hashes.toReversed()));
});

test("a hash index finds every value that was added, and hardly any other", () => {
  const index = new HashIndex();
  const hashes = Array.from({ length: 20_000 }, (_, number) => hashOf(Buffer.from(String(number))));
  for (const [number, hash] of hashes.entries()) index.add(hash, number);
  index.add(hashes[7]!, 0xffffffff - 1);
  assert.equal(index.size, 20_001);
  let others = 0;
  for (const [number, hash] of hashes.entries()) {
    const found = [...index.candidates(hash)];
    assert.ok(found.includes(number));
    others += found.length - 1;
  }
  assert.ok(others <= 3, `${others} others`);
  assert.ok([...index.candidates(hashes[7]!)].includes(0xffffffff - 1));
  assert.deepEqual([...new HashIndex(10).candidates(hashes[0]!)], []);
  assert.throws(() => index.add(hashes[0]!, 0xffffffff), RangeError);
  assert.throws(() => index.add(hashes[0]!, -1), RangeError);
});
