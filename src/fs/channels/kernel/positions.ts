/**
 * Where listings of directories stand.
 *
 * The kernel continues a listing with the position of the last entry it took, a number; a namespace
 * continues after a name. Each reply's last entry is remembered, which is what the next request asks
 * with, and all entries of the newest reply, for a reader that took only a part. For any other
 * position (`seekdir`, or a listing that was forgotten) entries are counted from the nearest one known.
 */

import type { ByteString } from "../../../cas/index.ts";
import type { Namespace } from "../../namespace.ts";

/** Positions 1 and 2 are `.` and `..`; entries of the namespace follow. */
export const FIRST_ENTRY = 2;

/** Replies remembered for one listing: with 200 entries in each, all of a directory of 800,000. */
const MOST_REPLIES = 4096;

const COUNTING_STEP = 1024;

class Listing {
  /** Position of a reply's last entry → its name; oldest first. */
  readonly ends = new Map<number, ByteString>();
  /** Names of the newest reply. Not its entries, which would keep much of what was ever listed in memory. */
  newest: readonly ByteString[] = [];
  /** Position of the first of `newest`. */
  newestStart = 0;
}

/** The listings under way in one mount, by directory or by handle. */
export class Positions {
  readonly #most: number;
  readonly #listings = new Map<number, Listing>();

  /** @param most listings remembered at once; beyond, the one unused for longest is forgotten */
  constructor(most: number) {
    this.#most = most;
  }

  /** The name at `position` of directory `ino` in the listing `key`; undefined for its start. "end" where there is none. */
  seek(
    namespace: Pick<Namespace, "readdir">,
    ino: number,
    key: number,
    position: number,
  ): ByteString | "end" | undefined {
    if (position <= FIRST_ENTRY) return undefined;
    const listing = this.#listings.get(key);
    if (listing !== undefined) {
      const name = listing.newest[position - listing.newestStart] ?? listing.ends.get(position);
      if (name !== undefined) return name;
    }
    let at = FIRST_ENTRY;
    let after: ByteString | undefined;
    for (const [end, name] of listing?.ends ?? []) {
      if (end > at && end < position) [at, after] = [end, name];
    }
    while (at < position) {
      const entries = namespace.readdir(ino, after, Math.min(position - at, COUNTING_STEP));
      const last = entries.at(-1);
      if (last === undefined) return "end";
      at += entries.length;
      after = last.name;
    }
    return after;
  }

  /** Notes that entries of these names were sent, the first of them at position `start`. */
  note(key: number, start: number, names: readonly ByteString[]): void {
    const last = names.at(-1);
    if (last === undefined) return;
    const listing = this.#listings.get(key) ?? new Listing();
    this.#listings.delete(key);
    this.#listings.set(key, listing);
    if (this.#listings.size > this.#most) this.#listings.delete(firstKey(this.#listings));
    const end = start + names.length - 1;
    listing.ends.delete(end);
    listing.ends.set(end, last);
    if (listing.ends.size > MOST_REPLIES) listing.ends.delete(firstKey(listing.ends));
    listing.newest = names;
    listing.newestStart = start;
  }

  forget(key: number): void {
    this.#listings.delete(key);
  }
}

function firstKey(map: Map<number, unknown>): number {
  return map.keys().next().value as number;
}
