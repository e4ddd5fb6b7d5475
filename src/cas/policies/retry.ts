import { UnavailableError } from "../errors.ts";
import type { ObjectBody, ObjectStore, PutOptions } from "../store.ts";
import { holds } from "../stores/body.ts";
import { type Perform, PolicyStore, pause, type StoreRequest } from "./policy.ts";

/** How long to go on. All in milliseconds. */
export interface RetryOptions {
  /** From a request's first failure until it is given up. Default: one minute. */
  readonly patience?: number;
  /** The same for a store that has not answered anything yet: more likely it never will. Default: ten seconds. */
  readonly firstPatience?: number;
  /** The same for a request to which the store says that there are too many. Default: `patience`. */
  readonly throttledPatience?: number;
}

const PATIENCE = 60_000;
const FIRST_PATIENCE = 10_000;
const SHORTEST_WAIT = 100;
const SHORTEST_WAIT_THROTTLED = 500;
const LONGEST_WAIT = 8000;

/**
 * Tries requests again that failed for a reason that may pass (`UnavailableError`), after waits that
 * double and are jittered so that many clients do not come back together ("equal jitter", Brooker,
 * "Exponential Backoff and Jitter", 2015). Gives up in bounded time.
 *
 * A create-only put that failed may have stored its object all the same; or it failed because the
 * object was there and the server hung up on the body. So before it is sent again, and where it then
 * finds the key taken, the object is compared with the body: the same bytes count as this put's own.
 */
export class RetryingStore extends PolicyStore {
  readonly #patience: Patience;

  constructor(inner: ObjectStore, options: RetryOptions = {}) {
    super(inner);
    this.#patience = new Patience(options);
  }

  override async put(key: string, body: ObjectBody, options: PutOptions = {}): Promise<boolean> {
    let tries = 0;
    return await this.around({ verb: "put", key, body, signal: options.signal }, async () => {
      tries++;
      const again = tries > 1 && options.ifAbsent === true;
      const there = again ? await this.inner.head(key, options) : undefined;
      if (there === undefined && (await this.inner.put(key, body, options))) return true;
      const { signal } = options;
      return again && (await holds(this.inner, key, body, signal === undefined ? {} : { signal }));
    });
  }

  protected async around<T>(request: StoreRequest, perform: Perform<T>): Promise<T> {
    return await this.#patience.during(request.signal, () => perform(request.signal));
  }
}

/** What one store's requests are tried again by. */
export class Patience {
  readonly #patience: number;
  readonly #firstPatience: number;
  readonly #throttledPatience: number;
  #answered = false;

  constructor(options: RetryOptions = {}) {
    this.#patience = options.patience ?? PATIENCE;
    this.#firstPatience = Math.min(options.firstPatience ?? FIRST_PATIENCE, this.#patience);
    this.#throttledPatience = options.throttledPatience ?? this.#patience;
  }

  /**
   * What `attempt` comes to, which is made again after each `UnavailableError`. Throws the last one when
   * the time is over, any other failure at once, and the signal's reason when it is aborted.
   */
  async during<T>(signal: AbortSignal | undefined, attempt: () => Promise<T>): Promise<T> {
    let failing: number | undefined;
    for (let tries = 1; ; tries++) {
      try {
        const result = await attempt();
        this.#answered = true;
        return result;
      } catch (error) {
        signal?.throwIfAborted();
        if (!(error instanceof UnavailableError)) {
          this.#answered = true;
          throw error;
        }
        if (error.throttled) this.#answered = true;
        const now = performance.now();
        failing ??= now;
        const wait = waitAfter(tries, error.throttled);
        if (now + wait > failing + this.#patienceWith(error)) throw givenUp(error, tries, now - failing);
        await pause(wait, signal);
      }
    }
  }

  #patienceWith(error: UnavailableError): number {
    if (error.throttled) return this.#throttledPatience;
    return this.#answered ? this.#patience : this.#firstPatience;
  }
}

function waitAfter(tries: number, throttled: boolean): number {
  const shortest = throttled ? SHORTEST_WAIT_THROTTLED : SHORTEST_WAIT;
  const longest = Math.min(LONGEST_WAIT, shortest * 2 ** (tries - 1));
  return longest / 2 + (Math.random() * longest) / 2;
}

function givenUp(failure: UnavailableError, tries: number, failing: number): UnavailableError {
  const message = `${failure.message}; given up after ${tries} tries in ${(failing / 1000).toFixed(1)} seconds`;
  return new UnavailableError(message, {
    cause: failure,
    throttled: failure.throttled,
    hint: failure.hint ?? "Try again later: what was finished is kept.",
  });
}
