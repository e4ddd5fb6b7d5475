import type { Hash } from "../cas/index.ts";
import type { Arena } from "./arena.ts";
import { MemoryDirectory, type SharedContent } from "./memory-directory.ts";

/** Content in memory. While it is pinned, or not evicted, its bytes stay. */
export interface Held {
  readonly hash: Hash;
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
  readonly #arena: Arena;
  readonly #directory = new MemoryDirectory();
  /** In the order in which it came. */
  readonly #held = new Map<Hash, Held>();
  /** What is not held any more, but still read by another thread. */
  readonly #lingering: Held[] = [];
  #bytes = 0;
  #reserved = 0;

  /**
   * @param limit in bytes, of what is held and what is reserved; what is pinned may exceed it
   * @param arena where the memory goes that is not needed any more
   */
  constructor(limit: number, arena: Arena) {
    this.#limit = limit;
    this.#arena = arena;
  }

  /** For other threads. */
  get shared(): SharedContent {
    return { entries: this.#directory.entries, memory: this.#arena.memory };
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
    const held: Held = { hash, content, pins, evicted: false };
    this.#drop(hash);
    this.#held.set(hash, held);
    this.#bytes += this.#arena.sizeOf(content);
    const shared = content.buffer === (this.#arena.memory as ArrayBufferLike);
    this.#directory.add(hash, shared ? content.byteOffset : undefined, content.length);
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
    for (const held of this.#lingering.splice(0)) this.#release(held);
    for (const hash of this.#held.keys()) {
      if (this.#bytes + this.#reserved <= this.#limit) return;
      this.#drop(hash);
    }
  }

  #drop(hash: Hash): void {
    const held = this.#held.get(hash);
    if (held === undefined) return;
    this.#held.delete(hash);
    this.#bytes -= this.#arena.sizeOf(held.content);
    this.#directory.delete(hash);
    held.evicted = true;
    this.#release(held);
  }

  #release(held: Held): void {
    if (!held.evicted || held.pins > 0) return;
    if (this.#directory.isRead(held.hash)) this.#lingering.push(held);
    else this.#arena.give(held.content);
  }
}
