import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { ByteString } from "../bytes.ts";
import type { Chunk } from "../content.ts";
import { DatamonError } from "../errors.ts";
import type { Hash } from "../hash.ts";
import { type ReadJob, type ReadMessage, type SmallFilesMessage, unpackStat } from "./messages.ts";
import { returnSlot, type SlotMemory, slotBuffer, slotMemory } from "./slots.ts";
import type { FileStat } from "./source.ts";

/** More threads than this and storing is the slower part. */
const MAX_READERS = 4;
/** In milliseconds: so long this thread has to have waited for those that are there before one more is worth its start. */
const PATIENCE = 20;
/** Chunks that may be on their way to the store beside those being filled. */
const SLOTS_TO_STORE = 6;

/** Bytes in memory that is used again: they stay valid until all who were given them have called `release`, once each. */
export interface HeldBytes {
  readonly content: Buffer;
  release(): void;
}

/** Gets what was read of a job's files, each named by its index, in order. */
export interface ReadHandlers {
  /** A small file: `stat.size` bytes at `offset` of `bytes`, which are not there where only hashes are wanted. */
  small(file: number, hash: Hash, stat: FileStat, bytes: HeldBytes | undefined, offset: number): void;
  /**
   * A chunk of a large file; one that starts at 0 begins the file anew. Zeros come without bytes.
   * Not called where only hashes are wanted.
   */
  chunk(file: number, chunk: Chunk, bytes: HeldBytes | undefined): void;
  /** A large file, all of whose chunks were handed over. */
  large(file: number, hash: Hash, stat: FileStat): void;
  /** A file that cannot be read. */
  failed(file: number, error: DatamonError): void;
  /** Content bytes that were read since the last call. */
  progress(bytes: number): void;
}

interface Reader {
  readonly worker: Worker;
  job: { handlers: ReadHandlers; resolve(): void; reject(error: unknown): void } | undefined;
}

/** Threads that read files: as many as there are cores, four at most, each started when it is first needed. */
export class ReaderPool {
  readonly #keepContent: boolean;
  readonly #limit = Math.min(MAX_READERS, availableParallelism());
  #readers: Reader[] = [];
  #slots: SlotMemory | undefined;
  /** Memory for small files' contents, used again and again: what V8 frees by itself piles up first. */
  #spare: ArrayBuffer[] = [];
  /** How long this thread had waited, in all, when the newest of the others first told something; undefined before that. */
  #waited: number | undefined;

  /** @param keepContent whether contents are wanted, or hashes alone */
  constructor(keepContent: boolean) {
    this.#keepContent = keepContent;
  }

  /** How many threads there can be. */
  get size(): number {
    return this.#limit;
  }

  /** How many jobs can be taken. */
  get free(): number {
    return this.#limit - this.#readers.filter((reader) => reader.job !== undefined).length;
  }

  /**
   * Whether a job that keeps this thread as busy as the other one should be given out now: to a thread that is
   * there, or to one more where this thread had nothing to do meanwhile. With so much to do here, a thread
   * more would take a core from this one, and time to start.
   */
  get wanting(): boolean {
    if (this.#readers.length === 0 || this.#readers.some((reader) => reader.job === undefined)) return true;
    return this.#waited !== undefined && waited() - this.#waited > PATIENCE;
  }

  /**
   * Has one thread, which must be free, read these files. Settles when it is through with them;
   * rejects where a handler throws, the thread fails or `stop` is called.
   */
  async run(paths: readonly ByteString[], handlers: ReadHandlers): Promise<void> {
    const reader = this.#readers.find((candidate) => candidate.job === undefined) ?? this.#start();
    reader.worker.ref();
    try {
      await new Promise<void>((resolve, reject) => {
        reader.job = { handlers, resolve, reject };
        const job: ReadJob = { paths, memory: this.#spare };
        reader.worker.postMessage(job, this.#spare);
        this.#spare = [];
      });
    } finally {
      reader.job = undefined;
      // A thread that is being ended has to keep the process alive until it has.
      if (this.#readers.includes(reader)) reader.worker.unref();
    }
  }

  /** Ends all threads, whatever they do. New ones start when they are needed. */
  async stop(): Promise<void> {
    const readers = this.#readers;
    this.#readers = [];
    this.#slots = undefined;
    await Promise.all(
      readers.map(async (reader) => {
        reader.job?.reject(new DatamonError("interrupted", "reading was stopped"));
        reader.worker.ref();
        await reader.worker.terminate();
      }),
    );
  }

  #start(): Reader {
    if (this.#keepContent) this.#slots ??= slotMemory(SLOTS_TO_STORE + this.#limit);
    const slots = this.#slots;
    // This module and the thread's are both sources, or both compiled.
    const extension = import.meta.url.slice(import.meta.url.lastIndexOf("."));
    const worker = new Worker(new URL(`./worker${extension}`, import.meta.url), {
      workerData: slots,
      resourceLimits: { maxYoungGenerationSizeMb: 8 },
    });
    const reader: Reader = { worker, job: undefined };
    this.#waited = undefined;
    worker.on("message", (message: ReadMessage) => {
      this.#waited ??= waited();
      try {
        this.#handle(message, reader, slots);
      } catch (error) {
        reader.job?.reject(error);
      }
    });
    worker.on("error", (error) => {
      this.#readers = this.#readers.filter((other) => other !== reader);
      reader.job?.reject(error);
    });
    this.#readers.push(reader);
    return reader;
  }

  #handle(message: ReadMessage, { job }: Reader, slots: SlotMemory | undefined): void {
    if (job === undefined) return;
    const { handlers } = job;
    switch (message.kind) {
      case "small":
        this.#handleSmall(message, handlers);
        break;
      case "chunk": {
        const { file, hash, start, length, slot } = message;
        handlers.progress(length);
        const bytes = slot === undefined || slots === undefined ? undefined : slotBytes(slots, slot, length);
        handlers.chunk(file, { hash, start, length, zero: slot === undefined }, bytes);
        break;
      }
      case "progress":
        handlers.progress(message.bytes);
        break;
      case "large":
        handlers.large(message.file, message.hash, message.stat);
        break;
      case "failed": {
        const { code, message: text, hint } = message.error;
        handlers.failed(message.file, new DatamonError(code, text, hint === undefined ? {} : { hint }));
        break;
      }
      case "done":
        this.#spare.push(...message.memory);
        job.resolve();
        break;
    }
  }

  #handleSmall({ first, hashes, stats, content }: SmallFilesMessage, handlers: ReadHandlers): void {
    let held = hashes.length;
    const release = (): void => {
      if (--held === 0 && content !== undefined) this.#spare.push(content.buffer);
    };
    const bytes = content && { content: Buffer.from(content.buffer, content.byteOffset, content.length), release };
    let at = 0;
    hashes.forEach((hash, index) => {
      const stat = unpackStat(stats, index);
      handlers.small(first + index, hash, stat, bytes, at);
      at += stat.size;
    });
    handlers.progress(at);
  }
}

/** How long this thread has waited for something to do since it began, in milliseconds. */
function waited(): number {
  return performance.eventLoopUtilization().idle;
}

function slotBytes(slots: SlotMemory, slot: number, length: number): HeldBytes {
  return { content: slotBuffer(slots, slot).subarray(0, length), release: () => returnSlot(slots, slot) };
}
