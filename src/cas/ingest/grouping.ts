/**
 * Small files gathered into group blobs.
 *
 * A file weighs its size and `FILE_WEIGHT` more, so that a group is bounded in bytes and in files by
 * one limit. Where a group ends depends on the hash of its last file: the same run of files, met
 * again elsewhere, comes to the same groups after the first end that both have. As with chunks the
 * chance is smaller before the normal weight and greater after it.
 */

import { LARGE_FILE } from "../content.ts";
import { type Hash, hashOf } from "../hash.ts";

/** What a file counts beyond its bytes. With it no group has more than 8192 files. */
const FILE_WEIGHT = 1024;
/** No group ends of itself before it has this weight. */
const MIN_GROUP = 2 * 1024 * 1024;
/** From this weight on a file ends its group four times as often. */
const NORMAL_GROUP = 4 * 1024 * 1024;
/** No group weighs more. */
const MAX_GROUP = 8 * 1024 * 1024;
/** Chance, of 2^32, that a file ends its group, for each unit of its own weight: one group's end in 4 MiB. */
const STRICT_CHANCE = 2 ** 32 / (4 * 1024 * 1024);
/** The same from `NORMAL_GROUP` on: one in 1 MiB. */
const LOOSE_CHANCE = 2 ** 32 / (1024 * 1024);
/** A group is ended when sources of this much span have passed since its first one: their results wait for it. */
export const GROUP_SPAN = 8192;

/**
 * How much a source of `size` bytes adds to the span of the group that is open: one for the result
 * that waits, and one for each extent that it may hold.
 */
export function spanOf(size: number): number {
  return size < LARGE_FILE ? 1 : 2 + Math.floor(size / (2 * 1024 * 1024));
}

/** A group blob, ended or in the making. */
export interface Group {
  /** The blob's name, once the group has ended. */
  readonly hash: Hash | undefined;
}

/** The group that files are being added to. */
interface OpenGroup {
  readonly group: { hash: Hash | undefined };
  /** The span that had passed when its first file came. */
  readonly from: number;
  readonly buffer: Buffer;
  length: number;
  weight: number;
}

/** Is given each group blob as it ends; `content` stays valid until `release` is called, which must happen. */
export type GroupEnded = (hash: Hash, content: Buffer, release: () => void) => void;

/** Cuts a sequence of small files into groups. */
export class Grouper {
  #open: OpenGroup | undefined;
  readonly #ended: GroupEnded;
  /** Used again and again: what V8 frees by itself piles up first. */
  readonly #buffers: Buffer[] = [];

  constructor(ended: GroupEnded) {
    this.#ended = ended;
  }

  /**
   * Adds the next file, which is not empty and smaller than `LARGE_FILE`. Its content is copied.
   *
   * @param span what has passed before it: the sum of `spanOf` for all sources, never less than before
   */
  add(hash: Hash, content: Uint8Array, span: number): { group: Group; offset: number } {
    this.passed(span);
    const weight = content.length + FILE_WEIGHT;
    if (this.#open !== undefined && this.#open.weight + weight > MAX_GROUP) this.end();
    this.#open ??= {
      group: { hash: undefined },
      from: span,
      buffer: this.#buffers.pop() ?? Buffer.allocUnsafeSlow(MAX_GROUP),
      length: 0,
      weight: 0,
    };
    const open = this.#open;
    const offset = open.length;
    open.buffer.set(content, offset);
    open.length += content.length;
    open.weight += weight;
    if (endsGroup(hash, weight, open.weight)) this.end();
    return { group: open.group, offset };
  }

  /** Ends the open group where too much has passed since its first file. */
  passed(span: number): void {
    if (this.#open !== undefined && span - this.#open.from >= GROUP_SPAN) this.end();
  }

  /** Ends the open group. */
  end(): void {
    const open = this.#open;
    if (open === undefined) return;
    this.#open = undefined;
    const content = open.buffer.subarray(0, open.length);
    const hash = hashOf(content);
    open.group.hash = hash;
    this.#ended(hash, content, () => this.#buffers.push(open.buffer));
  }
}

/** True where a file of this hash and weight is the last of a group that with it has `groupWeight`. */
function endsGroup(hash: Hash, weight: number, groupWeight: number): boolean {
  if (groupWeight < MIN_GROUP) return false;
  const drawn = Number.parseInt(hash.slice(0, 8), 16);
  return drawn < weight * (groupWeight < NORMAL_GROUP ? STRICT_CHANCE : LOOSE_CHANCE);
}
