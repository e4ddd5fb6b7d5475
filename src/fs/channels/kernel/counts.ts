/** What is counted of the requests of a mount, by the threads that answer them. */

import type { ChannelCounts } from "../channel.ts";
import { Meter } from "../meter.ts";
import { Opcode } from "./protocol.ts";

/** Kinds of the meters: opcodes, which are all below this; those that are not known count as 0. */
const OPCODES = 64;
/** Reads that waited for content which was not on disk, apart from those that did not. */
export const READ_FETCHED = OPCODES;
const KINDS = OPCODES + 1;

const NAMES = new Map<number, string>([
  [0, "unknown"],
  ...Object.entries(Opcode).map(([name, opcode]) => [opcode, name.toLowerCase()] as const),
  [READ_FETCHED, "read-fetched"],
]);

/** What the worker counts, in memory that both threads see. */
export interface WorkerCounts {
  readonly meter: SharedArrayBuffer;
  /** One number: the slices of blobs that were found on disk. */
  readonly diskHits: Float64Array;
  /** One number: the reads that were answered from the main thread's memory. */
  readonly memoryHits: Float64Array;
}

/** The counts of one mount. */
export class Counts {
  readonly worker: WorkerCounts;
  /** For the main thread, which answers the reads that waited. */
  readonly meter: Meter = new Meter(KINDS);
  readonly #served = new Meter(KINDS);

  constructor() {
    const [diskHits, memoryHits] = [number(), number()];
    this.worker = { meter: this.#served.shared, diskHits, memoryHits };
  }

  read(): ChannelCounts {
    const requests = [...NAMES]
      .map(([kind, request]) => ({ request, ...(kind === READ_FETCHED ? this.meter : this.#served).latencies(kind) }))
      .filter(({ count }) => count > 0);
    return { requests, diskHits: this.worker.diskHits[0]!, memoryHits: this.worker.memoryHits[0]! };
  }
}

/** A number that all threads see. */
function number(): Float64Array {
  return new Float64Array(new SharedArrayBuffer(Float64Array.BYTES_PER_ELEMENT));
}

/** The worker's meter. */
export function workerMeter({ meter }: WorkerCounts): Meter {
  return new Meter(KINDS, meter);
}

/** Milliseconds of a clock that all threads share, to the nanosecond or nearly so. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
