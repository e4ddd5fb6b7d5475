import type { BlobStore } from "../blobs.ts";
import type { Extent } from "../content.ts";
import type { Hash } from "../hash.ts";
import { Placement, type PlaceResult, type PlacerStats } from "./placement.ts";
import { ReaderPool } from "./pool.ts";
import { SmallFiles } from "./small-files.ts";
import type { Source } from "./source.ts";

const DEFAULT_CONCURRENCY = 8;

export interface PlacerOptions {
  /** Extents of a file of that content that are in the store already. Asked for files smaller than `LARGE_FILE`. */
  reuse?(hash: Hash, size: number): readonly Extent[] | undefined;
  /** Puts under way at once; 8 by default. */
  readonly concurrency?: number;
  /** Stops everything: `place` throws a `DatamonError` of code `interrupted`. */
  readonly signal?: AbortSignal;
  /** Progress: content bytes that were read since the last call. */
  onBytes?(bytes: number): void;
}

/**
 * Puts files' contents into a blob store. Threads read, cut and hash; this thread gathers small
 * files into groups and has everything compressed and stored.
 */
export class Placer {
  readonly stats: PlacerStats = { blobsPut: 0, bytesPut: 0, bytesRead: 0, bytesReused: 0 };
  readonly #blobs: BlobStore;
  readonly #options: PlacerOptions;
  readonly #pool = new ReaderPool(true);
  readonly #smallFiles = new SmallFiles();

  constructor(blobs: BlobStore, options: PlacerOptions = {}) {
    this.#blobs = blobs;
    this.#options = options;
  }

  /**
   * Places every source. Results come in the order of the sources, each once its extents are known;
   * a small file's are known when its group ends, which may need thousands of further sources, so
   * sources must not wait for results. Once the iteration has ended, every blob is in the store.
   *
   * A source that cannot be read comes as an error; a failure of the store throws. One call at a
   * time. Memory stays within some tens of MiB whatever the number and size of files.
   */
  place<T>(sources: AsyncIterable<{ tag: T; source: Source }>): AsyncGenerator<PlaceResult<T>, void, undefined> {
    const options = this.#options;
    const placement = new Placement<T>({
      blobs: this.#blobs,
      pool: this.#pool,
      smallFiles: this.#smallFiles,
      stats: this.stats,
      concurrency: options.concurrency ?? DEFAULT_CONCURRENCY,
      signal: options.signal,
      reuse: (hash, size) => options.reuse?.(hash, size),
      onBytes: (bytes) => options.onBytes?.(bytes),
    });
    return placement.run(sources);
  }

  /** Ends the threads. */
  async close(): Promise<void> {
    await this.#pool.stop();
  }
}
