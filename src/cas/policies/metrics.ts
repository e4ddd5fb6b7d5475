import type { ObjectStore } from "../store.ts";
import { type Perform, PolicyStore, type StoreRequest, sentBytes } from "./policy.ts";

/** What became of the requests of one kind. */
export interface VerbMetrics {
  requests: number;
  failures: number;
  /** Of the bodies that were sent or received whole. */
  bytes: number;
  /** Milliseconds, of those that succeeded, together. */
  time: number;
  /** Milliseconds, the slowest that succeeded. */
  slowest: number;
}

/** Counts of the requests to one or more stores, each try by itself. */
export type StoreMetrics = Record<StoreRequest["verb"], VerbMetrics>;

/** Metrics with nothing counted yet. */
export function newStoreMetrics(): StoreMetrics {
  const none = (): VerbMetrics => ({ requests: 0, failures: 0, bytes: 0, time: 0, slowest: 0 });
  return { get: none(), put: none(), head: none(), list: none(), delete: none() };
}

/** Counts requests into `metrics`. An object that is not there is an answer, and its time is counted as a failure's. */
export class MeteredStore extends PolicyStore {
  readonly #metrics: StoreMetrics;

  constructor(inner: ObjectStore, metrics: StoreMetrics) {
    super(inner);
    this.#metrics = metrics;
  }

  protected async around<T>(request: StoreRequest, perform: Perform<T>): Promise<T> {
    const counts = this.#metrics[request.verb];
    const started = performance.now();
    counts.requests++;
    try {
      const result = await perform(request.signal);
      const time = performance.now() - started;
      counts.time += time;
      counts.slowest = Math.max(counts.slowest, time);
      if (Buffer.isBuffer(result)) counts.bytes += result.length;
      if (result === true) counts.bytes += await sentBytes(request, this.url);
      return result;
    } catch (error) {
      counts.failures++;
      throw error;
    }
  }
}
