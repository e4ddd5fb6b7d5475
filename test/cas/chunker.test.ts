import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Chunker, GEAR, isZero, MAX_CHUNK, MIN_CHUNK } from "../../src/cas/chunker.ts";
import { MAX_BLOB_SIZE } from "../../src/cas/frame.ts";
import { hashOf } from "../../src/cas/hash.ts";
import { pseudoRandom } from "./pseudo-random.ts";

const MIB = 1024 * 1024;
const sample = pseudoRandom(1, 24 * MIB);

/** The lengths of the chunks of `content`, handed over in pieces that end at `ends`. */
function chunkLengths(content: Buffer, ends: readonly number[] = []): number[] {
  const chunker = new Chunker();
  const cuts: number[] = [];
  let at = 0;
  for (const end of [...ends, content.length]) {
    while (at < end) {
      const cut = chunker.cut(content, at, end);
      if (cut >= 0) cuts.push(cut);
      at = cut < 0 ? end : cut;
    }
  }
  if (cuts.at(-1) !== content.length && content.length > 0) cuts.push(content.length);
  return cuts.map((cut, index) => cut - (cuts[index - 1] ?? 0));
}

function boundaries(lengths: readonly number[]): number[] {
  let at = 0;
  return lengths.map((length) => (at += length));
}

test("the gear table is the one of the format", () => {
  assert.equal(hashOf(Buffer.from(GEAR.buffer)), "6e324fb7c517b2ee03987ffbf402c2797323dac643c4349c927290bb6b062f55");
  assert.deepEqual([...GEAR.subarray(0, 4)], [-29375766, -115258207, -511090395, 584941254]);
});

test("16 MiB of pinned content are cut as the format says", () => {
  const content = pseudoRandom(1, 16 * MIB);
  assert.equal(hashOf(content), "be66f16682d940ac5e4d77fc57ed5ff34a2473fb540ea0d222b1feddae931b53");
  let at = 0;
  const chunks = chunkLengths(content).map((length) => {
    at += length;
    return [length, hashOf(content.subarray(at - length, at))];
  });
  assert.deepEqual(chunks, [
    [2304281, "4126ba90df8064b74e6cdf7285d5e3752ed586b0f07e92c7c92df6f1825578e1"],
    [1456673, "aaf3e056ea7c6016e20349e818616bc2c8d212965fa84938f2f8e36cf0e8b57a"],
    [1777287, "ea9c530f5936aab69d871cd910956c2156ff8f0f29aaa992d2f67c760661315d"],
    [2526477, "1bbb70b4cadbe7dcb2ecfc4c180307f5b0203db6ca4a30b89dce19a892dbab5a"],
    [2162298, "a3e216670f6d2f6022eeb6f443e786ee55427b21e677803c2c804ea562ddc736"],
    [3296611, "10cf16759c9295804190cea39c1813ae0683adbec9da184dd8f3ab9a9463b52f"],
    [2226016, "5a5cb3e9a7fb3089fa0e362f55e6bf01c629e01b7e3bc8b07c5bf977ebd0a65d"],
    [1027573, "b5fc8c1d0202c4ab17751a14f12ff73412feec38ec64286eb6df414d06a451d7"],
  ]);
});

test("a chunk ends where the hash of its last 32 bytes first meets the mask", () => {
  const hash = (end: number): number => {
    let sum = 0n;
    for (let back = 0; back < 32; back++) sum += BigInt(GEAR[sample[end - 1 - back]!]!) << BigInt(back);
    return Number(BigInt.asUintN(32, sum));
  };
  for (const start of [0, 5_000_001]) {
    const length = chunkLengths(sample.subarray(start))[0]!;
    const isCut = (at: number): boolean => hash(start + at) >>> (at < 2 * MIB ? 11 : 13) === 0;
    let first = MIN_CHUNK;
    while (first < MAX_CHUNK && !isCut(first)) first++;
    assert.equal(length, first);
  }
});

test("no chunk is longer than a blob may be", () => {
  assert.equal(MAX_CHUNK, MAX_BLOB_SIZE);
});

test("zeros are cut by the greatest length alone", () => {
  assert.deepEqual(chunkLengths(Buffer.alloc(20 * MIB)), [MAX_CHUNK, MAX_CHUNK, 4 * MIB]);
  const content = Buffer.alloc(20 * MIB);
  content[0] = 1;
  content[9 * MIB] = 1;
  assert.deepEqual(chunkLengths(content).slice(0, 2), [MAX_CHUNK, MAX_CHUNK]);
});

test("chunks cover the content, keep the bounds, and do not depend on how it is handed over", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 16 * MIB }),
      fc.integer({ min: 0, max: 8 * MIB }),
      fc.array(fc.integer({ min: 0, max: 8 * MIB }), { maxLength: 20 }),
      (start, length, ends) => {
        const content = sample.subarray(start, start + length);
        const lengths = chunkLengths(content);
        assert.equal(
          lengths.reduce((sum, each) => sum + each, 0),
          length,
        );
        for (const each of lengths) assert.ok(each <= MAX_CHUNK);
        for (const each of lengths.slice(0, -1)) assert.ok(each >= MIN_CHUNK);
        const pieces = ends.filter((end) => end < length).sort((a, b) => a - b);
        assert.deepEqual(chunkLengths(content, pieces), lengths);
      },
    ),
    { numRuns: 40 },
  );
});

test("old boundaries are found again after an insertion", () => {
  const old = boundaries(chunkLengths(sample));
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 8 * MIB }),
      fc.uint8Array({ minLength: 1, maxLength: 300 }),
      (at, inserted) => {
        const content = Buffer.concat([sample.subarray(0, at), inserted, sample.subarray(at)]);
        const found = new Set(boundaries(chunkLengths(content)).map((end) => end - inserted.length));
        const lost = old.filter((end) => end > at && !found.has(end));
        assert.ok(lost.length <= 6, `${lost.length} boundaries of ${old.length} were lost`);
      },
    ),
    { numRuns: 10 },
  );
});

test("random content makes chunks of about 2 MiB", () => {
  const content = pseudoRandom(2, 128 * MIB);
  const mean = content.length / chunkLengths(content).length;
  assert.ok(mean > 1.8 * MIB && mean < 2.4 * MIB, `${mean / MIB} MiB`);
});

test("zeros are told from other bytes wherever those are", () => {
  const bytes = Buffer.alloc(200_000);
  assert.ok(isZero(bytes, 0, bytes.length));
  for (const at of [0, 1, 65_535, 65_536, 199_999]) {
    bytes[at] = 1;
    assert.ok(!isZero(bytes, 0, bytes.length));
    assert.ok(isZero(bytes, at + 1, bytes.length));
    assert.ok(isZero(bytes, 0, at));
    bytes[at] = 0;
  }
});
