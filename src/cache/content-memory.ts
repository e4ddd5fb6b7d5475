import type { BufferPool, Hash } from "../cas/index.ts";
import { MemoryHints } from "./memory-hints.ts";

/** Content in memory. While it is pinned, or not evicted, its bytes stay. */
export interface Held {
  readonly content: Buffer;
  pins: number;
  evicted: boolean;
}

/**
 * Decoded content in memory, the oldest of it evicted, whose buffers are used again. By its last use, what was
 * read would outlive what came before that and still waits for its reader.
 */
export class ContentMemory {
  readonly #limit: number;
  readonly #pool: BufferPool;
  readonly #hints = new MemoryHints();
  /** In the order in which it came. */
  readonly #held = new Map<Hash, Held>();
  #bytes = 0;
  #reserved = 0;

  /**
   * @param limit in bytes, of what is held and what is reserved; what is pinned may exceed it
   * @param pool where the memory goes that is not needed any more
   */
  constructor(limit: number, pool: BufferPool) {
    this.#limit = limit;
    this.#pool = pool;
  }

  /** For other threads, see `MemoryHints`. */
  get hints(): Int32Array {
    return this.#hints.slots;
  }

  has(hash: Hash): boolean {
    return this.#held.has(hash);
  }

  /** Makes room for so many bytes that are on their way; a negative number takes that back. */
  reserve(bytes: number): void {
    this.#reserved += bytes;
    this.#evict();
  }

  /** Takes in content, with so many pins for `unpin` to take back. */
  hold(hash: Hash, content: Buffer, pins: number): Held {
    const held: Held = { content, pins, evicted: false };
    this.#drop(hash);
    this.#held.set(hash, held);
    this.#bytes += this.#pool.sizeOf(content);
    this.#hints.add(hash);
    this.#evict();
    return held;
  }

  /** The content, pinned; undefined where it is not here. */
  pin(hash: Hash): Held | undefined {
    return this.pinHeld(this.#held.get(hash));
  }

  /** Pins content that is pinned by somebody else already. */
  pinHeld(held: Held | undefined): Held | undefined {
    if (held !== undefined) held.pins++;
    return held;
  }

  unpin(held: Held): void {
    held.pins--;
    this.#release(held);
  }

  #evict(): void {
    for (const hash of this.#held.keys()) {
      if (this.#bytes + this.#reserved <= this.#limit) return;
      this.#drop(hash);
    }
  }

  #drop(hash: Hash): void {
    const held = this.#held.get(hash);
    if (held === undefined) return;
    this.#held.delete(hash);
    this.#bytes -= this.#pool.sizeOf(held.content);
    this.#hints.delete(hash);
    held.evicted = true;
    this.#release(held);
  }

  #release({ content, pins, evicted }: Held): void {
    if (evicted && pins === 0) this.#pool.give(content);
  }
}
