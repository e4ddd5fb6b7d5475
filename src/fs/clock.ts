/** The time for what happens to files. */

const MILLISECOND = 1_000_000n;

/** What the clock of nanoseconds, which begins anywhere, has to be put forward by. */
let offset = 0n;

/**
 * Now, in nanoseconds since the epoch: a clock of nanoseconds that is kept within the millisecond
 * which the system's clock shows, so that it follows when that one is set.
 */
export function nowNs(): bigint {
  const floor = BigInt(Date.now()) * MILLISECOND;
  const fine = process.hrtime.bigint();
  const shown = fine + offset;
  const now = shown < floor ? floor : shown < floor + MILLISECOND ? shown : floor + MILLISECOND - 1n;
  offset = now - fine;
  return now;
}
