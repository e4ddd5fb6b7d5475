/** Counts and latencies of a mount's requests: always on, and so made of a few additions to shared numbers. */

/** A time is counted to within an eighth of itself: buckets in a doubling, as a power of two. */
const SHARE_BITS = 3;
const SHARES = 1 << SHARE_BITS;
/** Units in a millisecond, so that one is a sixteenth of a microsecond. */
const UNITS = 1 << 14;
/** In units, 131 seconds: what took longer counts as this. */
const LONGEST = 2 ** 31 - 1;
/** Buckets: one for each number of units below `SHARES`, then `SHARES` for each doubling. */
const BUCKETS = SHARES * (32 - SHARE_BITS);

/** What was measured of one kind of request; times in microseconds, as the upper ends of their buckets. */
export interface Latencies {
  readonly count: number;
  readonly p50Us: number;
  readonly p90Us: number;
  readonly p99Us: number;
}

/**
 * Histograms of how long requests took, one for each of a number of kinds. One thread writes; others,
 * given `shared`, may read at any time, and see each request or not yet. Noting allocates nothing.
 */
export class Meter {
  readonly kinds: number;
  readonly shared: SharedArrayBuffer;
  readonly #counts: Float64Array;

  constructor(kinds: number, shared?: SharedArrayBuffer) {
    this.kinds = kinds;
    this.shared = shared ?? new SharedArrayBuffer(kinds * BUCKETS * Float64Array.BYTES_PER_ELEMENT);
    this.#counts = new Float64Array(this.shared);
  }

  /** Counts a request that took this long; a kind that there is not counts as kind 0. */
  note(kind: number, milliseconds: number): void {
    const at = (kind < this.kinds ? kind : 0) * BUCKETS + bucketOf(milliseconds);
    this.#counts[at] = this.#counts[at]! + 1;
  }

  /** All that was noted of a kind. */
  latencies(kind: number): Latencies {
    const counts = this.#counts.slice(kind * BUCKETS, (kind + 1) * BUCKETS);
    const count = counts.reduce((sum, one) => sum + one, 0);
    const [p50Us, p90Us, p99Us] = [0.5, 0.9, 0.99].map((share) => percentile(counts, count * share));
    return { count, p50Us: p50Us!, p90Us: p90Us!, p99Us: p99Us! };
  }
}

/**
 * The bucket of a time: as in a floating-point number, its highest bit gives the doubling and the
 * `SHARE_BITS` after that the place in it.
 */
function bucketOf(milliseconds: number): number {
  const units = Math.max(0, Math.min(LONGEST, milliseconds * UNITS)) | 0;
  if (units < SHARES) return units;
  const doubling = 31 - SHARE_BITS - Math.clz32(units);
  return doubling * SHARES + (units >> doubling);
}

/** The smallest time above those of a bucket, in microseconds. */
function endOf(bucket: number): number {
  const doubling = Math.max(0, Math.floor(bucket / SHARES) - 1);
  const units = (bucket - doubling * SHARES + 1) * 2 ** doubling;
  return Math.round((units / UNITS) * 1e4) / 10;
}

/** The time, in microseconds, below which lie as many as `rank`. */
function percentile(counts: Float64Array, rank: number): number {
  if (rank === 0) return 0;
  let sum = 0;
  let bucket = 0;
  while (bucket < counts.length - 1) {
    sum += counts[bucket]!;
    if (sum >= rank) break;
    bucket++;
  }
  return endOf(bucket);
}
