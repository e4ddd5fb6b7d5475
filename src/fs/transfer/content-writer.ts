/** Writing the content of many files, each blob fetched once for all the files near each other that use it. */
import { closeSync, write, writeSync } from "node:fs";
import { promisify } from "node:util";
import PQueue from "p-queue";
import { type ByteString, DatamonError, display, type Hash, ioError } from "../../cas/index.ts";
import type { Catalog, Inode } from "../../meta/index.ts";
import type { Breath } from "./breath.ts";
import type { Restorer } from "./restorer.ts";

/** So many slices or blobs are gathered before their blobs are fetched: files that share a blob lie close together. */
const WINDOW_SLICES = 16_384;
const WINDOW_BLOBS = 256;
/** Writes from this size on go through the thread pool, so that both copying and fetching go on meanwhile. */
const LARGE_WRITE = 128 * 1024;
const DEFAULT_CONCURRENCY = 8;

const writeAsync = promisify(write);

interface Target {
  path: ByteString;
  inode: Inode;
  /** Slices still to be written. */
  missing: number;
  /** True where the slices are not the whole file. */
  sparse: boolean;
  /** True where the file is on disk, its length set, and not complete. */
  begun: boolean;
}

interface Slice {
  target: Target;
  start: number;
  offset: number;
  length: number;
}

/** What a content writer works with. */
export interface ContentWriterParts {
  catalog: Catalog;
  restorer: Restorer;
  /** A blob's verified content. */
  fetch(hash: Hash): Promise<Buffer>;
  breath: Breath;
  /** Blobs under way at once. */
  concurrency?: number | undefined;
  /** Files completed and bytes written. */
  onWritten(files: number, bytes: number): void;
}

/** Restores files; memory is bounded by the window and by the blobs under way. */
export class ContentWriter {
  readonly #parts: ContentWriterParts;
  readonly #queue: PQueue;
  readonly #begun = new Set<Target>();
  #window = new Map<Hash, Slice[]>();
  #slices = 0;
  #failure: unknown;

  constructor(parts: ContentWriterParts) {
    this.#parts = parts;
    this.#queue = new PQueue({ concurrency: parts.concurrency ?? DEFAULT_CONCURRENCY });
  }

  /** Restores a file at `path`, now or later; waits while too much is under way. */
  async add(path: ByteString, inode: Inode): Promise<void> {
    this.#check();
    const extents = this.#parts.catalog.extents(inode.ino);
    const covered = extents.reduce((sum, extent) => sum + extent.length, 0);
    const target: Target = { path, inode, missing: extents.length, sparse: covered !== inode.size, begun: false };
    if (extents.length === 0) {
      this.#finish(target, this.#begin(target));
      return;
    }
    for (const { start, blob, offset, length } of extents) {
      if (start < 0 || offset < 0 || length <= 0 || start + length > inode.size) throw damagedExtent(path);
      const slices = this.#window.get(blob);
      const slice = { target, start, offset, length };
      if (slices === undefined) this.#window.set(blob, [slice]);
      else slices.push(slice);
      this.#slices++;
    }
    if (this.#slices >= WINDOW_SLICES || this.#window.size >= WINDOW_BLOBS) await this.#flush(false);
  }

  /** Waits until every file is written. */
  async finish(): Promise<void> {
    await this.#flush(true);
    await this.#queue.onIdle();
    this.#check();
  }

  /** After a failure: waits for what is under way and removes files that are not complete. */
  async abandon(): Promise<void> {
    this.#failure ??= new DatamonError("interrupted", "abandoned");
    this.#queue.clear();
    await this.#queue.onIdle();
    for (const target of this.#begun) {
      try {
        this.#parts.restorer.remove(target.path, false);
      } catch {
        // The failure that led here is the one to tell about.
      }
    }
  }

  async #flush(all: boolean): Promise<void> {
    const window = this.#window;
    this.#window = new Map();
    this.#slices = 0;
    const last = [...window.keys()].at(-1);
    for (const [blob, slices] of window) {
      if (blob === last && !all && window.size > 1) {
        // The next files are likely to lie in this blob as well.
        this.#window.set(blob, slices);
        this.#slices = slices.length;
        continue;
      }
      await this.#queue.onSizeLessThan(this.#queue.concurrency);
      this.#check();
      void this.#queue.add(() => this.#write(blob, slices));
    }
  }

  async #write(blob: Hash, slices: Slice[]): Promise<void> {
    if (this.#failure !== undefined) return;
    const { breath, fetch } = this.#parts;
    try {
      const content = await fetch(blob);
      for (const slice of slices) {
        if (this.#failure !== undefined) return;
        if (slice.offset + slice.length > content.length) throw damagedExtent(slice.target.path);
        const bytes = content.subarray(slice.offset, slice.offset + slice.length);
        await this.#writeSlice(slice, bytes);
        if (breath.due()) await breath.pause();
      }
    } catch (error) {
      this.#failure ??= error;
      this.#queue.clear();
    }
  }

  #writeSlice({ target, start, length }: Slice, bytes: Buffer): Promise<void> | undefined {
    const fd = this.#begin(target);
    if (length >= LARGE_WRITE) return this.#writeLarge(target, fd, start, bytes);
    try {
      for (let at = 0; at < length; ) at += writeSync(fd, bytes, at, length - at, start + at);
    } catch (error) {
      throw this.#failed(target, fd, error);
    }
    this.#written(target, fd, length);
    return undefined;
  }

  async #writeLarge(target: Target, fd: number, start: number, bytes: Buffer): Promise<void> {
    try {
      for (let at = 0; at < bytes.length; ) {
        at += (await writeAsync(fd, bytes, at, bytes.length - at, start + at)).bytesWritten;
      }
    } catch (error) {
      throw this.#failed(target, fd, error);
    }
    this.#written(target, fd, bytes.length);
  }

  #written(target: Target, fd: number, bytes: number): void {
    target.missing--;
    this.#parts.onWritten(0, bytes);
    if (target.missing === 0) this.#finish(target, fd);
    else closeSync(fd);
  }

  #failed(target: Target, fd: number, error: unknown): unknown {
    closeSync(fd);
    return ioError(`write ${this.#parts.restorer.tree.show(target.path)}`, error);
  }

  /** An open descriptor of the file, which is made where this is the first of its slices. */
  #begin(target: Target): number {
    const { restorer } = this.#parts;
    if (target.begun) return restorer.reopen(target.path);
    const fd = restorer.create(target.path);
    target.begun = true;
    this.#begun.add(target);
    try {
      // A single slice that is the whole file gives it its length by itself.
      if (target.missing !== 1 || target.sparse) restorer.extend(fd, target.path, target.inode.size);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    return fd;
  }

  #finish(target: Target, fd: number): void {
    this.#parts.restorer.finishFile(fd, target.path, target.inode);
    this.#begun.delete(target);
    this.#parts.onWritten(1, 0);
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure;
    this.#parts.breath.check();
  }
}

function damagedExtent(path: ByteString): DatamonError {
  return new DatamonError("damaged", `the catalog places ${display(path)} outside of a blob or of the file`);
}
