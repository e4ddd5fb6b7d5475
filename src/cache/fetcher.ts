import PQueue from "p-queue";
import { type BlobStore, DatamonError, type Hash, HEADER_SIZE, MAX_BLOB_SIZE, type Memory } from "../cas/index.ts";
import { Arena } from "./arena.ts";
import { ContentMemory, type Held } from "./content-memory.ts";
import { beyondBlob, type DiskCache } from "./disk-cache.ts";
import type { SharedContent } from "./memory-directory.ts";
import { type Home, readSegment, type Segment, type Slice } from "./plan.ts";
import { SliceChoice } from "./slice-choice.ts";
import { WholeFiles } from "./whole-files.ts";

const MIB = 1024 * 1024;
/** Decoded content in memory: fetched ahead of its readers, under way, or just read. Twice what a gigabyte a second takes in 30 ms. */
const MEMORY_LIMIT = 64 * MIB;
/** Memory that is free for the next fetches. */
const SPARE_MEMORY = 32 * MIB;
/** Fetches at once; the difference to the prefetches is what only demand can have. */
const CONCURRENCY = 24;
const PREFETCHES = 16;
const PAGE = 4096;
const DEMAND = 1;
const AHEAD = 0;

export interface FetcherOptions {
  /**
   * Bytes of decoded content in memory, default 64 MiB; up to half of it is fetched ahead of readers. With 0
   * nothing is fetched ahead, and content is held only until it is answered and on disk.
   */
  readonly memoryLimit?: number;
}

/** Counts since the fetcher was made; a hit is a blob that was asked for and found there. */
export interface FetcherStats {
  memoryHits: number;
  diskHits: number;
  /** Requests that waited for a fetch: their own, or one that was under way already. */
  storeHits: number;
  /** Blobs, and slices of blobs, fetched from the store, and how many of them nobody had asked for yet. */
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

/** Brings content from the store, verified; undefined where it cannot be had in that way. */
type Bring = () => Promise<Buffer | undefined>;

interface Fetch {
  readonly content: Promise<Held | undefined>;
  /** Settles when nothing is left to do, whatever came of it. */
  done: Promise<void>;
  readonly fail: (error: unknown) => void;
  /** How many wait for it; each has a pin when it comes. */
  waiting: number;
  started: boolean;
  /** What came, until it is on disk. */
  held: Held | undefined;
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
  readonly #memory: ContentMemory;
  readonly #arena: Arena;
  readonly #queue = new PQueue({ concurrency: CONCURRENCY });
  readonly #fetches = new Map<Hash, Fetch>();
  readonly #slices = new SliceChoice();
  readonly #aheadLimit: number;
  #prefetching = 0;
  #prefetchingBytes = 0;
  /** A moving mean of blob sizes, to tell how many go into memory. */
  #typicalSize = MAX_BLOB_SIZE;

  /** @param cache without it, what was fetched is kept in memory only */
  constructor(blobs: BlobStore, cache: DiskCache | undefined, options: FetcherOptions = {}) {
    this.#blobs = blobs;
    this.#cache = cache;
    this.files = cache && new WholeFiles(cache);
    const limit = options.memoryLimit ?? MEMORY_LIMIT;
    this.#aheadLimit = limit / 2;
    this.#arena = new Arena(limit + SPARE_MEMORY);
    this.#memory = new ContentMemory(limit, this.#arena);
  }

  /** For other threads: what is in memory here. */
  get shared(): SharedContent {
    return this.#memory.shared;
  }

  /** The blob's decoded bytes, verified, in a new buffer. */
  async fetch(hash: Hash, home?: Home): Promise<Buffer> {
    const held = this.#pin(hash);
    if (held === undefined) {
      const loaded = this.#cache?.load(hash);
      if (loaded !== undefined) {
        this.stats.diskHits++;
        return loaded;
      }
    } else this.stats.memoryHits++;
    const pinned = held ?? (await this.#demand(hash, home));
    try {
      return Buffer.from(pinned.content);
    } finally {
      this.#memory.unpin(pinned);
    }
  }

  /** Brings a blob into the disk cache. False where it does not keep it. */
  async keep({ blob, home }: Ahead): Promise<boolean> {
    const cache = this.#cache;
    if (cache === undefined) return false;
    if (!cache.has(blob)) {
      this.#memory.unpin(await this.#demand(blob, home));
      await this.#fetches.get(blob)?.done;
    }
    return cache.has(blob);
  }

  /**
   * Starts fetching blobs that are likely to be asked for, the next one first: as many as half of
   * the memory has room for, so that none is gone before its turn, and as there is room for beside
   * other prefetches. The rest is left out, and so is what is here already. Never fails.
   *
   * @param asked how many at the front were not left out the last time
   * @returns how many at the front were not left out, or are here
   */
  prefetch(blobs: readonly Ahead[], asked = 0): number {
    let room = this.#aheadLimit;
    let count = 0;
    for (const { blob, home } of blobs) {
      const here = this.#memory.has(blob) || this.#fetches.has(blob);
      if (here || (count >= asked && this.#cache?.has(blob) !== true)) {
        const size = home?.length ?? this.#typicalSize;
        room -= size;
        if (room < 0) return count;
        if (!here) {
          if (this.#prefetching >= PREFETCHES || this.#prefetchingBytes + size > this.#aheadLimit) return count;
          this.#prefetching++;
          this.#prefetchingBytes += size;
          this.stats.prefetches++;
          const { content, done } = this.#start(blob, AHEAD, home, this.#bringBlob(blob, home));
          content.catch(() => {});
          done.then(() => {
            this.#prefetching--;
            this.#prefetchingBytes -= size;
          });
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
    let at = 0;
    const places = plan.map(({ length }) => {
      at += length;
      return target.subarray(at - length, at);
    });
    await this.#execute(plan, places, (parts) => {
      for (const [index, part] of parts.entries()) if (part !== places[index]) part.copy(places[index]!);
    });
    return at;
  }

  /**
   * Executes a plan, and has `use` called once with its bytes, in as many pieces as the plan has segments.
   * They are good until it returns.
   */
  async deliver(plan: readonly Segment[], use: (pieces: readonly Buffer[]) => void): Promise<void> {
    await this.#execute(plan, [], use);
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

  /** @param places where the bytes of a segment that lies on this machine are to be put */
  async #execute(
    plan: readonly Segment[],
    places: readonly Buffer[],
    use: (pieces: readonly Buffer[]) => void,
  ): Promise<void> {
    const pins: Held[] = [];
    const parts = plan.map((segment, index) => this.#part(segment, places[index], pins));
    try {
      const pieces: Buffer[] = [];
      for (const outcome of await Promise.allSettled(parts)) {
        if (outcome.status === "rejected") throw outcome.reason;
        pieces.push(outcome.value);
      }
      use(pieces);
    } finally {
      for (const held of pins) this.#memory.unpin(held);
    }
  }

  async #part(segment: Segment, place: Buffer | undefined, pins: Held[]): Promise<Buffer> {
    const { length } = segment;
    if (segment.kind === "blob") {
      const { blob, offset, slice } = segment;
      const whole = this.#pin(blob);
      const held = whole ?? (slice && this.#pin(slice.file));
      if (held !== undefined) {
        pins.push(held);
        this.stats.memoryHits++;
        return partOf(held, whole === undefined ? offset - slice!.offset : offset, length, blob);
      }
    }
    if (segment.kind !== "blob") {
      const target = place ?? Buffer.allocUnsafe(length);
      readSegment(segment, this.#cache, target, 0);
      return target;
    }
    const { blob, offset, home, slice } = segment;
    // Memory is taken only for what is there: that it comes to nothing would still have the garbage collector run.
    if (!this.#fetches.has(blob) && this.#isOnDisk(segment)) {
      const target = place ?? Buffer.allocUnsafe(length);
      if (readSegment(segment, this.#cache, target, 0)) {
        this.stats.diskHits++;
        return target;
      }
    }
    if (slice !== undefined && this.#isAlone(blob, slice)) {
      const held = await this.#demandSlice(blob, slice);
      if (held !== undefined) {
        pins.push(held);
        return partOf(held, offset - slice.offset, length, blob);
      }
    }
    const held = await this.#demand(blob, home);
    pins.push(held);
    return partOf(held, offset, length, blob);
  }

  #isOnDisk({ blob, slice }: Segment & { kind: "blob" }): boolean {
    return (this.#cache?.locate(blob) ?? (slice && this.#cache?.locate(slice.file))) !== undefined;
  }

  /** The content, where it is in memory: pinned, for the caller to unpin. */
  #pin(hash: Hash): Held | undefined {
    return this.#memory.pin(hash) ?? this.#memory.pinHeld(this.#fetches.get(hash)?.held);
  }

  /** True where a small file is to come without the rest of its blob, or is on its way so. */
  #isAlone(blob: Hash, slice: Slice): boolean {
    if (this.#fetches.has(blob)) return false;
    return this.#fetches.has(slice.file) || this.#slices.isWanted(blob, slice);
  }

  /** Waits for a blob; what comes is pinned. */
  async #demand(hash: Hash, home?: Home): Promise<Held> {
    for (;;) {
      const held = await this.#join(hash, home, this.#bringBlob(hash, home));
      if (held !== undefined) return held;
      // What was under way was the slice of another blob, or of this very one, that could not be had alone.
    }
  }

  /** The same for a small file's part of a blob, which is kept as a blob of its own; undefined where only the whole blob can be had. */
  async #demandSlice(blob: Hash, { file, offset, length }: Slice): Promise<Held | undefined> {
    const held = await this.#join(file, undefined, () => this.#blobs.getSlice(blob, offset, length, file));
    this.#slices.learn(held !== undefined);
    return held;
  }

  #join(hash: Hash, home: Home | undefined, bring: Bring): Promise<Held | undefined> {
    this.stats.storeHits++;
    const under = this.#fetches.get(hash);
    if (under === undefined) {
      const fetch = this.#start(hash, DEMAND, home, bring);
      fetch.waiting++;
      return fetch.content;
    }
    if (under.held !== undefined) return Promise.resolve(this.#memory.pinHeld(under.held));
    if (under.waiting === 0 && !under.started) this.#queue.setPriority(hash, DEMAND);
    under.waiting++;
    return under.content;
  }

  /** The blob lies to pages as it will in the container of its file, so that it can be written past the page cache. */
  #bringBlob(hash: Hash, home: Home | undefined): Bring {
    const arena = this.#arena;
    const phase = (home?.start ?? 0) % PAGE;
    const frame = (phase + PAGE - HEADER_SIZE) % PAGE;
    const memory: Memory = { take: (length) => arena.take(length, frame), give: (part) => arena.give(part) };
    return async () => arena.bring(await this.#blobs.get(hash, memory), phase);
  }

  #start(hash: Hash, priority: number, home: Home | undefined, bring: Bring): Fetch {
    const { promise, resolve, reject } = Promise.withResolvers<Held | undefined>();
    const forget = (): void => {
      if (this.#fetches.get(hash) === fetch) this.#fetches.delete(hash);
    };
    const fail = (error: unknown): void => {
      forget();
      reject(error);
    };
    const fetch: Fetch = {
      content: promise,
      done: Promise.resolve(),
      fail,
      waiting: 0,
      started: false,
      held: undefined,
    };
    this.#fetches.set(hash, fetch);
    const task = async (): Promise<void> => {
      fetch.started = true;
      const reserved = priority === AHEAD ? (home?.length ?? this.#typicalSize) : 0;
      this.#memory.reserve(reserved);
      let content: Buffer | undefined;
      try {
        content = await bring();
      } finally {
        this.#memory.reserve(-reserved);
      }
      if (content === undefined) {
        forget();
        resolve(undefined);
        return;
      }
      this.stats.fetches++;
      this.stats.bytesFetched += content.length;
      this.#typicalSize += (content.length - this.#typicalSize) / 8;
      // A pin for each that waits, and one for the disk.
      const held = this.#memory.hold(hash, content, fetch.waiting + 1);
      fetch.held = held;
      resolve(held);
      try {
        // Still in the queue's hands, so that a slow disk holds back fetching instead of filling memory.
        const kept = await this.#cache?.insertAsync(hash, content, home);
        if (kept && home !== undefined) this.files?.arrived(home.file, hash);
      } finally {
        forget();
        this.#memory.unpin(held);
      }
    };
    fetch.done = this.#queue.add(task, { priority, id: hash }).catch((error: unknown) => {
      this.stats.failures++;
      fail(error);
    });
    return fetch;
  }
}

function partOf({ content }: Held, offset: number, length: number, blob: Hash): Buffer {
  if (offset + length > content.length) throw beyondBlob(blob, offset, length, content.length);
  return content.subarray(offset, offset + length);
}
