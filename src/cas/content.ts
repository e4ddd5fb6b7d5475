/**
 * A file's content as blobs, and its hash.
 *
 * The hash of a file shorter than `LARGE_FILE` is the BLAKE3 of its bytes. A longer file's is made
 * from its chunks, so that a change in a huge file costs only the chunks that it touches: the hash,
 * derived for "datamon file of chunks 1", of each chunk's hash (32 bytes) and length (8 bytes,
 * little endian) in order. An all-zero chunk counts like any other but is stored nowhere: what no
 * extent covers reads as zeros.
 */

import { Blake3Hasher } from "blake3";
import { Chunker, MAX_CHUNK, MIN_CHUNK } from "./chunker.ts";
import { DatamonError } from "./errors.ts";
import { DerivedHasher, type Hash, hashOf } from "./hash.ts";

/** Files of this size (in bytes) or more are cut into chunks, one blob each; smaller ones share group blobs. */
export const LARGE_FILE = MIN_CHUNK;

/** A run of a file's bytes: `length` bytes at `start` of the file are those at `offset` of the blob's content. */
export interface Extent {
  readonly start: number;
  readonly blob: Hash;
  readonly offset: number;
  readonly length: number;
}

/** What a file holds: extents in the order of `start`, never overlapping; what they leave out is zeros. */
export interface FileContent {
  readonly hash: Hash;
  /** In bytes. */
  readonly size: number;
  readonly extents: readonly Extent[];
}

/** One chunk of a large file. */
export interface Chunk {
  /** Of the chunk's bytes, also where they are zeros. */
  readonly hash: Hash;
  readonly length: number;
  /** Offset of its first byte in the file. */
  readonly start: number;
  /** True where it is all zeros and so not stored. */
  readonly zero: boolean;
}

/** The content hash of a large file, from its chunks in order. */
export class ChunkListHasher {
  readonly #hasher = new DerivedHasher("datamon file of chunks 1");
  readonly #record = Buffer.alloc(40);

  add(chunk: Hash, length: number): void {
    this.#record.write(chunk, 0, "hex");
    this.#record.writeBigUInt64LE(BigInt(length), 32);
    this.#hasher.update(this.#record);
  }

  digest(): Hash {
    return this.#hasher.digest();
  }
}

/** The content hash of one file whose bytes come in order, in pieces of any size. */
export class ContentHasher {
  readonly #chunker = new Chunker();
  readonly #chunks = new ChunkListHasher();
  /** Of the bytes since the last cut: a small file is shorter than any chunk, so there it is of the whole file. */
  readonly #bytes = new Blake3Hasher();
  #pending = 0;
  #size = 0;

  update(bytes: Uint8Array): this {
    for (let at = 0; at < bytes.length; ) {
      const cut = this.#chunker.cut(bytes, at, bytes.length);
      const end = cut < 0 ? bytes.length : cut;
      this.#bytes.update(bytes.subarray(at, end));
      this.#pending += end - at;
      this.#size += end - at;
      if (cut >= 0) this.#endChunk();
      at = end;
    }
    return this;
  }

  /** The hash; nothing may be added afterwards. */
  digest(): Hash {
    if (this.#size < LARGE_FILE) return this.#bytes.digest("hex");
    if (this.#pending > 0) this.#endChunk();
    return this.#chunks.digest();
  }

  #endChunk(): void {
    this.#chunks.add(this.#bytes.digest("hex"), this.#pending);
    this.#bytes.reset();
    this.#pending = 0;
  }
}

let wholeZeroChunk: Hash | undefined;

/** The hash of `length` zero bytes, of which there are at most `MAX_CHUNK`. */
export function zeroChunkHash(length: number): Hash {
  if (length !== MAX_CHUNK) return hashOf(Buffer.alloc(length));
  wholeZeroChunk ??= hashOf(Buffer.alloc(length));
  return wholeZeroChunk;
}

/**
 * The chunks of a file of `LARGE_FILE` or more, in order, zero chunks included. Throws a
 * `DatamonError` of code `damaged` where the extents are not whole chunks.
 */
export function chunkListOf(content: FileContent): Chunk[] {
  const chunks: Chunk[] = [];
  let at = 0;
  const fillTo = (end: number): void => {
    while (at < end) {
      const length = Math.min(MAX_CHUNK, end - at);
      // Zeros are cut by the greatest length and the end of the file alone.
      if (length < MAX_CHUNK && end !== content.size) throw notChunks(content);
      chunks.push({ hash: zeroChunkHash(length), length, start: at, zero: true });
      at += length;
    }
  };
  for (const { start, blob, offset, length } of content.extents) {
    if (start < at || offset !== 0 || length <= 0 || length > MAX_CHUNK) throw notChunks(content);
    fillTo(start);
    chunks.push({ hash: blob, length, start, zero: false });
    at += length;
  }
  if (at > content.size) throw notChunks(content);
  fillTo(content.size);
  return chunks;
}

function notChunks(content: FileContent): DatamonError {
  return new DatamonError("damaged", `the content ${content.hash} is not made of whole chunks`);
}
