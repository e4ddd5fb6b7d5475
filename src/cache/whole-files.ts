/** Large files that become whole in the disk cache, so that the kernel can be given them as they are. */

import { closeSync, fstatSync, read } from "node:fs";
import { promisify } from "node:util";
import { type Hash, hashOf, isErrno, MAX_BLOB_SIZE } from "../cas/index.ts";
import type { DiskCache } from "./disk-cache.ts";
import type { Piece } from "./piece-map.ts";
import { stampOf } from "./stamp.ts";

const readAsync = promisify(read);

/** Files that are watched at once; each takes some 100 bytes a blob. */
const MOST_WATCHED = 64;

/** A file that was to be whole and was not so often is given up until it is wanted again. */
const MOST_FAILURES = 3;

/** What a large file is made of. */
export interface FileLayout {
  /** Content hash. */
  readonly file: Hash;
  /** In bytes. */
  readonly size: number;
  /** Its blobs, in order; what they leave out is zeros. */
  readonly pieces: readonly Piece[];
}

interface Watched {
  readonly layout: FileLayout;
  /** Its blobs that are not on this machine yet. */
  readonly missing: Set<Hash>;
  /** How often all were here and the file was not whole all the same. */
  readonly failures: number;
}

/**
 * Finishes the containers of files that are wanted whole. Nothing is fetched for it: once all blobs
 * of a file are on this machine, those that lie elsewhere are copied into its container, every blob
 * is hashed where it lies, and the container is marked as whole. One file at a time, without holding
 * up the thread for longer than a blob.
 */
export class WholeFiles {
  readonly #cache: DiskCache;
  readonly #watched = new Map<Hash, Watched>();
  #work: Promise<void> = Promise.resolve();
  #closed = false;

  constructor(cache: DiskCache) {
    this.#cache = cache;
  }

  /** Says that a file is wanted whole: now, where all of it is here, or when the last of its blobs arrives. */
  want(layout: FileLayout): void {
    if (!this.#watched.has(layout.file) && !this.#isWhole(layout.file)) this.#watch(layout, 0);
  }

  /** Says that a blob of a file has come into the cache. */
  arrived(file: Hash, blob: Hash): void {
    const watched = this.#watched.get(file);
    if (watched?.missing.delete(blob) && watched.missing.size === 0) this.#finish(watched);
  }

  /** Waits until what is being finished is done. */
  async settled(): Promise<void> {
    for (let work: Promise<void> | undefined; work !== this.#work; ) {
      work = this.#work;
      await work;
    }
  }

  /** Gives up what is not whole yet. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.settled();
  }

  #isWhole(file: Hash): boolean {
    const fd = this.#cache.openWhole(file);
    if (fd !== undefined) closeSync(fd);
    return fd !== undefined;
  }

  #watch(layout: FileLayout, failures: number): void {
    const { file, pieces } = layout;
    if (this.#closed || failures > MOST_FAILURES) return;
    const here = new Set(this.#cache.piecesOf(file).map(({ offset }) => offset));
    const missing = new Set<Hash>();
    for (const { offset, blob } of pieces) if (!here.has(offset) && !this.#cache.has(blob)) missing.add(blob);
    if (this.#watched.size >= MOST_WATCHED) this.#watched.delete(this.#watched.keys().next().value!);
    const watched = { layout, missing, failures };
    this.#watched.set(file, watched);
    if (missing.size === 0) this.#finish(watched);
  }

  #finish({ layout, failures }: Watched): void {
    this.#work = this.#work
      .then(async () => {
        const whole = await this.#complete(layout);
        this.#watched.delete(layout.file);
        // What was wrong has been removed: it comes again when it is read.
        if (!whole) this.#watch(layout, failures + 1);
      })
      .catch((error: unknown) => {
        // A disk that fails leaves the file to be read blob by blob.
        this.#watched.delete(layout.file);
        if (!isErrno(error) && !(error instanceof RangeError)) throw error;
      });
  }

  async #complete(layout: FileLayout): Promise<boolean> {
    const { file, size, pieces } = layout;
    const here = new Set(this.#cache.piecesOf(file).map(({ offset }) => offset));
    for (const { offset, blob, length } of pieces) {
      if (this.#closed) return false;
      if (here.has(offset)) continue;
      if (!(await this.#cache.moveHome(blob, { file, size, start: offset, length }))) return false;
    }
    const fd = this.#cache.openPartial(file);
    if (fd === undefined) return false;
    try {
      const stamp = stampOf(fd);
      const info = fstatSync(fd);
      if (!info.isFile() || info.size !== size) return this.#refuse(file);
      return (await this.#verify(fd, layout)) && this.#cache.setWhole(file, fd, stamp);
    } finally {
      closeSync(fd);
    }
  }

  async #verify(fd: number, { file, size, pieces }: FileLayout): Promise<boolean> {
    const buffer = Buffer.allocUnsafeSlow(MAX_BLOB_SIZE);
    let at = 0;
    for (const piece of pieces) {
      if (this.#closed) return false;
      if (!(await isZero(fd, at, piece.offset, buffer))) return this.#refuse(file);
      const bytes = buffer.subarray(0, piece.length);
      if (!(await fill(fd, bytes, piece.offset)) || hashOf(bytes) !== piece.blob) {
        this.#cache.dropPiece(file, piece);
        return false;
      }
      at = piece.offset + piece.length;
    }
    return (await isZero(fd, at, size, buffer)) || this.#refuse(file);
  }

  /** Bytes where there are none to be cannot be mended blob by blob. */
  #refuse(file: Hash): false {
    this.#cache.removeFile(file);
    return false;
  }
}

/** Reads all of `target`; false where the file ends before. */
async function fill(fd: number, target: Buffer, position: number): Promise<boolean> {
  for (let done = 0; done < target.length; ) {
    const { bytesRead } = await readAsync(fd, target, done, target.length - done, position + done);
    if (bytesRead === 0) return false;
    done += bytesRead;
  }
  return true;
}

/** True where the bytes [start, end) are all zeros. */
async function isZero(fd: number, start: number, end: number, buffer: Buffer): Promise<boolean> {
  for (let at = start; at < end; ) {
    const bytes = buffer.subarray(0, Math.min(buffer.length, end - at));
    if (!(await fill(fd, bytes, at))) return false;
    if (bytes[0] !== 0 || bytes.compare(bytes, 1, bytes.length, 0, bytes.length - 1) !== 0) return false;
    at += bytes.length;
  }
  return true;
}
