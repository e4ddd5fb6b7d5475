import { setImmediate } from "node:timers/promises";
import { DatamonError } from "../../cas/index.ts";

/** How long a run of synchronous calls may keep signals and other work waiting, in milliseconds. */
const MAX_HOLD = 25;

/**
 * For loops over synchronous calls: gives way to the event loop now and then, and stops with
 * "interrupted" where the signal says so. Used as `await breath.pause()` or, where most rounds
 * need no pause and a promise each would cost too much, as `if (breath.due()) await breath.pause()`.
 */
export class Breath {
  readonly #signal: AbortSignal | undefined;
  readonly #doing: string;
  #last = performance.now();
  #rounds = 0;
  #told: DatamonError | undefined;

  /** @param doing what is interrupted, such as `the upload` */
  constructor(doing: string, signal: AbortSignal | undefined) {
    this.#doing = doing;
    this.#signal = signal;
  }

  /** True every so many rounds, once the time is up. */
  due(): boolean {
    if (++this.#rounds < 64) return false;
    this.#rounds = 0;
    return performance.now() - this.#last > MAX_HOLD;
  }

  async pause(): Promise<void> {
    await setImmediate();
    this.check();
    this.#last = performance.now();
  }

  /** Throws where the signal was given. */
  check(): void {
    if (this.#signal?.aborted) throw this.#interrupted();
  }

  /** What `error` means to the user: an interruption where the signal was given, otherwise itself. */
  explain(error: unknown): unknown {
    return this.#signal?.aborted && error !== this.#told ? this.#interrupted(error) : error;
  }

  #interrupted(cause?: unknown): DatamonError {
    this.#told = new DatamonError("interrupted", `${this.#doing} was interrupted`, {
      hint: "Run the same command again: it goes on from what is stored already.",
      ...(cause === undefined ? {} : { cause }),
    });
    return this.#told;
  }
}
