import type { Hash } from "./hash.ts";

/** The table is doubled when this share of it is taken. */
const FULL = 0.7;

/**
 * From hashes to numbers, for many millions of them: it keeps four bytes of each hash, so what it
 * finds are candidates that the caller compares by the whole hash. 11 to 23 bytes an entry.
 */
export class HashIndex {
  /** Open addressing with linear probing; an entry is four bytes of the hash and the value + 1, which is 0 where it is free. */
  #table: Uint32Array;
  #size = 0;

  /** @param expected how many entries to make room for at first */
  constructor(expected = 0) {
    let capacity = 1024;
    while (capacity * FULL <= expected) capacity *= 2;
    this.#table = new Uint32Array(capacity * 2);
  }

  /** How many entries there are. */
  get size(): number {
    return this.#size;
  }

  /** Adds an entry, beside any of the same hash. `value` is an integer from 0 to 2^32 - 2. */
  add(hash: Hash, value: number): void {
    if (!Number.isInteger(value) || value < 0 || value >= 0xffffffff) {
      throw new RangeError(`${value} cannot be kept in a HashIndex`);
    }
    if (this.#size >= (this.#table.length / 2) * FULL) this.#grow();
    insert(this.#table, tagOf(hash), value + 1);
    this.#size++;
  }

  /** The values of all entries whose hash may be `hash`; of another hash's only by rare chance. */
  *candidates(hash: Hash): Generator<number, void, undefined> {
    const table = this.#table;
    const tag = tagOf(hash);
    for (let at = homeOf(table, tag); table[at + 1] !== 0; at = next(table, at)) {
      if (table[at] === tag) yield table[at + 1]! - 1;
    }
  }

  #grow(): void {
    const old = this.#table;
    this.#table = new Uint32Array(old.length * 2);
    for (let at = 0; at < old.length; at += 2) {
      if (old[at + 1] !== 0) insert(this.#table, old[at]!, old[at + 1]!);
    }
  }
}

function insert(table: Uint32Array, tag: number, taken: number): void {
  let at = homeOf(table, tag);
  while (table[at + 1] !== 0) at = next(table, at);
  table[at] = tag;
  table[at + 1] = taken;
}

function tagOf(hash: Hash): number {
  return Number.parseInt(hash.slice(0, 8), 16);
}

function homeOf(table: Uint32Array, tag: number): number {
  return (tag % (table.length / 2)) * 2;
}

function next(table: Uint32Array, at: number): number {
  return at + 2 === table.length ? 0 : at + 2;
}
