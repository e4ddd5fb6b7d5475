import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { describe, it } from "node:test";
import { constants, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { decodeFrame, encodeFrame, hashOf, MAX_BLOB_SIZE, MAX_FRAME_SIZE } from "../../src/cas/index.ts";

const RAW = 0;
const ZSTD = 1;

/** Compressible without being trivial: lines of numbers. */
function numbers(length: number): Buffer {
  let text = "";
  for (let number = 0; text.length < length; number += 7) text += `${number},${number * number}\n`;
  return Buffer.from(text.slice(0, length));
}

function frameOf(codec: number, body: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from([0x44, 0x4d, 0x42, 0x4c, 1, codec, 0, 0]), body]);
}

describe("blob frame", () => {
  it("round-trips any content", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 2000 }), fc.constantFrom(1, 30, 200), async (bytes, times) => {
        const content = Buffer.concat(Array(times).fill(Buffer.from(bytes)));
        const frame = Buffer.concat(await encodeFrame(content));
        assert.ok(frame.length <= content.length + 8);
        assert.deepEqual(await decodeFrame(frame), content);
      }),
      { numRuns: 60 },
    );
  });

  it("round-trips the sizes at which something changes", async () => {
    for (const size of [0, 1, 255, 256, 65_791, 65_792, 131_072, 131_073, MAX_BLOB_SIZE]) {
      for (const content of [numbers(size), Buffer.alloc(size)]) {
        assert.ok((await decodeFrame(Buffer.concat(await encodeFrame(content)))).equals(content), `${size} bytes`);
      }
    }
    const incompressible = randomBytes(MAX_BLOB_SIZE);
    const frame = Buffer.concat(await encodeFrame(incompressible));
    assert.equal(frame.length, MAX_FRAME_SIZE);
    assert.ok((await decodeFrame(frame)).equals(incompressible));
  });

  it("compresses where that pays, and only there", async () => {
    const compressible = Buffer.concat(await encodeFrame(numbers(1_000_000)));
    assert.equal(compressible[5], ZSTD);
    assert.ok(compressible.length < 700_000);
    assert.equal(Buffer.concat(await encodeFrame(randomBytes(1_000_000)))[5], RAW);
    assert.equal(Buffer.concat(await encodeFrame(randomBytes(100)))[5], RAW);
    assert.equal(Buffer.concat(await encodeFrame(Buffer.from("ab")))[5], RAW);
  });

  it("compresses a group of which a part is compressible", async () => {
    const mixed = Buffer.concat([randomBytes(2_000_000), numbers(2_000_000)]);
    const frame = Buffer.concat(await encodeFrame(mixed));
    assert.equal(frame[5], ZSTD);
    assert.ok((await decodeFrame(frame)).equals(mixed));
  });

  it("refuses content that is too long", async () => {
    await assert.rejects(encodeFrame(Buffer.alloc(MAX_BLOB_SIZE + 1)), RangeError);
  });

  it("has the pinned form", async () => {
    const raw = Buffer.concat(await encodeFrame(Buffer.from("datamon")));
    assert.equal(raw.toString("hex"), "444d424c01000000646174616d6f6e");
    // A stored zstd frame of 1000 times "a": decoding it must work for ever, whatever later versions write.
    const stored = Buffer.from("444d424c0101000028b52ffd60e8024d00001061610100e32b8005", "hex");
    assert.equal((await decodeFrame(stored)).toString(), "a".repeat(1000));
  });

  it("refuses what is no frame, and says why", async () => {
    const good = Buffer.concat(await encodeFrame(numbers(10_000)));
    const changed = (at: number, value: number) => {
      const frame = Buffer.from(good);
      frame[at] = value;
      return frame;
    };
    await assert.rejects(decodeFrame(Buffer.alloc(0)), /not a blob/);
    await assert.rejects(decodeFrame(good.subarray(0, 7)), /not a blob/);
    await assert.rejects(decodeFrame(changed(0, 0)), /not a blob/);
    await assert.rejects(decodeFrame(changed(4, 2)), /version 2 is not known/);
    await assert.rejects(decodeFrame(changed(5, 9)), /codec 9 is not known/);
    await assert.rejects(decodeFrame(changed(6, 1)), /reserved/);
    await assert.rejects(decodeFrame(changed(7, 1)), /reserved/);
    await assert.rejects(decodeFrame(changed(8, 0)), /does not decompress/);
    for (const length of [8, 10, 12, 14, 20, good.length - 1]) {
      await assert.rejects(decodeFrame(good.subarray(0, length)), /cut short|does not decompress|decompresses to/);
    }
  });

  it("never decodes more than a blob may hold", async () => {
    const huge = Buffer.alloc(MAX_BLOB_SIZE + 1);
    const bomb = frameOf(ZSTD, zstdCompressSync(huge, { pledgedSrcSize: huge.length }));
    await assert.rejects(decodeFrame(bomb), /longer than/);
    await assert.rejects(decodeFrame(frameOf(RAW, huge)), /longer than/);
    // Without a declared size, with one that lies, and with more behind it.
    const undeclared = zstdCompressSync(huge, { params: { [constants.ZSTD_c_contentSizeFlag]: 0 } });
    await assert.rejects(decodeFrame(frameOf(ZSTD, undeclared)), /does not tell its size/);
    const lying = Buffer.from(zstdCompressSync(huge, { pledgedSrcSize: huge.length }));
    lying.writeUInt32LE(1000, 6);
    await assert.rejects(decodeFrame(frameOf(ZSTD, lying)), Error);
    const small = zstdCompressSync(Buffer.alloc(1000), { pledgedSrcSize: 1000 });
    const tail = zstdCompressSync(huge, { pledgedSrcSize: huge.length });
    await assert.rejects(decodeFrame(frameOf(ZSTD, Buffer.concat([small, tail]))), Error);
  });

  it("fails or gives other content for every damaged byte, and never crashes", async () => {
    const content = numbers(3000);
    const good = Buffer.concat(await encodeFrame(content));
    const hash = hashOf(content);
    for (let at = 0; at < good.length; at++) {
      const frame = Buffer.from(good);
      frame[at] = (frame[at] ?? 0) ^ (1 << (at % 8));
      const decoded = await decodeFrame(frame).catch((error: unknown) => {
        assert.ok(error instanceof Error);
        return undefined;
      });
      // The hash over the content, checked by whoever decodes, is what catches the rest.
      if (decoded !== undefined && hashOf(decoded) === hash) assert.ok(decoded.equals(content));
    }
  });
});
