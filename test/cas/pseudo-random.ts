/**
 * `length` bytes (a multiple of 4) that are the same everywhere and look random: the states of the
 * 32-bit xorshift generator (13, 17, 5; Marsaglia 2003) from `seed` (not 0) on, little endian.
 */
export function pseudoRandom(seed: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafeSlow(length);
  let state = seed;
  for (let at = 0; at < length; at += 4) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes.writeInt32LE(state, at);
  }
  return bytes;
}
