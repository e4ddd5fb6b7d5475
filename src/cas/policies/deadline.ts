import { UnavailableError } from "../errors.ts";
import type { ObjectStore } from "../store.ts";
import { type Perform, PolicyStore, type StoreRequest, sentBytes } from "./policy.ts";

const DEFAULT = 60_000;
/** Bytes a second; what moves more slowly than this may as well stand still. */
const SLOWEST = 32 * 1024;

/**
 * Ends a request that takes longer than a minute and what its bytes need on the slowest network. Stores
 * notice by themselves when nothing moves at all; this is for what moves, but comes to nothing.
 */
export class DeadlineStore extends PolicyStore {
  readonly #milliseconds: number;

  /** @param milliseconds for a request without its bytes */
  constructor(inner: ObjectStore, milliseconds = DEFAULT) {
    super(inner);
    this.#milliseconds = milliseconds;
  }

  protected async around<T>(request: StoreRequest, perform: Perform<T>): Promise<T> {
    // An object of unknown size may take as long as it does.
    if (request.verb === "get" && request.range === undefined) return await perform(request.signal);
    const bytes = (await sentBytes(request, this.url)) + (request.range?.length ?? 0);
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(), this.#milliseconds + (1000 * bytes) / SLOWEST);
    try {
      return await perform(
        request.signal === undefined ? limit.signal : AbortSignal.any([request.signal, limit.signal]),
      );
    } catch (error) {
      if (!limit.signal.aborted || request.signal?.aborted === true) throw error;
      const message = `cannot ${request.verb} ${request.key} in ${this.url}: it takes too long`;
      throw new UnavailableError(message, { cause: error });
    } finally {
      clearTimeout(timer);
    }
  }
}
