import type { Hash } from "../hash.ts";
import { HashIndex } from "../hash-index.ts";
import type { Group } from "./grouping.ts";

/** How many files a generation holds: with two of them, at most 60 MiB. */
const GENERATION = 512 * 1024;

interface Generation {
  readonly index: HashIndex;
  /** The hashes, 32 bytes each. */
  hashes: Buffer;
  /** For each file: index in `groups`, offset in that group. */
  places: Uint32Array;
  readonly groups: Group[];
}

/**
 * Where the small files of an upload have been put, by content, so that the same content is stored
 * once. It remembers the latest half a million distinct contents at least, a million at most.
 */
export class SmallFiles {
  #young: Generation = generation();
  #old: Generation | undefined;

  clear(): void {
    this.#young = generation();
    this.#old = undefined;
  }

  find(hash: Hash): { group: Group; offset: number } | undefined {
    return find(this.#young, hash) ?? (this.#old && find(this.#old, hash));
  }

  /** Adds a content that is not there yet. */
  add(hash: Hash, group: Group, offset: number): void {
    if (this.#young.index.size === GENERATION) {
      this.#old = this.#young;
      this.#young = generation();
    }
    const to = this.#young;
    const number = to.index.size;
    if ((number + 1) * 32 > to.hashes.length) enlarge(to);
    if (to.groups[to.groups.length - 1] !== group) to.groups.push(group);
    to.hashes.write(hash, number * 32, "hex");
    to.places[number * 2] = to.groups.length - 1;
    to.places[number * 2 + 1] = offset;
    to.index.add(hash, number);
  }
}

function generation(): Generation {
  return { index: new HashIndex(), hashes: Buffer.alloc(1024 * 32), places: new Uint32Array(1024 * 2), groups: [] };
}

function enlarge(generation: Generation): void {
  const hashes = Buffer.alloc(generation.hashes.length * 2);
  generation.hashes.copy(hashes);
  generation.hashes = hashes;
  const places = new Uint32Array(generation.places.length * 2);
  places.set(generation.places);
  generation.places = places;
}

function find(generation: Generation, hash: Hash): { group: Group; offset: number } | undefined {
  for (const number of generation.index.candidates(hash)) {
    if (generation.hashes.toString("hex", number * 32, number * 32 + 32) !== hash) continue;
    return {
      group: generation.groups[generation.places[number * 2]!]!,
      offset: generation.places[number * 2 + 1]!,
    };
  }
  return undefined;
}
