import { readSync } from "node:fs";
import { type Hash, ioError } from "../cas/index.ts";
import type { DiskCache } from "./disk-cache.ts";

/** From this size on (in bytes) a file is assembled in one container of the disk cache. */
export const WHOLE_FILE = 8 * 1024 * 1024;

/** Where a whole blob belongs in a large file: its `length` bytes are those from `start` of the file. */
export interface Home {
  /** Content hash of the file. */
  readonly file: Hash;
  /** Of the file, in bytes. */
  readonly size: number;
  readonly start: number;
  readonly length: number;
}

/** A small file's part of the blob that it shares with others: all of the file, and nothing else. */
export interface Slice {
  /** The file's content hash, which is the hash of just these bytes. */
  readonly file: Hash;
  /** In the blob. */
  readonly offset: number;
  readonly length: number;
}

/** A run of a file's bytes, and where they are. A plan is a list of them, one after the other. */
export type Segment =
  /** In an open local file. Bytes beyond its end are zeros. */
  | { readonly kind: "file"; readonly fd: number; readonly offset: number; readonly length: number }
  | { readonly kind: "zeros"; readonly length: number }
  /** At hand. */
  | { readonly kind: "bytes"; readonly bytes: Uint8Array; readonly length: number }
  /**
   * In a blob, which may or may not be resident; `home` is for the blobs of files of `WHOLE_FILE` bytes or
   * more, `slice` for files that share a blob.
   */
  | {
      readonly kind: "blob";
      readonly blob: Hash;
      readonly offset: number;
      readonly length: number;
      readonly home?: Home | undefined;
      readonly slice?: Slice | undefined;
    };

/** The last blob of a plan that starts at `offset` of a file, and where in the file the plan needs it. */
export function lastBlob(plan: readonly Segment[], offset: number): { blob: Hash; offset: number } | undefined {
  let found: { blob: Hash; offset: number } | undefined;
  let at = offset;
  for (const segment of plan) {
    if (segment.kind === "blob") found = { blob: segment.blob, offset: at };
    at += segment.length;
  }
  return found;
}

/**
 * Executes a plan at once, in this thread: fills `target`, which is at least as long as the plan, and
 * returns the plan's length in bytes. Undefined where a blob is not resident; what `target` holds
 * then is of no use, and the plan is for `Fetcher.read`. Throws `DatamonError` where a local file
 * cannot be read or a blob is shorter than the plan says.
 */
export function readLocal(plan: readonly Segment[], cache: DiskCache | undefined, target: Buffer): number | undefined {
  let at = 0;
  for (const segment of plan) {
    if (!readSegment(segment, cache, target, at)) return undefined;
    at += segment.length;
  }
  return at;
}

/** Reads one segment into `target` at `at`; false where it is of a blob that is not resident. */
export function readSegment(segment: Segment, cache: DiskCache | undefined, target: Buffer, at: number): boolean {
  switch (segment.kind) {
    case "zeros":
      target.fill(0, at, at + segment.length);
      return true;
    case "file":
      readFile(segment.fd, segment.offset, segment.length, target, at);
      return true;
    case "bytes":
      target.set(segment.bytes, at);
      return true;
    case "blob": {
      const { blob, offset, length, slice } = segment;
      if (cache?.read(blob, offset, length, target, at)) return true;
      return slice !== undefined && (cache?.read(slice.file, offset - slice.offset, length, target, at) ?? false);
    }
  }
}

function readFile(fd: number, offset: number, length: number, target: Buffer, at: number): void {
  try {
    for (let done = 0; done < length; ) {
      const count = readSync(fd, target, at + done, length - done, offset + done);
      if (count === 0) {
        target.fill(0, at + done, at + length);
        return;
      }
      done += count;
    }
  } catch (error) {
    throw ioError("read a local file", error);
  }
}
