import { lstatSync } from "node:fs";
import { type ByteString, toFsPath } from "../bytes.ts";
import { type Chunk, LARGE_FILE } from "../content.ts";
import type { DatamonError } from "../errors.ts";
import type { Hash } from "../hash.ts";
import { Fifo } from "./fifo.ts";
import type { HeldBytes, ReaderPool } from "./pool.ts";
import type { FileStat, PathSource } from "./source.ts";

/** Small files that are read in one go: at most so many, */
const BATCH_FILES = 256;
/** and about so many bytes of them. */
const BATCH_BYTES = 2 * 1024 * 1024;
/** For an idle thread so few are enough. */
const MIN_BATCH = 32;
/** Bytes of small files that may be read and not yet released. */
const MAX_HELD = 8 * 1024 * 1024;

/** Gets what was read of each file; see `ReadHandlers`. */
export interface FileHandlers<F> {
  small(file: F, hash: Hash, stat: FileStat, bytes: HeldBytes | undefined, offset: number): void;
  chunk(file: F, chunk: Chunk, bytes: HeldBytes | undefined): void;
  large(file: F, hash: Hash, stat: FileStat): void;
  failed(file: F, error: DatamonError): void;
  progress(bytes: number): void;
  /** Some of the above have been called, and no more for now. */
  changed(): void;
  /** Reading as a whole has failed. */
  broken(error: unknown): void;
}

/** A file to be read. */
export interface QueuedFile {
  readonly path: ByteString;
  /** What its size is thought to be. */
  readonly expectedSize: number;
}

interface Batch<F> {
  readonly files: F[];
  bytes: number;
}

/**
 * Shares files out among the threads of a pool: small ones in batches, in order; large ones each by
 * itself and ahead of the small ones, though never all threads while small ones wait.
 */
export class ReadQueue<F extends QueuedFile> {
  readonly #pool: ReaderPool;
  readonly #handlers: FileHandlers<F>;
  readonly #large = new Fifo<F>();
  readonly #batches = new Fifo<Batch<F>>();
  #open: Batch<F> = { files: [], bytes: 0 };
  #held = 0;
  #largeRunning = 0;
  #running = 0;
  #stopped = false;

  constructor(pool: ReaderPool, handlers: FileHandlers<F>) {
    this.#pool = pool;
    this.#handlers = handlers;
  }

  /** True where nothing waits and nothing is being read. */
  get idle(): boolean {
    return this.#running === 0 && this.#large.length + this.#batches.length + this.#open.files.length === 0;
  }

  add(file: F): void {
    if (file.expectedSize >= LARGE_FILE) {
      this.#large.push(file);
    } else {
      this.#open.files.push(file);
      this.#open.bytes += file.expectedSize;
      if (this.#open.files.length >= BATCH_FILES || this.#open.bytes >= BATCH_BYTES) this.#seal();
    }
    this.#assign();
  }

  /** Reads also what would wait for more files to make a full batch. */
  flush(): void {
    this.#seal();
    this.#assign();
  }

  /** Says that the content of a file that was expected to be small is not held any more. */
  release(file: F): void {
    if (file.expectedSize >= LARGE_FILE) return;
    this.#held -= file.expectedSize;
    this.#assign();
  }

  /** Begins with no further file. */
  stop(): void {
    this.#stopped = true;
  }

  #seal(): void {
    if (this.#open.files.length === 0) return;
    this.#batches.push(this.#open);
    this.#open = { files: [], bytes: 0 };
  }

  #assign(): void {
    while (!this.#stopped && this.#pool.free > 0) {
      if (this.#batches.length === 0 && this.#open.files.length >= MIN_BATCH) this.#seal();
      const batch = this.#batches.first;
      const room = batch !== undefined && (this.#held === 0 || this.#held + batch.bytes <= MAX_HELD);
      const batchMay = room && this.#pool.wanting;
      const largeMay = this.#large.length > 0 && (!batchMay || this.#largeRunning < this.#pool.size - 1);
      if (largeMay) void this.#read([this.#large.shift()!]);
      else if (batchMay) {
        this.#batches.shift();
        this.#held += batch.bytes;
        void this.#read(batch.files);
      } else return;
    }
  }

  async #read(files: readonly F[]): Promise<void> {
    const handlers = this.#handlers;
    const large = files[0]!.expectedSize >= LARGE_FILE ? 1 : 0;
    this.#largeRunning += large;
    this.#running++;
    try {
      await this.#pool.run(
        files.map(({ path }) => path),
        {
          small: (file, hash, stat, held, offset) => handlers.small(files[file]!, hash, stat, held, offset),
          chunk: (file, chunk, held) => handlers.chunk(files[file]!, chunk, held),
          large: (file, hash, stat) => handlers.large(files[file]!, hash, stat),
          failed: (file, error) => handlers.failed(files[file]!, error),
          progress: (count) => handlers.progress(count),
        },
      );
    } catch (error) {
      handlers.broken(error);
    } finally {
      this.#largeRunning -= large;
      this.#running--;
      this.#assign();
      handlers.changed();
    }
  }
}

/** The size of a source as far as it can be known beforehand; a file that has none comes to nothing when it is read. */
export function expectedSizeOf(source: PathSource): number {
  if (source.size !== undefined) return source.size;
  try {
    return lstatSync(toFsPath(source.path), { throwIfNoEntry: false })?.size ?? 0;
  } catch {
    return 0;
  }
}
