/** Waiting for requests without going to sleep where the next one is about to come. */

import { requestWaits } from "./libc.ts";

/**
 * How long to look for a request before going to sleep, in milliseconds: what a program takes from one
 * reply to its next call. Where processors are virtual it takes as long again to wake one that sleeps.
 */
const LOOKING = 0.1;

/** Requests that are waited for asleep after looking has been in vain again and again. */
const MOST_PAUSES = 256;

/** Decides for each request whether to look or to sleep: in vain, it looks half as often; with success, twice as often. */
export class Patience {
  readonly #device: number;
  /** Requests to wait for asleep before looking again. */
  #left = 0;
  #pauses = 1;

  constructor(device: number) {
    this.#device = device;
  }

  /** Returns when a request waits on the device, or when it is time to sleep until one does. */
  look(): void {
    if (this.#left > 0) {
      this.#left--;
      return;
    }
    const end = performance.now() + LOOKING;
    do {
      if (requestWaits(this.#device)) {
        this.#pauses = Math.max(1, this.#pauses / 2);
        return;
      }
    } while (performance.now() < end);
    this.#left = this.#pauses;
    this.#pauses = Math.min(this.#pauses * 2, MOST_PAUSES);
  }
}
