import { Chunker, isZero, MAX_CHUNK, MIN_CHUNK } from "../chunker.ts";
import { type Chunk, chunkListOf, type FileContent, zeroChunkHash } from "../content.ts";
import { DatamonError } from "../errors.ts";
import { hashOf } from "../hash.ts";
import type { Range } from "./source.ts";

/** Read at once where a cut may come any moment: what is read beyond it may be in vain. */
const PIECE = 256 * 1024;

/** A large file that is read by a function. */
export interface Readable {
  /** In bytes, `LARGE_FILE` at least. */
  readonly size: number;
  /** Content that the file has outside of `dirty` and before its own end; a large file too. */
  readonly base: FileContent | undefined;
  readonly dirty: readonly Range[];
  read(offset: number, length: number): Promise<Buffer>;
}

/**
 * The chunks of a large file, in order: those that chunking the whole of it would find. Of a file
 * with a base only those chunks are read that are not the base's: cuts depend on nothing before
 * their chunk, so wherever a chunk of the base begins again and is untouched, it is the next chunk.
 *
 * `content` is there for the chunks that were read and are not zeros.
 */
export async function* rechunk(file: Readable): AsyncGenerator<Chunk & { content: Buffer | undefined }> {
  const old = file.base === undefined ? [] : chunkListOf(file.base);
  const touched = touchedAt(file);
  let next = 0;
  // What has been read at `start` and after it.
  let ahead: Buffer = Buffer.alloc(0);
  for (let start = 0; start < file.size; ) {
    while (next < old.length && old[next]!.start < start) next++;
    const known = old[next];
    if (known?.start === start && !touched(start, start + known.length)) {
      yield { ...known, content: undefined };
      ahead = ahead.subarray(known.length);
      start += known.length;
    } else {
      const bytes = await readChunk(file, start, ahead);
      const { content, rest } = bytes;
      ahead = rest;
      const zero =
        (content.length === MAX_CHUNK || start + content.length === file.size) && isZero(content, 0, content.length);
      const hash = zero ? zeroChunkHash(content.length) : hashOf(content);
      yield { hash, length: content.length, start, zero, content: zero ? undefined : content };
      start += content.length;
    }
  }
}

/** The chunk at `start`, of which `ahead` has been read, and what was read beyond its end. */
async function readChunk(file: Readable, start: number, ahead: Buffer): Promise<{ content: Buffer; rest: Buffer }> {
  const chunker = new Chunker();
  const pieces: Buffer[] = [];
  let length = 0;
  for (let piece = ahead; ; ) {
    const cut = chunker.cut(piece, 0, piece.length);
    if (cut >= 0 || start + length + piece.length === file.size) {
      const end = cut < 0 ? piece.length : cut;
      pieces.push(piece.subarray(0, end));
      return { content: Buffer.concat(pieces), rest: piece.subarray(end) };
    }
    pieces.push(piece);
    length += piece.length;
    const wanted = length < MIN_CHUNK ? MIN_CHUNK - length : PIECE;
    piece = await readExactly(file, start + length, Math.min(wanted, file.size - start - length));
  }
}

async function readExactly(file: Readable, offset: number, length: number): Promise<Buffer> {
  const bytes = await file.read(offset, length);
  if (bytes.length !== length) {
    throw new DatamonError("io", `${bytes.length} bytes came at ${offset} of a file instead of ${length}`);
  }
  return bytes;
}

/**
 * Tells whether the chunk that the base has from `start` up to `end` may be another one now; to be
 * asked for chunks in their order.
 */
function touchedAt({ size, base, dirty }: Readable): (start: number, end: number) => boolean {
  const baseSize = base?.size ?? 0;
  const ranges = dirty.filter(({ length }) => length > 0).toSorted((a, b) => a.start - b.start);
  let at = 0;
  // The furthest end of the ranges that begin before the chunk's end.
  let reach = 0;
  return (start, end) => {
    while (at < ranges.length && ranges[at]!.start < end) {
      reach = Math.max(reach, ranges[at]!.start + ranges[at]!.length);
      at++;
    }
    // The base's last chunk may have been ended by the end of the file alone.
    return reach > start || end > size || (end === baseSize && size !== baseSize);
  };
}
