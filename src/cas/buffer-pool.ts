/** Capacities are multiples of this, so that what one object left serves others of about its size. */
const STEP = 1024 * 1024;
/** A free buffer serves requests for no less than this part of it. */
const LEAST_USE = 0.25;

/**
 * Memory for objects of megabytes, used again and again. Left to the garbage collector, a stream of them
 * costs more processor time (for marking the heap, and for mapping and clearing pages) than the network.
 * What is taken and not given back is collected as ever.
 */
export class BufferPool {
  readonly #limit: number;
  /** From the smallest to the largest; of a size, the one that was used last first, which is in the processor's caches. */
  readonly #free: Buffer[] = [];
  readonly #owned = new WeakSet<ArrayBufferLike>();
  #freeBytes = 0;

  /** @param limit how many bytes are kept free at the most */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /** A buffer of so many bytes of any content. */
  take(length: number): Buffer {
    // The smallest that will do.
    const index = this.#free.findIndex((buffer) => buffer.length >= length);
    if (index >= 0 && this.#free[index]!.length * LEAST_USE <= length) {
      const found = this.#free.splice(index, 1)[0]!;
      this.#freeBytes -= found.length;
      return found.subarray(0, length);
    }
    const buffer = Buffer.allocUnsafeSlow(Math.ceil(length / STEP) * STEP);
    this.#owned.add(buffer.buffer);
    return buffer.subarray(0, length);
  }

  /** How much memory stands behind a buffer, or a part of one: more than its length where it is of this pool. */
  sizeOf(part: Buffer): number {
    return this.#owned.has(part.buffer) ? part.buffer.byteLength : part.length;
  }

  /** Takes back a buffer, or a part of one, that nobody looks at any more. What is not of this pool is left alone. */
  give(part: Buffer): void {
    if (!this.#owned.has(part.buffer)) return;
    const buffer = Buffer.from(part.buffer);
    if (this.#freeBytes + buffer.length > this.#limit) return;
    this.#freeBytes += buffer.length;
    const place = this.#free.findIndex((other) => other.length >= buffer.length);
    this.#free.splice(place < 0 ? this.#free.length : place, 0, buffer);
  }
}
