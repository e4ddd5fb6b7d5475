import { closeSync, openSync, readSync } from "node:fs";
import { Blake3Hasher } from "blake3";
import { type Hash, ioError } from "../../cas/index.ts";
import { type Dentry, isDirectoryMode } from "./model.ts";
import { encodeXattrs } from "./xattrs.ts";

const READ_SIZE = 1024 * 1024;
const BUFFER_SIZE = 64 * 1024;
/** Bytes of an entry apart from name, extended attributes and target: the most that its numbers and hash take. */
const FIXED_SIZE = 1 + 4 + 4 + 4 + 8 + 8 + 4 + 32;

/** The BLAKE3-256 hash of a whole file, read in pieces. */
export function hashFile(file: string): Hash {
  try {
    const descriptor = openSync(file, "r");
    try {
      const hasher = new Blake3Hasher();
      const buffer = Buffer.allocUnsafe(READ_SIZE);
      for (;;) {
        const read = readSync(descriptor, buffer, 0, READ_SIZE, null);
        if (read === 0) return hasher.digest("hex");
        hasher.update(buffer.subarray(0, read));
      }
    } finally {
      closeSync(descriptor);
    }
  } catch (error) {
    throw ioError(`read ${file}`, error);
  }
}

/**
 * Tree hashes of directories: BLAKE3 in key derivation mode, context `datamon directory 1`, over
 * the entries in byte order of names, each as (numbers little-endian)
 *
 *     name length u8, name, mode u32, uid u32, gid u32, mtime i64 in ns, size u64,
 *     length of the extended attributes u32, extended attributes as in xattrs.ts,
 *     then 32 bytes of content or tree hash, or the target of a symbolic link (as long as its size)
 *
 * One instance hashes any number of directories, one after the other.
 */
export class DirectoryHasher {
  readonly #hasher = Blake3Hasher.newDeriveKey("datamon directory 1");
  readonly #buffer = Buffer.allocUnsafeSlow(BUFFER_SIZE);
  /** The same memory: it has numbers of 64 bits several times sooner. */
  readonly #words = new DataView(this.#buffer.buffer);
  #used = 0;

  /** Adds the next entry of the directory at hand. Throws a RangeError for an entry that lacks its hash or target. */
  add({ name, inode }: Dentry): void {
    const xattrs = encodeXattrs(inode.xattrs);
    if (this.#used + FIXED_SIZE + name.length > BUFFER_SIZE) this.#flush();
    const buffer = this.#buffer;
    let at = this.#used;
    at = buffer.writeUInt8(name.length, at);
    at += buffer.write(name, at, "latin1");
    at = buffer.writeUInt32LE(inode.mode, at);
    at = buffer.writeUInt32LE(inode.uid, at);
    at = buffer.writeUInt32LE(inode.gid, at);
    this.#words.setBigInt64(at, inode.mtimeNs, true);
    at = buffer.writeUInt32LE(inode.size % 2 ** 32, at + 8);
    at = buffer.writeUInt32LE(Math.floor(inode.size / 2 ** 32), at);
    at = buffer.writeUInt32LE(xattrs?.length ?? 0, at);
    this.#used = at;
    if (xattrs !== null) this.#long(xattrs);
    if (inode.target !== undefined) {
      if (inode.target.length !== inode.size) throw new RangeError("a symbolic link's size is not that of its target");
      this.#long(Buffer.from(inode.target, "latin1"));
    } else {
      if (inode.hash?.length !== 64) throw new RangeError("an entry lacks its hash");
      this.#used += buffer.write(inode.hash, this.#used, 32, "hex");
    }
  }

  /** The hash of the entries added since the last call. */
  digest(): Hash {
    this.#flush();
    const hash = this.#hasher.digest("hex");
    this.#hasher.reset();
    return hash;
  }

  /** Adds bytes of any length; afterwards the buffer has room for a hash. */
  #long(bytes: Buffer): void {
    this.#flush();
    this.#hasher.update(bytes);
  }

  #flush(): void {
    if (this.#used > 0) this.#hasher.update(this.#buffer.subarray(0, this.#used));
    this.#used = 0;
  }
}

/** The tree hash of a directory with these entries, which must be in order, and its number of links. */
export function hashDirectory(
  hasher: DirectoryHasher,
  entries: Iterable<Dentry>,
): { hash: Hash; nlink: number; count: number } {
  let nlink = 2;
  let count = 0;
  for (const entry of entries) {
    hasher.add(entry);
    count++;
    if (isDirectoryMode(entry.inode.mode)) nlink++;
  }
  return { hash: hasher.digest(), nlink, count };
}
