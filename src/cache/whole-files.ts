/** Large files that become whole in the disk cache, so that the kernel can be given them as they are. */

import { closeSync, fstatSync, read } from "node:fs";
import { promisify } from "node:util";
import { type Hash, hashOf, isErrno, MAX_BLOB_SIZE } from "../cas/index.ts";
import { type DiskCache, stampOf } from "./disk-cache.ts";
import type { Home } from "./plan.ts";
import type { Piece } from "./piece-map.ts";

const readAsync = promisify(read);

/** Files that are watched at once; each takes some 100 bytes a blob. */
const MOST_WATCHED = 64;

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
  /** Offsets of the blobs that are not in the container yet. */
  readonly missing: Set<number>;
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
    const { file, pieces } = layout;
    if (this.#closed || this.#watched.has(file)) return;
    const here = new Set(this.#cache.piecesOf(file).map(({ offset }) => offset));
    const missing = new Set<number>();
    for (const { offset, blob } of pieces) if (!here.has(offset) && !this.#cache.has(blob)) missing.add(offset);
    if (this.#watched.size >= MOST_WATCHED) this.#watched.delete(this.#watched.keys().next().value!);
    const watched = { layout, missing };
    this.#watched.set(file, watched);
    if (missing.size === 0) this.#finish(watched);
  }

  /** Says that a blob has come to its place. */
  arrived(home: Home): void {
    const watched = this.#watched.get(home.file);
    if (watched?.missing.delete(home.start) && watched.missing.size === 0) this.#finish(watched);
  }

  /** Waits until what is being finished is done. */
  async settled(): Promise<void> {
    await this.#work;
  }

  /** Gives up what is not whole yet. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#work;
  }

  #finish(watched: Watched): void {
    this.#work = this.#work
      .then(() => this.#complete(watched.layout))
      .catch((error: unknown) => {
        // A disk that fails leaves the file to be read blob by blob.
        if (!isErrno(error) && !(error instanceof RangeError)) throw error;
      })
      .finally(() => this.#watched.delete(watched.layout.file));
  }

  async #complete(layout: FileLayout): Promise<void> {
    const { file, size, pieces } = layout;
    const here = new Set(this.#cache.piecesOf(file).map(({ offset }) => offset));
    for (const { offset, blob, length } of pieces) {
      if (this.#closed) return;
      if (here.has(offset)) continue;
      if (!(await this.#cache.moveHome(blob, { file, size, start: offset, length }))) return;
    }
    const fd = this.#cache.openPartial(file);
    if (fd === undefined) return;
    try {
      const stamp = stampOf(fd);
      const info = fstatSync(fd);
      if (!info.isFile() || info.size !== size) return;
      if (await this.#verify(fd, layout)) this.#cache.setWhole(file, fd, stamp);
    } finally {
      closeSync(fd);
    }
  }

  async #verify(fd: number, { file, size, pieces }: FileLayout): Promise<boolean> {
    const buffer = Buffer.allocUnsafeSlow(MAX_BLOB_SIZE);
    let at = 0;
    for (const piece of pieces) {
      if (this.#closed || !(await isZero(fd, at, piece.offset, buffer))) return false;
      const bytes = buffer.subarray(0, piece.length);
      if (!(await fill(fd, bytes, piece.offset)) || hashOf(bytes) !== piece.blob) {
        this.#cache.dropPiece(file, piece);
        return false;
      }
      at = piece.offset + piece.length;
    }
    return await isZero(fd, at, size, buffer);
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
