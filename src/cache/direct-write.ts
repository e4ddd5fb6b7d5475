/**
 * Writing to files past the page cache. A GiB that goes through it costs a quarter of a second of processor
 * time, and ten times that where the system has to get the memory from a hypervisor first; past it, 20 ms.
 */

import { constants, openSync, write } from "node:fs";
import { performance } from "node:perf_hooks";
import { promisify } from "node:util";
import { addressOf, isErrno } from "../cas/index.ts";

const MIB = 1024 * 1024;
/** What the addresses, places and lengths of direct writes are multiples of: the largest block that disks commonly have. */
const BLOCK = 4096;
/** Less than this is not worth the calls that its partial blocks take. */
const LEAST = MIB / 4;
/**
 * Writes at once. Each holds up one of libuv's four threads, and file systems fill a file's holes one after the
 * other: more would wait for each other, and on a busy machine spend more processor time on that than on the bytes.
 */
const AT_ONCE = 2;

const writeAsync = promisify(write);

/** Writes all of `bytes` to a place of a file, through the page cache unless the descriptor is for direct writes. */
export async function writeFully(fd: number, bytes: Buffer, position: number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    at += (await writeAsync(fd, bytes, at, bytes.length - at, position + at)).bytesWritten;
  }
}

/** The whole blocks among bytes that go to `position` of a file. */
export interface Blocks {
  readonly start: number;
  readonly end: number;
}

/** Those that can be written directly from where they are; undefined where they are too few or not aligned in memory. */
export function blocksOf(bytes: Buffer, position: number): Blocks | undefined {
  const start = (BLOCK - (position % BLOCK)) % BLOCK;
  const end = bytes.length - ((position + bytes.length) % BLOCK);
  if (end - start < LEAST) return undefined;
  const address = addressOf(bytes);
  return address !== undefined && (address - position) % BLOCK === 0 ? { start, end } : undefined;
}

/** Whether a directory's files are written directly, as its file system and disk have it; for one thread. */
export class DirectWrites {
  readonly #rate = new DirectRate();
  #refused = false;
  #free = AT_ONCE;
  readonly #waiting: (() => void)[] = [];

  get on(): boolean {
    return !this.#refused && !this.#rate.isSlow;
  }

  /** A descriptor for direct writes to the file behind another one; undefined where there can be none. */
  open(fd: number): number | undefined {
    try {
      return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_DIRECT);
    } catch {
      this.#refused = true;
      return undefined;
    }
  }

  /**
   * Writes all of `bytes` to a place of a file: their `blocks` through the descriptor for direct writes and what is
   * around them through the other one. False where the file system turns out not to take that; some may be written.
   */
  async write(direct: number, fd: number, bytes: Buffer, blocks: Blocks, position: number): Promise<boolean> {
    // A queue of p-queue's would cost as much as all else here.
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    this.#rate.begin(waited());
    const { start, end } = blocks;
    let written = 0;
    try {
      await writeFully(direct, bytes.subarray(start, end), position + start);
      await writeFully(fd, bytes.subarray(0, start), position);
      await writeFully(fd, bytes.subarray(end), position + end);
      written = bytes.length;
      return true;
    } catch (error) {
      if (!isErrno(error, "EINVAL", "ENOTSUP", "EOPNOTSUPP")) throw error;
      this.#refused = true;
      return false;
    } finally {
      this.#rate.end(written, waited());
      const next = this.#waiting.shift();
      if (next === undefined) this.#free++;
      else next();
    }
  }
}

/**
 * What direct writes sustain: bytes over the time in which several were under way and the thread had nothing to do.
 * (A single one tells how long it takes, not how many the disk takes; and while the thread is busy it does not see
 * them end.) Below 500 MiB/s, where networked disks are and local ones are not, what comes from a store can come
 * faster than it is written, and the page cache is worth its processor time, for it takes bursts in. A disk is slow
 * when no 8 MiB of 128 came faster: on a fast one, that others use as well or on a machine without a free
 * processor, some do. What was found to be slow remains so.
 */
export class DirectRate {
  static readonly #STRETCH = 8 * MIB;
  static readonly #JUDGED = 16;
  static readonly #SLOW_BYTES_PER_MS = (500 * MIB) / 1000;
  #underWay = 0;
  #since = 0;
  #bytes = 0;
  #milliseconds = 0;
  #slowStretches = 0;

  get isSlow(): boolean {
    return this.#slowStretches === DirectRate.#JUDGED;
  }

  /** A write begins. @param now how long this thread has been waiting in its life, in milliseconds */
  begin(now: number): void {
    this.#underWay++;
    if (this.#underWay === 2) this.#since = now;
  }

  /** One of so many bytes has ended; 0 for one that failed. */
  end(bytes: number, now: number): void {
    if (this.#underWay > 1) {
      this.#milliseconds += now - this.#since;
      this.#since = now;
      this.#bytes += bytes;
    }
    this.#underWay--;
    if (this.#bytes < DirectRate.#STRETCH || this.isSlow) return;
    const isSlow = this.#bytes < this.#milliseconds * DirectRate.#SLOW_BYTES_PER_MS;
    this.#slowStretches = isSlow ? this.#slowStretches + 1 : 0;
    this.#bytes = 0;
    this.#milliseconds = 0;
  }
}

function waited(): number {
  return performance.nodeTiming.idleTime;
}
