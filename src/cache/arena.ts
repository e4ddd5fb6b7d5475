/** Memory that several threads see, and that is used again and again. */

import { totalmem } from "node:os";
import { addressOf, type Memory } from "../cas/index.ts";

/** What is taken comes to a multiple of this, in bytes. */
const GRANULE = 16 * 1024;
/** What disks and the kernel want aligned is aligned to this, in bytes. */
const PAGE = 4096;
/** The largest arena, in bytes: places in it are told to other threads in 32 bits with a sign. */
const LARGEST = 2 ** 31;

/** A run of granules that nobody has. */
interface Run {
  start: number;
  count: number;
}

/**
 * A fixed piece of shared memory, given out in buffers. Left to the garbage collector, a stream of buffers of
 * megabytes costs more processor time (for marking the heap, and for mapping and clearing pages) than the network.
 * The system provides memory as it is used, from the front on. What finds no room is ordinary memory.
 */
export class Arena implements Memory {
  /** All of it, as other threads see it. */
  readonly memory: SharedArrayBuffer;
  readonly #bytes: Buffer;
  /** The first byte that lies at the start of a page, where that can be told. */
  readonly #origin: number;
  /** In order of their place; no two touch. */
  readonly #free: Run[];
  readonly #taken = new Map<number, number>();

  /** @param size in bytes; it is less where that is more than half of the machine's memory, or than 2 GiB */
  constructor(size: number) {
    const count = Math.ceil(Math.min(size, LARGEST, totalmem() / 2) / GRANULE);
    this.memory = new SharedArrayBuffer(count * GRANULE + PAGE);
    this.#bytes = Buffer.from(this.memory);
    this.#origin = (PAGE - ((addressOf(this.#bytes) ?? 0) % PAGE)) % PAGE;
    this.#free = count === 0 ? [] : [{ start: 0, count }];
  }

  /** @param phase where in a page the buffer begins */
  take(length: number, phase = 0): Buffer {
    return this.#takeHere(length, phase) ?? Buffer.allocUnsafeSlow(length);
  }

  #takeHere(length: number, phase: number): Buffer | undefined {
    const count = Math.ceil((phase + length) / GRANULE);
    // Near the front lies what was used last, and is in the processor's caches.
    const index = length < GRANULE ? -1 : this.#free.findIndex((run) => run.count >= count);
    const run = this.#free[index];
    if (run === undefined) return undefined;
    const { start } = run;
    run.start += count;
    run.count -= count;
    if (run.count === 0) this.#free.splice(index, 1);
    this.#taken.set(start, count);
    const from = this.#origin + start * GRANULE + phase;
    return this.#bytes.subarray(from, from + length);
  }

  /** The same bytes here, where other threads see them, if there is room. What was elsewhere is for its owner. */
  bring(bytes: Buffer, phase = 0): Buffer {
    if (bytes.buffer === (this.memory as ArrayBufferLike)) return bytes;
    const place = this.#takeHere(bytes.length, phase);
    if (place === undefined) return bytes;
    bytes.copy(place);
    return place;
  }

  give(part: Buffer): void {
    const start = this.#startOf(part);
    const count = this.#taken.get(start);
    if (count === undefined) return;
    this.#taken.delete(start);
    const found = this.#free.findIndex((run) => run.start > start);
    const next = found < 0 ? this.#free.length : found;
    const before = this.#free[next - 1];
    const after = this.#free[next];
    const joins = before !== undefined && before.start + before.count === start;
    if (joins) before.count += count;
    else this.#free.splice(next, 0, { start, count });
    const run = joins ? before : this.#free[next]!;
    if (after !== undefined && run.start + run.count === after.start) {
      run.count += after.count;
      this.#free.splice(this.#free.indexOf(after), 1);
    }
  }

  /** How much memory stands behind a buffer, or a part of one: more than its length where it lies here. */
  sizeOf(part: Buffer): number {
    const count = this.#taken.get(this.#startOf(part));
    return count === undefined ? part.length : count * GRANULE;
  }

  /** The first granule of a buffer of which `part` is no more than a page away from the start; -1 elsewhere. */
  #startOf(part: Buffer): number {
    if (part.buffer !== this.memory) return -1;
    return Math.floor((part.byteOffset - this.#origin) / GRANULE);
  }
}
