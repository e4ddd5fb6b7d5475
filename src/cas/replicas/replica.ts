import { DamagedObjectError, DatamonError, ObjectNotFoundError, UnavailableError } from "../errors.ts";
import type { ObjectStore } from "../store.ts";

/** How one of several stores has fared. */
export interface ReplicaStatus {
  readonly url: string;
  /** False where it is taken for dead: it is asked again from time to time, and otherwise only where no other one can help. */
  readonly answers: boolean;
  /** Requests that failed; that an object is not there is an answer. */
  readonly failures: number;
  /** Objects that were stored elsewhere and not here. */
  readonly missed: number;
  /** What its last failure said. */
  readonly lastFailure: string | null;
}

/** How long a store that is taken for dead is left alone before it is tried, in milliseconds; doubles up to the longest. */
const FIRST_PAUSE = 2000;
const LONGEST_PAUSE = 60_000;
/** From a store that answers nothing for this long while a request to it fails, no answer is expected, in milliseconds. */
const SILENCE = 1000;
/** How long a store that was slow comes last when something is read, in milliseconds. */
const SLOW_PAUSE = 30_000;
/** A read is late after four times of what reads take, and not before a second, in milliseconds. */
const LATE_FACTOR = 4;
const LATE_LEAST = 1000;
const MEAN_WEIGHT = 1 / 8;
/** What is asked of a store to see whether it answers; nothing has this key. */
const PROBE = "probe";

/** One of several stores that hold the same: knows whether it answers, so that nobody waits for it when it does not. */
export class Replica {
  readonly store: ObjectStore;
  missed = 0;
  readonly #onTrouble: (message: string) => void;
  #failures = 0;
  #lastFailure: string | undefined;
  #answered = performance.now();
  #answers = true;
  #pause = FIRST_PAUSE;
  #leaveAlone = 0;
  #probing = false;
  #slowUntil = Number.NEGATIVE_INFINITY;
  #meanRead = 0;
  /** Ends what is under way when the store is taken for dead. */
  #underWay = new AbortController();

  /** @param onTrouble is told in a sentence when it is found dead, or fails */
  constructor(store: ObjectStore, onTrouble: (message: string) => void) {
    this.store = store;
    this.#onTrouble = onTrouble;
  }

  /** False while it is taken for dead. Asking has it tried, in the background, when it was left alone for long enough. */
  get answers(): boolean {
    if (!this.#answers && !this.#probing && performance.now() > this.#leaveAlone) void this.#probe();
    return this.#answers;
  }

  /** True where it has kept a reader waiting. */
  get isSlow(): boolean {
    return performance.now() < this.#slowUntil;
  }

  /** After how many milliseconds a read from it is late. */
  get lateAfter(): number {
    return Math.max(LATE_LEAST, this.#meanRead * LATE_FACTOR);
  }

  get status(): ReplicaStatus {
    const [answers, failures, missed] = [this.#answers, this.#failures, this.missed];
    return { url: this.store.url, answers, failures, missed, lastFailure: this.#lastFailure ?? null };
  }

  /** Makes one request. It is ended when another one finds that the store is dead. */
  async request<T>(signal: AbortSignal | undefined, perform: (own: AbortSignal) => Promise<T>): Promise<T> {
    const began = performance.now();
    const { signal: dead } = this.#underWay;
    try {
      const result = await perform(signal === undefined ? dead : AbortSignal.any([signal, dead]));
      this.#heard();
      return result;
    } catch (error) {
      signal?.throwIfAborted();
      const failure = dead.aborted ? (dead.reason as UnavailableError) : error;
      if (!(failure instanceof UnavailableError)) this.#heard();
      if (!dead.aborted && !(failure instanceof ObjectNotFoundError)) this.#failed(failure, began);
      throw failure;
    }
  }

  /** A read, whose time counts towards what reads take. */
  async read<T>(signal: AbortSignal | undefined, perform: (own: AbortSignal) => Promise<T>): Promise<T> {
    const began = performance.now();
    const result = await this.request(signal, perform);
    this.#meanRead += (performance.now() - began - this.#meanRead) * MEAN_WEIGHT;
    return result;
  }

  /** Another one answered while this one kept a reader waiting: it is slow, or dead, which is found out in the background. */
  wasSlow(): void {
    this.#slowUntil = performance.now() + SLOW_PAUSE;
    if (!this.#probing) void this.#probe();
  }

  #heard(): void {
    this.#answered = performance.now();
    this.#answers = true;
    this.#pause = FIRST_PAUSE;
  }

  #failed(error: unknown, began: number): void {
    const message = error instanceof Error ? error.message : String(error);
    this.#failures++;
    this.#lastFailure = message;
    if (isOurFault(error)) return;
    // Where it goes on answering others, the trouble is with the one request.
    const silent = this.#answered <= began || performance.now() - this.#answered > SILENCE;
    if (error instanceof UnavailableError && silent) {
      if (this.#answers) this.#takeForDead(error);
    } else if (error instanceof DamagedObjectError) {
      this.#onTrouble(message);
    } else {
      this.#onTrouble(`store ${this.store.url} fails: ${message}`);
    }
  }

  #takeForDead(error: UnavailableError): void {
    this.#answers = false;
    this.#leaveAlone = performance.now() + this.#pause;
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
    const ended = this.#underWay;
    this.#underWay = new AbortController();
    ended.abort(error);
    this.#onTrouble(`store ${this.store.url} does not answer: ${error.message}`);
  }

  async #probe(): Promise<void> {
    this.#probing = true;
    try {
      await this.request(undefined, (signal) => this.store.head(PROBE, { signal }));
    } catch {
      this.#leaveAlone = performance.now() + this.#pause;
      this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
    } finally {
      this.#probing = false;
    }
  }
}

/** True for a request that no store could have served. */
function isOurFault(error: unknown): boolean {
  return error instanceof DatamonError && (error.code === "usage" || error.code === "interrupted");
}
