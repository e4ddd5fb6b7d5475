/** Where in memory bytes lie: what the kernel wants aligned of whom it is to write past its page cache. */

import { createRequire } from "node:module";

type Address = (bytes: Uint8Array) => bigint;

const require = createRequire(import.meta.url);
/** Bound when first used: loading it takes some 20 ms. Null where this machine has none. */
let address: Address | null | undefined;

/**
 * The address of the first of the bytes, in a buffer of any kind or in a part of one; undefined where it cannot
 * be told. It stays the same while the buffer lives.
 */
export function addressOf(bytes: Uint8Array): number | undefined {
  if (address === undefined) address = bind();
  if (address === null || bytes.length === 0) return undefined;
  try {
    return Number(address(bytes));
  } catch {
    return undefined;
  }
}

function bind(): Address | null {
  try {
    return require("koffi").address;
  } catch {
    return null;
  }
}
