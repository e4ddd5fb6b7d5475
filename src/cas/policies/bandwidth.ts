import type { ObjectStore } from "../store.ts";
import { type Perform, PolicyStore, pause, type StoreRequest, sentBytes } from "./policy.ts";

/**
 * Keeps the bytes of bodies, both ways together, below a rate (a token bucket that holds one second's
 * worth). What is sent waits before, what is received after, when its size is known.
 */
export class BandwidthStore extends PolicyStore {
  readonly #rate: number;
  #tokens: number;
  #filled = performance.now();

  /** @param rate bytes a second */
  constructor(inner: ObjectStore, rate: number) {
    super(inner);
    this.#rate = rate;
    this.#tokens = rate;
  }

  protected async around<T>(request: StoreRequest, perform: Perform<T>): Promise<T> {
    await this.#take(await sentBytes(request, this.url), request.signal);
    const result = await perform(request.signal);
    if (Buffer.isBuffer(result)) await this.#take(result.length, request.signal);
    return result;
  }

  /** Takes at once, if need be on credit, and waits until the debt is paid: so nobody is overtaken for ever. */
  async #take(bytes: number, signal: AbortSignal | undefined): Promise<void> {
    const now = performance.now();
    this.#tokens = Math.min(this.#rate, this.#tokens + ((now - this.#filled) / 1000) * this.#rate) - bytes;
    this.#filled = now;
    if (this.#tokens < 0) await pause((-this.#tokens / this.#rate) * 1000, signal);
  }
}
