/** Tells other threads which blobs one has in memory, and where. */

import type { Hash } from "../cas/index.ts";

const ENTRIES = 4096;
/** Words of 32 bits an entry: state, offset, length, and the hash. */
const WORDS = 11;
const STATE = 0;
const OFFSET = 1;
const LENGTH = 2;
const HASH = 3;
const HASH_WORDS = 8;
/** The entry's blob is in memory. What is above this bit counts the readers. */
const PRESENT = 1;
const READER = 2;
/** The offset of what lies in memory that others do not see. */
const ELSEWHERE = -1;

/** What another thread needs to look into a directory. */
export interface SharedContent {
  readonly entries: Int32Array;
  /** Where the content lies. */
  readonly memory: SharedArrayBuffer;
}

/** For the thread that has the content. A blob's place in the table is fixed; where it is taken, the blob is not listed. */
export class MemoryDirectory {
  readonly entries = new Int32Array(new SharedArrayBuffer(ENTRIES * WORDS * Int32Array.BYTES_PER_ELEMENT));

  /** Lists a blob, at `offset` of the shared memory, or elsewhere. */
  add(hash: Hash, offset: number | undefined, length: number): void {
    const at = entryOf(hash);
    if (Atomics.load(this.entries, at + STATE) !== 0) return;
    this.entries[at + OFFSET] = offset ?? ELSEWHERE;
    this.entries[at + LENGTH] = length;
    for (let word = 0; word < HASH_WORDS; word++) this.entries[at + HASH + word] = wordOf(hash, word);
    Atomics.store(this.entries, at + STATE, PRESENT);
  }

  delete(hash: Hash): void {
    const at = entryOf(hash);
    if (matches(this.entries, at, hash)) Atomics.and(this.entries, at + STATE, ~PRESENT);
  }

  /** True while anybody still reads a blob, listed or not any more. */
  isRead(hash: Hash): boolean {
    const at = entryOf(hash);
    return matches(this.entries, at, hash) && Atomics.load(this.entries, at + STATE) >= READER;
  }
}

/** For the threads that look. */
export class MemoryReader {
  readonly #entries: Int32Array;
  readonly #memory: SharedArrayBuffer;

  constructor({ entries, memory }: SharedContent) {
    this.#entries = entries;
    this.#memory = memory;
  }

  /** True where a blob is in the other thread's memory, whether it can be read from here or not. */
  has(hash: Hash): boolean {
    const at = entryOf(hash);
    return (Atomics.load(this.#entries, at + STATE) & PRESENT) !== 0 && matches(this.#entries, at, hash);
  }

  /**
   * The part of a blob's content from `offset` on, which stays until `unpin`; undefined where it is not to be read
   * from here. Of a blob that is shorter, there is none.
   */
  pin(hash: Hash, offset: number, length: number): Buffer | undefined {
    const at = entryOf(hash);
    for (;;) {
      const state = Atomics.load(this.#entries, at + STATE);
      if ((state & PRESENT) === 0 || !matches(this.#entries, at, hash)) return undefined;
      if (Atomics.compareExchange(this.#entries, at + STATE, state, state + READER) === state) break;
    }
    // Between the look and the pin another blob may have come into its place.
    const place = this.#entries[at + OFFSET]!;
    if (matches(this.#entries, at, hash) && place !== ELSEWHERE && offset + length <= this.#entries[at + LENGTH]!) {
      return Buffer.from(this.#memory, place + offset, length);
    }
    this.unpin(hash);
    return undefined;
  }

  unpin(hash: Hash): void {
    Atomics.sub(this.#entries, entryOf(hash) + STATE, READER);
  }
}

function entryOf(hash: Hash): number {
  return (Number.parseInt(hash.slice(0, 8), 16) % ENTRIES) * WORDS;
}

function wordOf(hash: Hash, word: number): number {
  return Number.parseInt(hash.slice(word * 8, word * 8 + 8), 16) | 0;
}

function matches(entries: Int32Array, at: number, hash: Hash): boolean {
  for (let word = 0; word < HASH_WORDS; word++) if (entries[at + HASH + word] !== wordOf(hash, word)) return false;
  return true;
}
