import { randomBytes } from "node:crypto";
import KSUID from "ksuid";
import { DatamonError } from "../cas/index.ts";

/** The second that KSUIDs count from, in Unix time (github.com/segmentio/ksuid). */
const EPOCH_SECONDS = 1_400_000_000n;
const TIME_BYTES = 8;
const RAW_BYTES = 20;
/** 20 bytes of 255; base 62 with 27 digits could write more. */
const LARGEST = new KSUID(Buffer.alloc(RAW_BYTES, 255)).string;

/**
 * A new bundle id: a KSUID, so that ids in their order are bundles in the order of their making.
 * A KSUID's 4 bytes of seconds are followed by 4 bytes with the fraction of the second and 12
 * random ones. Where a clock says otherwise, the id comes after those of the parents all the same.
 */
export function newBundleId(parents: readonly string[]): string {
  let time = timeBits(Date.now());
  for (const parent of parents) {
    const parentTime = KSUID.parse(parent).raw.readBigUInt64BE(0);
    if (parentTime >= time) time = parentTime + 1n;
  }
  if (time >> 64n !== 0n) throw new DatamonError("usage", `no bundle can follow ${parents.join(", ")}`);
  const raw = randomBytes(RAW_BYTES);
  raw.writeBigUInt64BE(time, 0);
  return new KSUID(raw).string;
}

/** The smallest bundle id of a moment (milliseconds since 1970), to list from. */
export function bundleIdAt(milliseconds: number): string {
  const raw = Buffer.alloc(RAW_BYTES);
  raw.writeBigUInt64BE(timeBits(milliseconds), 0);
  return new KSUID(raw).string;
}

/** True where `text` has the form of a whole bundle id. */
export function isBundleId(text: string): boolean {
  return /^[0-9A-Za-z]{27}$/.test(text) && text <= LARGEST;
}

/** Seconds since the epoch of KSUIDs with 32 bits of fraction; 0 for moments before it. */
function timeBits(milliseconds: number): bigint {
  const bits = (BigInt(milliseconds) << 32n) / 1000n - (EPOCH_SECONDS << 32n);
  return bits < 0n ? 0n : BigInt.asUintN(TIME_BYTES * 8, bits);
}
