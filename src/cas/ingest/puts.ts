import PQueue from "p-queue";
import type { BlobStore } from "../blobs.ts";
import type { Hash } from "../hash.ts";
import { Condition } from "./condition.ts";

/** How much counted content, in bytes, may be on its way before `room` asks for patience. */
const MAX_CONTENT = 16 * 1024 * 1024;

export interface PutsOptions {
  readonly concurrency: number;
  /** Is told, for each blob, the length of its content and the bytes stored, 0 where it was there. */
  stored(content: number, stored: number): void;
  /** Is told of each failure. */
  failed(error: unknown): void;
  /** Is told of each end, be it a failure or not. */
  settled(): void;
}

/** The puts of one upload: several at a time, and bounded in memory. */
export class Puts {
  readonly #blobs: BlobStore;
  readonly #options: PutsOptions;
  readonly #queue: PQueue;
  readonly #underWay = new Set<Hash>();
  readonly #released = new Condition();
  #content = 0;
  #stopped = false;

  constructor(blobs: BlobStore, options: PutsOptions) {
    this.#blobs = blobs;
    this.#options = options;
    this.#queue = new PQueue({ concurrency: options.concurrency });
  }

  /** Puts a blob when its turn comes. `release` is called when `content` is no longer needed. */
  add(hash: Hash, content: Buffer, release: () => void): void {
    if (this.#underWay.has(hash)) {
      this.#options.stored(content.length, 0);
      release();
      return;
    }
    this.#underWay.add(hash);
    void this.#queue.add(async () => {
      try {
        if (!this.#stopped) this.#options.stored(content.length, await this.#blobs.put(hash, content));
      } catch (error) {
        this.#options.failed(error);
      } finally {
        this.#underWay.delete(hash);
        release();
        this.#options.settled();
      }
    });
  }

  /** The same for content whose memory nothing else bounds: it counts towards what `room` waits for. */
  addCounted(hash: Hash, content: Buffer, release: () => void): void {
    this.#content += content.length;
    this.add(hash, content, () => {
      this.#content -= content.length;
      release();
      this.#released.notify();
    });
  }

  /** True where more content should wait for `room`. */
  get isFull(): boolean {
    return this.#content > MAX_CONTENT;
  }

  /** Resolves when more content may be added. */
  async room(): Promise<void> {
    while (this.isFull) await this.#released.wait();
  }

  /** True where no put is under way. */
  get idle(): boolean {
    return this.#underWay.size === 0;
  }

  /** Drops the puts that have not begun. */
  stop(): void {
    this.#stopped = true;
  }

  /** Resolves when no put is under way. */
  async settled(): Promise<void> {
    await this.#queue.onIdle();
  }
}
