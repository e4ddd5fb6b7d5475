import { LRUCache } from "lru-cache";
import type { Hash } from "../cas/index.ts";
import type { Slice } from "./plan.ts";

/** So many files of a blob are fetched one by one; who wants more of them is given all. */
const MOST_SLICES = 4;
/** Blobs of which it is remembered what was wanted. */
const REMEMBERED = 4096;
/** Slices that may fail to verify, more than do not, before no more are tried. */
const TRUST = 2;
const MOST_TRUST = 8;

/**
 * Decides whether a small file is fetched alone or with the blob that it shares with others. Alone, it
 * takes thousands of times fewer bytes; but one who reads its neighbours, too, waits for each.
 * Only of blobs that are stored uncompressed can a slice be had, which is found out by trying.
 */
export class SliceChoice {
  /** How many files of a blob were wanted, and where the last of them ended. */
  readonly #wanted = new LRUCache<Hash, { count: number; end: number }>({ max: REMEMBERED });
  #trust = TRUST;

  /** A file of a blob is wanted that is not here: true where it is to be fetched alone. */
  isWanted(blob: Hash, { offset, length }: Slice): boolean {
    if (this.#trust <= 0) return false;
    const last = this.#wanted.get(blob);
    const count = (last?.count ?? 0) + 1;
    this.#wanted.set(blob, { count, end: offset + length });
    return count <= MOST_SLICES && last?.end !== offset;
  }

  /** A slice was fetched, and was or was not what it was to be. */
  learn(verified: boolean): void {
    this.#trust = Math.min(this.#trust + (verified ? 1 : -1), MOST_TRUST);
  }
}
