import type { BlobStore } from "../blobs.ts";
import type { ByteString } from "../bytes.ts";
import { type Chunk, ChunkListHasher, type Extent, type FileContent, LARGE_FILE } from "../content.ts";
import { DatamonError, ioError } from "../errors.ts";
import { type Hash, hashOf } from "../hash.ts";
import { Condition } from "./condition.ts";
import { Fifo } from "./fifo.ts";
import { Flow, type Pending, type Stages } from "./flow.ts";
import { GROUP_SPAN, type Group, Grouper, spanOf } from "./grouping.ts";
import type { HeldBytes, ReaderPool } from "./pool.ts";
import { Puts } from "./puts.ts";
import { expectedSizeOf, type FileHandlers, type QueuedFile, ReadQueue } from "./read-queue.ts";
import { type Readable, rechunk } from "./rechunk.ts";
import type { SmallFiles } from "./small-files.ts";
import type { BytesSource, FileStat, ObjectSource, PatchedSource, Source } from "./source.ts";

/** Results that may wait for those before them: those of a whole group, and enough to keep the threads busy. */
const WINDOW = GROUP_SPAN + 4096;
/** Large files that this thread reads at one time. */
const MAX_STREAMS = 2;
/** Bytes of small content from memory that may wait to be grouped. */
const MAX_INLINE = 8 * 1024 * 1024;
/** Objects of a bucket that are read at one time. */
const MAX_OBJECTS = 64;
/** How often one is read that changes meanwhile. */
const TRIES = 3;

/** Where a file's content is. */
export interface Placed {
  readonly content: FileContent;
  /** The file as it was read, where it was a file on disk. */
  readonly stat: FileStat | undefined;
}

/** One source's result. */
export type PlaceResult<T> =
  | { readonly tag: T; readonly placed: Placed }
  | { readonly tag: T; readonly error: DatamonError };

/** What has been done so far. */
export interface PlacerStats {
  /** Blobs that were not in the store. */
  blobsPut: number;
  /** Their stored size. */
  bytesPut: number;
  /** Content bytes read, again where a file changed meanwhile. */
  bytesRead: number;
  /** Content bytes that were read and turned out to be in the store. */
  bytesReused: number;
}

/** What a placement works with. */
export interface PlacementTools {
  readonly blobs: BlobStore;
  readonly pool: ReaderPool;
  readonly smallFiles: SmallFiles;
  readonly stats: PlacerStats;
  readonly concurrency: number;
  readonly signal: AbortSignal | undefined;
  reuse(hash: Hash, size: number): readonly Extent[] | undefined;
  onBytes(bytes: number): void;
}

/** `size` bytes at `offset` of `bytes`. */
interface SmallContent {
  readonly hash: Hash;
  readonly bytes: HeldBytes;
  readonly offset: number;
  readonly size: number;
}

/** One source on its way. */
class Slot<T> implements Pending<PlaceResult<T>>, QueuedFile {
  readonly tag: T;
  readonly span: number;
  readonly path: ByteString;
  readonly expectedSize: number;
  /** True where grouping need not wait for it. */
  settled: boolean;
  /** True where grouping has come past it. */
  passed = false;
  /** A small file's content, until it is grouped. */
  small: SmallContent | undefined;
  stat: FileStat | undefined;
  /** A large file's extents so far. */
  extents: Extent[] | undefined;
  grouped: { readonly hash: Hash; readonly size: number; readonly group: Group; readonly offset: number } | undefined;
  content: FileContent | undefined;
  error: DatamonError | undefined;

  constructor(tag: T, span: number, expectedSize: number, path: ByteString = "" as ByteString) {
    this.tag = tag;
    this.span = span;
    this.expectedSize = expectedSize;
    this.path = path;
    this.settled = expectedSize >= LARGE_FILE;
  }

  result(): PlaceResult<T> | undefined {
    const { tag, stat, content, error, grouped } = this;
    if (error !== undefined) return { tag, error };
    if (content !== undefined) return { tag, placed: { content, stat } };
    if (grouped?.group.hash === undefined) return undefined;
    const { hash, size, group, offset } = grouped;
    const extents = [{ start: 0, blob: group.hash!, offset, length: size }];
    return { tag, placed: { content: { hash, size, extents }, stat } };
  }
}

/** One run of `Placer.place`. */
export class Placement<T> implements Stages<{ tag: T; source: Source }, PlaceResult<T>>, FileHandlers<Slot<T>> {
  readonly #tools: PlacementTools;
  readonly #flow = new Flow<PlaceResult<T>>(WINDOW);
  readonly #queue: ReadQueue<Slot<T>>;
  readonly #puts: Puts;
  readonly #grouper = new Grouper((hash, content, release) => this.#puts.addCounted(hash, content, release));
  /** What grouping has not come past, in order. */
  readonly #ungrouped = new Fifo<Slot<T>>();
  /** Notified when less is under way of what this thread reads itself. */
  readonly #inlineDone = new Condition();
  #span = 0;
  #streams = 0;
  #objects = 0;
  /** Ends what is asked for in vain. */
  readonly #abort = new AbortController();
  #inlineBytes = 0;
  #grouping = false;
  #ended = false;

  constructor(tools: PlacementTools) {
    this.#tools = tools;
    this.#queue = new ReadQueue(tools.pool, this);
    this.#puts = new Puts(tools.blobs, {
      concurrency: tools.concurrency,
      stored: (content, stored) => this.#countStored(content, stored),
      failed: (error) => this.#flow.fail(error),
      settled: () => this.#flow.changed(),
    });
  }

  run(sources: AsyncIterable<{ tag: T; source: Source }>): AsyncGenerator<PlaceResult<T>, void, undefined> {
    return this.#flow.run(sources, this, this.#tools.signal);
  }

  accept({ tag, source }: { tag: T; source: Source }): Slot<T> | Promise<Slot<T>> {
    if (source.kind === "object") return this.#acceptObject(tag, source);
    if (source.kind !== "path") return this.#acceptReadable(tag, source);
    const slot = this.#slot(tag, expectedSizeOf(source), source.path);
    this.#queue.add(slot);
    if (slot.settled) void this.#group();
    return slot;
  }

  pause(): void {
    this.#queue.flush();
  }

  end(): void {
    this.#ended = true;
    this.#queue.flush();
    void this.#group();
  }

  idle(): boolean {
    return this.#puts.idle;
  }

  async stop(completed: boolean): Promise<void> {
    this.#queue.stop();
    this.#puts.stop();
    this.#inlineDone.notify();
    if (!completed) {
      this.#abort.abort(new DatamonError("interrupted", "reading was stopped"));
      // They may tell of groups that were never stored.
      this.#tools.smallFiles.clear();
      await this.#tools.pool.stop();
    }
    await this.#puts.settled();
  }

  small(slot: Slot<T>, hash: Hash, stat: FileStat, bytes: HeldBytes | undefined, offset: number): void {
    slot.stat = stat;
    slot.small = { hash, bytes: bytes!, offset, size: stat.size };
    slot.settled = true;
    // It was large when it was queued.
    if (slot.passed) this.#place(slot);
  }

  chunk(slot: Slot<T>, chunk: Chunk, bytes: HeldBytes | undefined): void {
    if (chunk.start === 0) slot.extents = undefined;
    if (bytes === undefined) return;
    slot.extents ??= [];
    slot.extents.push({ start: chunk.start, blob: chunk.hash, offset: 0, length: chunk.length });
    this.#puts.add(chunk.hash, bytes.content, bytes.release);
  }

  large(slot: Slot<T>, hash: Hash, stat: FileStat): void {
    slot.stat = stat;
    slot.content = { hash, size: stat.size, extents: slot.extents ?? [] };
    slot.settled = true;
  }

  failed(slot: Slot<T>, error: DatamonError): void {
    slot.error = error;
    slot.settled = true;
  }

  progress(bytes: number): void {
    this.#tools.stats.bytesRead += bytes;
    this.#tools.onBytes(bytes);
  }

  changed(): void {
    void this.#group();
  }

  broken(error: unknown): void {
    this.#flow.fail(error);
  }

  #slot(tag: T, size: number, path?: ByteString): Slot<T> {
    const slot = new Slot(tag, this.#span, size, path);
    this.#span += spanOf(size);
    this.#ungrouped.push(slot);
    return slot;
  }

  async #acceptReadable(tag: T, source: BytesSource | PatchedSource): Promise<Slot<T>> {
    const readable = this.#readable(source);
    const slot = this.#slot(tag, readable.size);
    if (readable.size < LARGE_FILE) await this.#readSmall(slot, readable);
    else void this.#stream(slot, readable);
    void this.#group();
    while (this.#inlineBytes > MAX_INLINE || this.#streams >= MAX_STREAMS) {
      if (this.#flow.stopped) break;
      await this.#inlineDone.wait();
    }
    return slot;
  }

  async #acceptObject(tag: T, source: ObjectSource): Promise<Slot<T>> {
    const slot = this.#slot(tag, source.size);
    void this.#readObject(slot, source);
    void this.#group();
    while (
      (this.#inlineBytes > MAX_INLINE || this.#streams >= MAX_STREAMS || this.#objects >= MAX_OBJECTS) &&
      !this.#flow.stopped
    ) {
      await this.#inlineDone.wait();
    }
    return slot;
  }

  /** Reads an object, and again where it changes meanwhile. */
  async #readObject(slot: Slot<T>, source: ObjectSource): Promise<void> {
    const large = source.size >= LARGE_FILE;
    if (large) this.#streams++;
    else this.#inlineBytes += source.size;
    this.#objects++;
    try {
      for (let tries = 1; slot.small === undefined && slot.content === undefined; tries++) {
        try {
          await this.#readOnce(slot, source, tries);
        } catch (error) {
          if (!(error instanceof DatamonError) || error.code !== "changed" || tries === TRIES) throw error;
        }
      }
    } catch (error) {
      slot.error = ioError("read an object", error);
    } finally {
      if (large) this.#streams--;
      else if (slot.small === undefined) this.#inlineBytes -= source.size;
      this.#objects--;
      slot.settled = true;
      if (slot.passed) this.#place(slot);
      this.#inlineDone.notify();
      void this.#group();
    }
  }

  async #readOnce(slot: Slot<T>, source: ObjectSource, tries: number): Promise<void> {
    const object = await source.open(tries, this.#abort.signal);
    const { size } = object.stat;
    const read = async (offset: number, length: number): Promise<Buffer> => {
      const bytes = await object.read(offset, length);
      this.progress(bytes.length);
      return bytes;
    };
    slot.stat = object.stat;
    if (size >= LARGE_FILE) {
      slot.content = await this.#store({ size, base: undefined, dirty: [], read });
    } else {
      const content = await read(0, size);
      const held = source.size < LARGE_FILE ? source.size : 0;
      const bytes = { content, release: () => this.#releaseInline(held) };
      slot.small = { hash: hashOf(content), bytes, offset: 0, size };
    }
  }

  async #readSmall(slot: Slot<T>, readable: Readable): Promise<void> {
    // What is in the open batch comes before this one, which waits for it.
    this.#queue.flush();
    try {
      const content = await readable.read(0, readable.size);
      this.#inlineBytes += content.length;
      const bytes = { content, release: () => this.#releaseInline(content.length) };
      slot.small = { hash: hashOf(content), bytes, offset: 0, size: content.length };
    } catch (error) {
      slot.error = ioError("read changed content", error);
    }
    slot.settled = true;
  }

  #readable(source: BytesSource | PatchedSource): Readable {
    if (source.kind === "bytes") {
      const { bytes } = source;
      const read = async (offset: number, length: number): Promise<Buffer> => {
        this.progress(length);
        return bytes.subarray(offset, offset + length);
      };
      return { size: bytes.length, base: undefined, dirty: [], read };
    }
    const { size, base, dirty } = source;
    const read = async (offset: number, length: number): Promise<Buffer> => {
      const bytes = await source.read(offset, length);
      this.progress(bytes.length);
      return bytes;
    };
    return { size, base: base.size < LARGE_FILE ? undefined : base, dirty, read };
  }

  /** Places a large file that is read by this thread. */
  async #stream(slot: Slot<T>, readable: Readable): Promise<void> {
    this.#streams++;
    try {
      slot.content = await this.#store(readable);
    } catch (error) {
      slot.error = ioError("read changed content", error);
    } finally {
      this.#streams--;
      this.#inlineDone.notify();
      this.#flow.changed();
    }
  }

  /** Has a large file's chunks put as they come. */
  async #store(readable: Readable): Promise<FileContent> {
    const list = new ChunkListHasher();
    const extents: Extent[] = [];
    for await (const { hash, start, length, zero, content } of rechunk(readable)) {
      if (this.#flow.stopped) throw new DatamonError("interrupted", "reading was stopped");
      list.add(hash, length);
      if (!zero) extents.push({ start, blob: hash, offset: 0, length });
      if (content !== undefined) this.#puts.addCounted(hash, content, () => {});
      await this.#puts.room();
    }
    return { hash: list.digest(), size: readable.size, extents };
  }

  /** Groups small files, in order, as far as they have been read. */
  async #group(): Promise<void> {
    if (this.#grouping) return;
    this.#grouping = true;
    try {
      for (let slot = this.#ungrouped.first; slot?.settled === true; slot = this.#ungrouped.first) {
        this.#ungrouped.shift();
        slot.passed = true;
        this.#grouper.passed(slot.span);
        this.#place(slot);
        if (this.#puts.isFull) {
          this.#flow.changed();
          await this.#puts.room();
          if (this.#flow.stopped) return;
        }
        if (slot.path !== "") this.#queue.release(slot);
      }
      if (this.#ended && this.#queue.idle && this.#objects === 0) this.#grouper.end();
    } catch (error) {
      this.#flow.fail(error);
    } finally {
      this.#grouping = false;
      this.#flow.changed();
    }
  }

  #releaseInline(bytes: number): void {
    this.#inlineBytes -= bytes;
    this.#inlineDone.notify();
  }

  /** Finds a place for a small file's content. */
  #place(slot: Slot<T>): void {
    if (slot.small === undefined) return;
    const { hash, bytes, offset, size } = slot.small;
    const extents = size === 0 ? [] : this.#tools.reuse(hash, size);
    if (extents !== undefined) {
      slot.content = { hash, size, extents };
      this.#tools.stats.bytesReused += size;
    } else {
      slot.grouped = {
        hash,
        size,
        ...this.#placeInGroup(hash, bytes.content.subarray(offset, offset + size), slot.span),
      };
    }
    slot.small = undefined;
    bytes.release();
  }

  #placeInGroup(hash: Hash, content: Buffer, span: number): { group: Group; offset: number } {
    const known = this.#tools.smallFiles.find(hash);
    if (known !== undefined) {
      this.#tools.stats.bytesReused += content.length;
      return known;
    }
    const place = this.#grouper.add(hash, content, span);
    this.#tools.smallFiles.add(hash, place.group, place.offset);
    return place;
  }

  #countStored(content: number, stored: number): void {
    const { stats } = this.#tools;
    if (stored === 0) {
      stats.bytesReused += content;
    } else {
      stats.blobsPut++;
      stats.bytesPut += stored;
    }
  }
}
