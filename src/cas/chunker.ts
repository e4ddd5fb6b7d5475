/**
 * Content-defined chunking: where a large file is cut depends on the bytes just before the cut
 * alone, so the same content is cut at the same places wherever it turns up again.
 *
 * A gear hash (Xia et al., "Ddelta", 2014) of the last 32 bytes is compared with a mask, strict
 * before the normal length and loose after it, which draws the lengths together (normalised
 * chunking, Xia et al., "FastCDC", 2016). The first 1 MiB of a chunk is never hashed.
 */

import { DerivedHasher } from "./hash.ts";

/** No chunk but the last of a file is shorter, in bytes. */
export const MIN_CHUNK = 1024 * 1024;
/** No chunk is longer, in bytes. */
export const MAX_CHUNK = 8 * 1024 * 1024;
/** From this length on the loose mask holds; with it random content makes chunks of 2.1 MiB on average. */
const NORMAL_CHUNK = 2 * 1024 * 1024;
/** One position in 2^21 is a cut before `NORMAL_CHUNK`. The high bits are those that all of the window reaches. */
const STRICT_MASK = 0xfffff800 | 0;
/** One position in 2^19 is a cut from `NORMAL_CHUNK` on. */
const LOOSE_MASK = 0xffffe000 | 0;
/** How many bytes a 32-bit gear hash depends on: an older byte has been shifted out. */
const WINDOW = 32;

/**
 * A number for each byte value: the first four bytes, little endian, of the hash of that one byte
 * derived for "datamon gear table 1".
 */
export const GEAR: Int32Array = Int32Array.from({ length: 256 }, (_, byte) => {
  const hash = new DerivedHasher("datamon gear table 1").update(Uint8Array.of(byte)).digest();
  return Buffer.from(hash, "hex").readInt32LE(0);
});

/**
 * The hash of 32 zero bytes. The table is such that neither mask makes it a cut, so a run of zeros
 * is cut only by `MAX_CHUNK` and the end of the file.
 */
const ZERO_WINDOW_HASH = -GEAR[0]! | 0;

const ZEROS = Buffer.alloc(64 * 1024);

/** True where all bytes of `bytes` from `start` up to `end` are zero. */
export function isZero(bytes: Uint8Array, start: number, end: number): boolean {
  for (let at = start; at < end; at += ZEROS.length) {
    const length = Math.min(ZEROS.length, end - at);
    if (bytes[at] !== 0 || ZEROS.compare(bytes, at, at + length, 0, length) !== 0) return false;
  }
  return true;
}

/** Finds the cuts in one file whose bytes come in pieces of any size. */
export class Chunker {
  /** Bytes of the chunk that has been begun. */
  #length = 0;
  #hash = 0;

  /**
   * Takes the file's next bytes, `bytes` from `start` up to `end`, up to the next cut.
   *
   * @returns the index in `bytes` at which the chunk ends, from which the next call has to go on; or
   *   -1 where all bytes were taken and the chunk goes on (the end of a file ends its last chunk)
   */
  cut(bytes: Uint8Array, start: number, end: number): number {
    let at = start + Math.max(0, Math.min(MIN_CHUNK - WINDOW - this.#length, end - start));
    // Within the next call of #scan, the chunk's length is the index and this base.
    const base = this.#length - start;
    const warm = Math.min(end, MIN_CHUNK - 1 - base);
    for (; at < warm; at++) this.#hash = ((this.#hash << 1) + GEAR[bytes[at]!]!) | 0;
    const last = Math.min(end, MAX_CHUNK - base);
    let found = this.#scan(bytes, at, Math.min(last, NORMAL_CHUNK - 1 - base), STRICT_MASK);
    if (found < 0) found = this.#scan(bytes, Math.max(at, NORMAL_CHUNK - 1 - base), last, LOOSE_MASK);
    if (found < 0 && last + base === MAX_CHUNK) found = last;
    this.#length = found < 0 ? end + base : 0;
    if (found >= 0) this.#hash = 0;
    return found;
  }

  /** The index after the first byte from `from` up to `to` with which the hash meets `mask`, or -1. */
  #scan(bytes: Uint8Array, from: number, to: number, mask: number): number {
    let hash = this.#hash;
    for (let block = from; block < to; block += ZEROS.length) {
      const end = Math.min(to, block + ZEROS.length);
      if (hash === ZERO_WINDOW_HASH && isZero(bytes, block, end)) continue;
      let at = block;
      // Four steps a round: twice as fast in V8 as one.
      for (; at < end - 3; at += 4) {
        hash = ((hash << 1) + GEAR[bytes[at]!]!) | 0;
        if ((hash & mask) === 0) return at + 1;
        hash = ((hash << 1) + GEAR[bytes[at + 1]!]!) | 0;
        if ((hash & mask) === 0) return at + 2;
        hash = ((hash << 1) + GEAR[bytes[at + 2]!]!) | 0;
        if ((hash & mask) === 0) return at + 3;
        hash = ((hash << 1) + GEAR[bytes[at + 3]!]!) | 0;
        if ((hash & mask) === 0) return at + 4;
      }
      for (; at < end; at++) {
        hash = ((hash << 1) + GEAR[bytes[at]!]!) | 0;
        if ((hash & mask) === 0) return at + 1;
      }
    }
    this.#hash = hash;
    return -1;
  }
}
