/**
 * CRC-32C (Castagnoli, RFC 3720 appendix B.4), the checksum that Google Cloud Storage keeps of every
 * object. Eight bytes a step ("slicing by 8", Kounavis and Berry, 2005): byte by byte it would take
 * longer than a fast network does.
 */

const REVERSED_POLYNOMIAL = 0x82f63b78;
const TABLES = makeTables();
const [T0, T1, T2, T3, T4, T5, T6, T7] = TABLES as [
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
];

/** The checksum of `bytes`, or of what `previous` is the checksum of with `bytes` after it; unsigned. */
export function crc32c(bytes: Uint8Array, previous = 0): number {
  let crc = ~previous;
  let at = 0;
  for (const last = bytes.length - 8; at <= last; at += 8) {
    crc ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
    crc =
      T7[crc & 0xff]! ^
      T6[(crc >>> 8) & 0xff]! ^
      T5[(crc >>> 16) & 0xff]! ^
      T4[crc >>> 24]! ^
      T3[bytes[at + 4]!]! ^
      T2[bytes[at + 5]!]! ^
      T1[bytes[at + 6]!]! ^
      T0[bytes[at + 7]!]!;
  }
  for (; at < bytes.length; at++) crc = T0[(crc ^ bytes[at]!) & 0xff]! ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** A checksum of 32 bits as the services write it: the four bytes, highest first, in base64. */
export function encodeChecksum(checksum: number): string {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(checksum);
  return bytes.toString("base64");
}

function makeTables(): Int32Array[] {
  const first = new Int32Array(256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? REVERSED_POLYNOMIAL : 0);
    first[byte] = crc;
  }
  const tables = [first];
  for (let distance = 1; distance < 8; distance++) {
    const previous = tables[distance - 1]!;
    tables.push(previous.map((crc) => (crc >>> 8) ^ first[crc & 0xff]!));
  }
  return tables;
}
