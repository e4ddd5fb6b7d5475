/** Fetching what is likely to be read next: the policy. What comes next is for an `Outlook` to say. */

import type { Hash } from "../cas/index.ts";
import type { Ahead, Fetcher } from "./fetcher.ts";
import type { FileLayout } from "./whole-files.ts";

/** A blob in the order of reading. */
export interface Upcoming extends Ahead {
  /** The first file that has bytes in it. */
  readonly ino: number;
  /** True where that file has blobs of its own, false where small files share this one. */
  readonly large: boolean;
}

/** Knows in which order a tree's blobs are read by whoever reads all of it in path order. */
export interface Outlook {
  /** The blobs from the one on that holds the byte `offset` of a file: those of this file, then of the files after it. */
  from(ino: number, offset: number): Iterator<Upcoming>;
  /** What a large file is made of; undefined for one that is not assembled in the disk cache. */
  layout(ino: number): FileLayout | undefined;
}

/** Streams that are followed at once; as many readers side by side are noticed. */
const STREAMS = 16;
/** Blobs that are known ahead of a stream before it is one, and so how far a reader may jump and still follow it. */
const GLIMPSE = 2;
/** Blobs that are asked for ahead of a stream at the most; the fetcher has its own bounds in bytes. */
const WINDOW = 16;
/** From this window on a reader of a large file is taken for one who reads all of it. */
const THOROUGH = 4;
/** Blobs behind a stream that still belong to it: requests of one reader overtake each other. */
const BEHIND = 4;

interface Stream {
  readonly source: Iterator<Upcoming>;
  /** What comes next, as far as it is known. */
  readonly ahead: Upcoming[];
  /** How many of those need not be asked for again. */
  asked: number;
  window: number;
  readonly behind: Hash[];
  /** The file that was read last. */
  ino: number;
  large: boolean;
  /** The file that was last wanted whole for it. */
  wanted: number;
  /** True once the stream went from one large file to the next: somebody reads the tree, not a file. */
  scan: boolean;
}

/**
 * Follows readers by the blobs they reach. One that goes on from a blob to the next has blobs fetched
 * ahead, 1, 2, 4 … `WINDOW` of them while it goes on so; one that jumps has none. What lies beyond
 * the end of a large file is fetched only for a reader who went on to a next file before.
 */
export class Readahead {
  readonly #fetcher: Fetcher;
  readonly #outlook: Outlook;
  /** The one that was used last is at the end. */
  readonly #streams: Stream[] = [];

  constructor(fetcher: Fetcher, outlook: Outlook) {
    this.#fetcher = fetcher;
    this.#outlook = outlook;
  }

  /** Has a large file, once all of it is here, be marked as verified, or handed to the kernel. */
  want(ino: number): void {
    const layout = this.#outlook.layout(ino);
    if (layout !== undefined) this.#fetcher.files?.want(layout);
  }

  /** Says that a reader of the file `ino` came, at `offset`, to a blob that was not read before. */
  reached(ino: number, offset: number, blob: Hash): void {
    for (let index = this.#streams.length - 1; index >= 0; index--) {
      const stream = this.#streams[index]!;
      if (stream.behind.includes(blob)) return;
      const found = stream.ahead.findIndex((upcoming) => upcoming.blob === blob);
      if (found < 0) continue;
      this.#streams.splice(index, 1);
      this.#streams.push(stream);
      this.#advance(stream, found);
      return;
    }
    this.#begin(ino, offset, blob);
  }

  #begin(ino: number, offset: number, blob: Hash): void {
    const source = this.#outlook.from(ino, offset);
    const first = source.next();
    if (first.done === true || first.value.blob !== blob) return;
    const { large } = first.value;
    const place = { behind: [blob], ino, large, wanted: 0, scan: false };
    const stream: Stream = { source, ahead: [], asked: 0, window: 0, ...place };
    this.#see(stream, GLIMPSE);
    this.#streams.push(stream);
    if (this.#streams.length > STREAMS) this.#streams.shift();
  }

  #advance(stream: Stream, found: number): void {
    const passed = stream.ahead.splice(0, found + 1);
    stream.asked = Math.max(0, stream.asked - passed.length);
    for (const { blob, ino, large } of passed) {
      stream.behind.push(blob);
      if (large && ino !== stream.ino) stream.scan = true;
      stream.ino = ino;
      stream.large = large;
    }
    stream.behind.splice(0, stream.behind.length - BEHIND - passed.length);
    if (found === 0) stream.window = Math.min(Math.max(1, stream.window * 2), WINDOW);
    if (stream.large && stream.window >= THOROUGH && stream.wanted !== stream.ino) {
      stream.wanted = stream.ino;
      this.want(stream.ino);
    }
    this.#see(stream, stream.window + GLIMPSE);
    const end = Math.min(stream.window, this.#limit(stream));
    if (stream.asked < end) stream.asked = this.#fetcher.prefetch(stream.ahead.slice(0, end), stream.asked);
  }

  /** How many of the blobs ahead may be fetched: up to where a large file begins or ends. */
  #limit({ ahead, ino, large, scan }: Stream): number {
    if (scan) return ahead.length;
    let last = { ino, large };
    for (const [index, upcoming] of ahead.entries()) {
      if ((last.large || upcoming.large) && upcoming.ino !== last.ino) return index;
      last = upcoming;
    }
    return ahead.length;
  }

  #see(stream: Stream, count: number): void {
    while (stream.ahead.length < count) {
      const next = stream.source.next();
      if (next.done === true) return;
      stream.ahead.push(next.value);
    }
  }
}
