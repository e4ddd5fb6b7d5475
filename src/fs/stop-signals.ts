/** The signals that ask a process to end, and what they do to its mount. */

const STOP_SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** What the signals that ask a process to end do to a mount, from `listen` until `release`. */
export class StopSignals {
  /** The first signal. */
  readonly received: Promise<NodeJS.Signals>;
  readonly #resolve: (signal: NodeJS.Signals) => void;
  readonly #abort = new AbortController();
  #aborts = false;

  constructor() {
    const { promise, resolve } = Promise.withResolvers<NodeJS.Signals>();
    this.received = promise;
    this.#resolve = resolve;
  }

  listen(): void {
    for (const name of STOP_SIGNALS) process.on(name, this.stop);
  }

  readonly stop = (signal: NodeJS.Signals): void => {
    this.#resolve(signal);
    if (this.#aborts && signal === "SIGINT") this.#abort.abort();
  };

  /** Aborted by a SIGINT that comes from now on; the others let the commit come to its end. */
  abortOnInterrupt(): AbortSignal {
    this.#aborts = true;
    return this.#abort.signal;
  }

  release(): void {
    for (const name of STOP_SIGNALS) process.off(name, this.stop);
  }
}
