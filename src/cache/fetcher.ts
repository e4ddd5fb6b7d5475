import { LRUCache } from "lru-cache";
import PQueue from "p-queue";
import { type BlobStore, DatamonError, type Hash, MAX_BLOB_SIZE } from "../cas/index.ts";
import { beyondBlob, type DiskCache } from "./disk-cache.ts";
import { type Home, readSegment, type Segment } from "./plan.ts";
import { WholeFiles } from "./whole-files.ts";

const MIB = 1024 * 1024;
/** Decoded blobs in memory; on disk they are one pread away, so this serves what has just come. */
const MEMORY_LIMIT = 64 * MIB;
/** Blobs fetched at once; the difference to the prefetches is what only demand can have. */
const CONCURRENCY = 12;
/** Prefetches at once: at most 64 MiB of decoded bytes. */
const PREFETCHES = 8;
const DEMAND = 1;
const AHEAD = 0;

export interface FetcherOptions {
  /** Bytes of decoded blobs kept in memory, default 64 MiB. */
  readonly memoryLimit?: number;
}

/** Counts since the fetcher was made; a hit is a blob that was asked for and found there. */
export interface FetcherStats {
  memoryHits: number;
  diskHits: number;
  /** Requests that waited for a fetch: their own, or one that was under way already. */
  storeHits: number;
  /** Blobs fetched from the store, and how many of them nobody had asked for yet. */
  fetches: number;
  prefetches: number;
  failures: number;
  /** Decoded bytes fetched from the store. */
  bytesFetched: number;
}

/** A blob that is likely to be wanted. */
export interface Ahead {
  readonly blob: Hash;
  readonly home?: Home | undefined;
}

interface Fetch {
  readonly content: Promise<Buffer>;
  /** Settles when nothing is left to do, whatever came of it. */
  done: Promise<void>;
  readonly fail: (error: unknown) => void;
  demanded: boolean;
  started: boolean;
}

/**
 * Brings blobs from memory, disk or the store, for the main thread. A blob is fetched once however
 * many ask for it; a failure goes to all that wait for it and is not remembered. What was fetched is
 * verified, answered, and then kept in memory and on disk. Errors are those of the store.
 */
export class Fetcher {
  readonly stats: FetcherStats = {
    memoryHits: 0,
    diskHits: 0,
    storeHits: 0,
    fetches: 0,
    prefetches: 0,
    failures: 0,
    bytesFetched: 0,
  };
  /** Large files that are to become whole in the disk cache; undefined without one. */
  readonly files: WholeFiles | undefined;
  readonly #blobs: BlobStore;
  readonly #cache: DiskCache | undefined;
  readonly #memory: LRUCache<Hash, Buffer>;
  readonly #queue = new PQueue({ concurrency: CONCURRENCY });
  readonly #fetches = new Map<Hash, Fetch>();
  readonly #memoryLimit: number;
  #prefetching = 0;
  /** A moving mean of blob sizes, to tell how many go into memory. */
  #typicalSize = MAX_BLOB_SIZE;

  /** @param cache without it, what was fetched is kept in memory only */
  constructor(blobs: BlobStore, cache: DiskCache | undefined, options: FetcherOptions = {}) {
    this.#blobs = blobs;
    this.#cache = cache;
    this.files = cache && new WholeFiles(cache);
    this.#memoryLimit = options.memoryLimit ?? MEMORY_LIMIT;
    const maxSize = Math.max(this.#memoryLimit, 1);
    this.#memory = new LRUCache({ maxSize, sizeCalculation: (content) => content.length || 1 });
  }

  /** The blob's decoded bytes, verified. They are shared: not to be written to. */
  async fetch(hash: Hash): Promise<Buffer> {
    const held = this.#memory.get(hash);
    if (held !== undefined) {
      this.stats.memoryHits++;
      return held;
    }
    const loaded = this.#cache?.load(hash);
    if (loaded === undefined) return this.#demand(hash);
    this.stats.diskHits++;
    this.#memory.set(hash, loaded);
    return loaded;
  }

  /**
   * Starts fetching blobs that are likely to be asked for, the next one first: as many as half of
   * the memory has room for, so that none is gone before its turn, and as there is room for beside
   * other prefetches. The rest is left out, and so is what is here already. Never fails.
   *
   * @returns how many at the front were not left out, or are here
   */
  prefetch(blobs: Iterable<Ahead>): number {
    let room = this.#memoryLimit / 2;
    let count = 0;
    for (const { blob, home } of blobs) {
      if (this.#cache?.has(blob) !== true) {
        room -= this.#typicalSize;
        if (room < 0) return count;
        if (!this.#memory.has(blob) && !this.#fetches.has(blob)) {
          if (this.#prefetching >= PREFETCHES) return count;
          this.#prefetching++;
          this.stats.prefetches++;
          const { content, done } = this.#start(blob, AHEAD, home);
          content.catch(() => {});
          done.then(() => this.#prefetching--);
        }
      }
      count++;
    }
    return count;
  }

  /**
   * Executes a plan: fills `target`, which is at least as long as the plan, and returns the plan's
   * length in bytes. Once the promise is settled, `target` is not written to any more.
   */
  async read(plan: readonly Segment[], target: Buffer): Promise<number> {
    const parts: Promise<void>[] = [];
    let at = 0;
    for (const segment of plan) {
      parts.push(this.#readPart(segment, target, at));
      at += segment.length;
    }
    for (const outcome of await Promise.allSettled(parts)) if (outcome.status === "rejected") throw outcome.reason;
    return at;
  }

  /** Waits until all that was fetched has reached the disk cache. */
  async settled(): Promise<void> {
    await this.#queue.onIdle();
    await this.files?.settled();
  }

  /** Gives up what has not started, with the error "interrupted", and waits for the rest. */
  async close(): Promise<void> {
    this.#queue.clear();
    for (const [hash, fetch] of this.#fetches) {
      if (!fetch.started)
        fetch.fail(new DatamonError("interrupted", `blob ${hash} is not fetched: the reader is closing`));
    }
    await this.settled();
    await this.files?.close();
  }

  async #readPart(segment: Segment, target: Buffer, at: number): Promise<void> {
    if (segment.kind !== "blob") {
      readSegment(segment, this.#cache, target, at);
      return;
    }
    const held = this.#memory.get(segment.blob);
    if (held !== undefined) {
      this.stats.memoryHits++;
      copyPart(held, segment, target, at);
    } else if (readSegment(segment, this.#cache, target, at)) {
      this.stats.diskHits++;
    } else {
      copyPart(await this.#demand(segment.blob, segment.home), segment, target, at);
    }
  }

  #demand(hash: Hash, home?: Home): Promise<Buffer> {
    this.stats.storeHits++;
    const under = this.#fetches.get(hash);
    if (under === undefined) return this.#start(hash, DEMAND, home).content;
    if (!under.demanded && !under.started) this.#queue.setPriority(hash, DEMAND);
    under.demanded = true;
    return under.content;
  }

  #start(hash: Hash, priority: number, home: Home | undefined): Fetch {
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
    const arrived = (content: Buffer): void => {
      this.stats.fetches++;
      this.stats.bytesFetched += content.length;
      this.#typicalSize += (content.length - this.#typicalSize) / 8;
      this.#memory.set(hash, content);
      this.#fetches.delete(hash);
      resolve(content);
    };
    const fail = (error: unknown): void => {
      if (this.#fetches.get(hash) === fetch) this.#fetches.delete(hash);
      reject(error);
    };
    const demanded = priority === DEMAND;
    const fetch: Fetch = { content: promise, done: Promise.resolve(), fail, demanded, started: false };
    this.#fetches.set(hash, fetch);
    const task = async (): Promise<void> => {
      fetch.started = true;
      const content = await this.#blobs.get(hash);
      arrived(content);
      // Still in the queue's hands, so that a slow disk holds back fetching instead of filling memory.
      const kept = await this.#cache?.insertAsync(hash, content, home);
      if (kept && home !== undefined) this.files?.arrived(home.file, hash);
    };
    fetch.done = this.#queue.add(task, { priority, id: hash }).catch((error: unknown) => {
      this.stats.failures++;
      fail(error);
    });
    return fetch;
  }
}

function copyPart(content: Buffer, segment: Segment & { kind: "blob" }, target: Buffer, at: number): void {
  const { blob, offset, length } = segment;
  if (offset + length > content.length) throw beyondBlob(blob, offset, length, content.length);
  content.copy(target, at, offset, offset + length);
}
