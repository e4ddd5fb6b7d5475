import type { ByteString } from "../bytes.ts";
import type { ErrorCode } from "../errors.ts";
import type { Hash } from "../hash.ts";
import type { FileStat } from "./source.ts";

/** Files to read, in order; the messages about one name it by its index here. */
export interface ReadJob {
  readonly paths: readonly ByteString[];
  /** Memory for the contents of small files, to be used before any new is made; it comes back with them, or unused. */
  readonly memory: readonly ArrayBuffer[];
}

/** How much memory the contents of small files that are sent at once are given, in bytes. */
export const PART_SIZE = 2 * 1024 * 1024;

/** What a reading thread says, in the order of the job's files. `done` is the last about a job. */
export type ReadMessage =
  | SmallFilesMessage
  | ChunkMessage
  | { readonly kind: "progress"; readonly bytes: number }
  | { readonly kind: "large"; readonly file: number; readonly hash: Hash; readonly stat: FileStat }
  | { readonly kind: "failed"; readonly file: number; readonly error: PlainError }
  | { readonly kind: "done"; readonly memory: readonly ArrayBuffer[] };

/** Consecutive small files that were read. */
export interface SmallFilesMessage {
  readonly kind: "small";
  /** The index of the first. */
  readonly first: number;
  readonly hashes: readonly Hash[];
  /** `STAT_WORDS` for each file. */
  readonly stats: BigInt64Array;
  /** Their contents one after the other, where contents are wanted. */
  readonly content: Uint8Array<ArrayBuffer> | undefined;
}

/** A chunk of a large file; the one at 0 begins the file anew, whatever was said of it before. */
export interface ChunkMessage {
  readonly kind: "chunk";
  readonly file: number;
  readonly hash: Hash;
  readonly start: number;
  readonly length: number;
  /** The slot that holds its bytes, to be given back; undefined for zeros. */
  readonly slot: number | undefined;
}

/** A `DatamonError` on its way to another thread. */
export interface PlainError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint: string | undefined;
}

/** How many words a stat takes. */
export const STAT_WORDS = 5;

export function packStats(stats: readonly FileStat[]): BigInt64Array<ArrayBuffer> {
  const words = new BigInt64Array(stats.length * STAT_WORDS);
  stats.forEach(({ size, mtimeNs, ctimeNs, ino, dev }, index) => {
    words.set([BigInt(size), mtimeNs, ctimeNs, ino, dev], index * STAT_WORDS);
  });
  return words;
}

export function unpackStat(words: BigInt64Array, index: number): FileStat {
  const at = index * STAT_WORDS;
  return {
    size: Number(words[at]!),
    mtimeNs: words[at + 1]!,
    ctimeNs: words[at + 2]!,
    ino: BigInt.asUintN(64, words[at + 3]!),
    dev: BigInt.asUintN(64, words[at + 4]!),
  };
}
