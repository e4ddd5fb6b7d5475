import type { ByteString } from "../bytes.ts";
import type { FileContent } from "../content.ts";

/** A file as it was when it was read. */
export interface FileStat {
  /** In bytes. */
  readonly size: number;
  /** Nanoseconds since 1970. */
  readonly mtimeNs: bigint;
  /** Nanoseconds since 1970. */
  readonly ctimeNs: bigint;
  readonly ino: bigint;
  readonly dev: bigint;
}

/** A run of a file's bytes. */
export interface Range {
  readonly start: number;
  readonly length: number;
}

/** A regular file on disk. */
export interface PathSource {
  readonly kind: "path";
  /** Absolute. */
  readonly path: ByteString;
  /** The size that the caller has seen, if any: files are shared out among the threads by it, nothing else depends on it. */
  readonly size?: number;
}

/** Content in memory. */
export interface BytesSource {
  readonly kind: "bytes";
  readonly bytes: Buffer;
}

/**
 * A file of which only some ranges differ from content that is in the store. Whatever lies beyond
 * the end of `base` counts as changed, and so need not be in `dirty`.
 */
export interface PatchedSource {
  readonly kind: "patched";
  /** The new size in bytes. */
  readonly size: number;
  readonly base: FileContent;
  /** In any order; they may overlap. */
  readonly dirty: readonly Range[];
  /** `length` bytes of the new content at `offset`, all within `size`. */
  read(offset: number, length: number): Promise<Buffer>;
}

/** Something far away, which may become another while it is read. */
export interface ObjectSource {
  readonly kind: "object";
  /** In bytes, as a listing told. */
  readonly size: number;
  /**
   * Begins to read it as it is.
   *
   * @param tries counts from 1; it is opened again where it changed, and asked for its state anew then
   */
  open(tries: number, signal: AbortSignal): Promise<OpenObject>;
}

/** An object that is being read, in one state of it. */
export interface OpenObject {
  readonly stat: FileStat;
  /**
   * The next `length` bytes, which are those at `offset`. Throws "changed" where the object is another
   * one meanwhile, or is not what the store says of it when all has been read.
   */
  read(offset: number, length: number): Promise<Buffer>;
}

/** Where a file's bytes come from. */
export type Source = PathSource | BytesSource | PatchedSource | ObjectSource;
