import { Blake3Hasher } from "blake3";

/** A BLAKE3-256 hash as 64 lower-case hexadecimal digits. */
export type Hash = string;

const hasher = new Blake3Hasher();

/** The BLAKE3-256 hash of `content`. */
export function hashOf(content: Uint8Array): Hash {
  // With one hasher for all no buffer is made for the result, which for a small file would take as long as hashing it.
  hasher.reset();
  hasher.update(content);
  return hasher.digest("hex");
}

/**
 * A hasher in BLAKE3's key derivation mode: hashes made for one purpose (`context`) never equal
 * hashes made for another or plain content hashes.
 */
export class DerivedHasher {
  readonly #hasher: Blake3Hasher;

  constructor(context: string) {
    this.#hasher = Blake3Hasher.newDeriveKey(context);
  }

  update(bytes: Uint8Array): this {
    this.#hasher.update(bytes);
    return this;
  }

  digest(): Hash {
    return this.#hasher.digest("hex");
  }
}

/** True where `text` has the form of a hash. */
export function isHash(text: string): boolean {
  return /^[0-9a-f]{64}$/.test(text);
}
