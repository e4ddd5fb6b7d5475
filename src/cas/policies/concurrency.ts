import PQueue from "p-queue";
import { UnavailableError } from "../errors.ts";
import type { ObjectStore } from "../store.ts";
import { type Perform, PolicyStore, type StoreRequest, sentBytes } from "./policy.ts";

/** How many requests at once. */
export interface ConcurrencyOptions {
  readonly start?: number;
  readonly most?: number;
}

/** More than the fetches that a mount makes ahead of its readers, so that a read need not wait for one of these. */
const START = 32;
const MOST = 64;
/** What a request costs apart from its bytes, as bytes. */
const REQUEST_COST = 64 * 1024;
/** Rates of a few requests scatter by about this much. */
const NOISE = 0.9;
/** Requests that were under way when the store complained are not another complaint. */
const SETTLE_MS = 1000;

/**
 * Bounds how many requests are under way, and finds out what the store sustains: one more after every
 * round in which all were in use and the rate did not fall, one fewer where it fell, half where
 * the store asks for fewer or does not answer (additive increase, multiplicative decrease; Chiu and
 * Jain, 1989).
 */
export class AdaptiveStore extends PolicyStore {
  readonly #queue: PQueue;
  readonly #most: number;
  #halved = Number.NEGATIVE_INFINITY;
  #round = { since: performance.now(), requests: 0, work: 0, full: false };
  #rate = 0;

  constructor(inner: ObjectStore, options: ConcurrencyOptions = {}) {
    super(inner);
    this.#most = options.most ?? MOST;
    this.#queue = new PQueue({ concurrency: Math.min(options.start ?? START, this.#most) });
  }

  /** How many requests may be under way at present. */
  get limit(): number {
    return this.#queue.concurrency;
  }

  protected async around<T>(request: StoreRequest, perform: Perform<T>): Promise<T> {
    return await this.#queue.add(
      async () => {
        if (this.#queue.pending >= this.limit) this.#round.full = true;
        try {
          const result = await perform(request.signal);
          const sent = await sentBytes(request, this.url);
          this.#succeeded(sent + (Buffer.isBuffer(result) ? result.length : 0));
          return result;
        } catch (error) {
          if (error instanceof UnavailableError) this.#failed();
          throw error;
        }
      },
      request.signal === undefined ? {} : { signal: request.signal },
    );
  }

  #succeeded(bytes: number): void {
    const round = this.#round;
    round.requests++;
    round.work += bytes + REQUEST_COST;
    if (round.requests < this.limit) return;
    const rate = round.work / Math.max(1, performance.now() - round.since);
    if (round.full) this.#set(this.limit + (rate >= this.#rate * NOISE ? 1 : -1));
    this.#rate = rate;
    this.#startRound();
  }

  #failed(): void {
    const now = performance.now();
    if (now - this.#halved < SETTLE_MS) return;
    this.#halved = now;
    this.#set(Math.floor(this.limit / 2));
    this.#rate = 0;
    this.#startRound();
  }

  #startRound(): void {
    this.#round = { since: performance.now(), requests: 0, work: 0, full: false };
  }

  #set(limit: number): void {
    this.#queue.concurrency = Math.max(1, Math.min(this.#most, limit));
  }
}
