import { crc32 } from "node:zlib";
import { LARGE_FILE } from "../content.ts";
import { DatamonError, ObjectNotFoundError } from "../errors.ts";
import { hashOf } from "../hash.ts";
import type { ObjectInfo, ObjectStore } from "../store.ts";
import { crc32c } from "../stores/crc32c.ts";
import type { FileStat, ObjectSource, OpenObject } from "./source.ts";

/** What is asked for at once of a large object, and how much of it is under way or waits to be taken. */
const PIECE = 4 * 1024 * 1024;
const PIECES_AHEAD = 4;

/**
 * An object of a bucket (see `openBucket`) as a source: small ones in one request, large ones by ranges,
 * several at a time, and all of it as it was at one moment. Its size and, where the store has one, its
 * checksum are checked.
 *
 * @param info as it was listed
 */
export function objectSource(bucket: ObjectStore, info: ObjectInfo): ObjectSource {
  return {
    kind: "object",
    size: info.size,
    async open(tries, signal) {
      // Listings need not have the checksum of a large object; small ones come with theirs.
      const known = tries === 1 && (info.size < LARGE_FILE || info.state?.checksum !== undefined);
      const current = known ? info : await bucket.head(info.key, { signal });
      if (current === undefined) throw new ObjectNotFoundError(bucket.url, info.key);
      return new OpenedObject(bucket, current, signal);
    },
  };
}

/** What an object is known by, in the form of a file's: where it changes, so does the inode number. */
export function objectStat({ size, state }: ObjectInfo): FileStat {
  const { version = "", modified = 0 } = state ?? {};
  const ino = BigInt(`0x${hashOf(Buffer.from(version)).slice(0, 16)}`);
  return { size, mtimeNs: BigInt(modified) * 1_000_000n, ctimeNs: 0n, ino, dev: 0n };
}

class OpenedObject implements OpenObject {
  readonly stat: FileStat;
  readonly #bucket: ObjectStore;
  readonly #info: ObjectInfo;
  readonly #signal: AbortSignal;
  readonly #ahead: Promise<Buffer>[] = [];
  /** Up to here pieces were asked for. */
  #asked = 0;
  /** Up to here bytes were given out. */
  #given = 0;
  /** What came and was not given out yet. */
  #rest: Buffer = Buffer.alloc(0);
  #checksum = 0;

  constructor(bucket: ObjectStore, info: ObjectInfo, signal: AbortSignal) {
    this.stat = objectStat(info);
    this.#bucket = bucket;
    this.#info = info;
    this.#signal = signal;
  }

  async read(offset: number, length: number): Promise<Buffer> {
    if (offset !== this.#given) throw new Error("an object is read from front to back");
    const parts: Buffer[] = [];
    for (let missing = length; missing > 0; ) {
      if (this.#rest.length === 0) this.#rest = await this.#next();
      const part = this.#rest.subarray(0, missing);
      parts.push(part);
      missing -= part.length;
      this.#rest = this.#rest.subarray(part.length);
    }
    this.#given += length;
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  }

  async #next(): Promise<Buffer> {
    const { size } = this.#info;
    while (this.#ahead.length < PIECES_AHEAD && this.#asked < size) {
      const piece = this.#fetch(this.#asked, Math.min(PIECE, size - this.#asked));
      // One that fails may never be taken, because the one before it failed, too.
      piece.catch(() => undefined);
      this.#ahead.push(piece);
      this.#asked += PIECE;
    }
    const piece = await this.#ahead.shift();
    if (piece === undefined) throw new Error("an object is read beyond its end");
    const last = this.#ahead.length === 0 && this.#asked >= size;
    this.#check(piece, last);
    return piece;
  }

  async #fetch(offset: number, length: number): Promise<Buffer> {
    const { key, state } = this.#info;
    const options = { signal: this.#signal, ...(state === undefined ? {} : { ifVersion: state.version }) };
    const piece = await this.#bucket.get(key, { offset, length }, options);
    if (piece.length !== length)
      throw this.#changed(`it has ${offset + piece.length} bytes instead of ${this.#info.size}`);
    return piece;
  }

  #check(piece: Buffer, last: boolean): void {
    const expected = this.#info.state?.checksum;
    if (expected === undefined) return;
    this.#checksum = expected.kind === "crc32" ? crc32(piece, this.#checksum) : crc32c(piece, this.#checksum);
    if (last && this.#checksum !== Buffer.from(expected.value, "base64").readUInt32BE()) {
      throw this.#changed("what came does not have the checksum that the store has for it");
    }
  }

  #changed(why: string): DatamonError {
    return new DatamonError("changed", `cannot read object ${this.#info.key} in ${this.#bucket.url}: ${why}`);
  }
}
