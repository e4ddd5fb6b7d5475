import { againIfDamaged } from "./damage.ts";
import { DamagedObjectError } from "./errors.ts";
import { decodeFrame, encodeFrame, HEADER_SIZE, MAX_FRAME_SIZE } from "./frame.ts";
import { type Hash, hashOf } from "./hash.ts";
import { Loan, type Memory } from "./memory.ts";
import { isSettled, readCopy } from "./replicas/replicated-store.ts";
import type { ObjectStore } from "./store.ts";

/** Blobs in an object store: content of at most `MAX_BLOB_SIZE` bytes under its own hash, in its stored form. */
export class BlobStore {
  readonly store: ObjectStore;
  /** As it was with the last blob put; at first, as after an upload that was interrupted. */
  #mayBeThere = true;

  constructor(store: ObjectStore) {
    this.store = store;
  }

  /**
   * The blob's content, verified against its hash. What is damaged is read from another copy, where there
   * is one, and again, because most damage happens on the way. Throws `ObjectNotFoundError` or `DamagedObjectError`.
   *
   * @param memory where memory for it may come from; the caller gives it back or not
   */
  async get(hash: Hash, memory?: Memory): Promise<Buffer> {
    return await againIfDamaged(() => readCopy(this.store, (copy, signal) => readBlob(copy, hash, signal, memory)));
  }

  /**
   * `length` bytes at `offset` of the content of a blob that is stored uncompressed, in a request for these
   * alone. Undefined where what comes does not have the hash `slice`: the blob is compressed, or damaged.
   */
  async getSlice(hash: Hash, offset: number, length: number, slice: Hash): Promise<Buffer | undefined> {
    const bytes = await this.store.get(blobKey(hash), { offset: HEADER_SIZE + offset, length });
    return hashOf(bytes) === slice ? bytes : undefined;
  }

  /** True where the blob is in the store; its bytes are not looked at. */
  async has(hash: Hash): Promise<boolean> {
    return (await this.store.head(blobKey(hash))) !== undefined;
  }

  /**
   * Stores `content`, whose hash is `hash`, durably.
   *
   * Whether it is there already is asked first only where the blob before was: new data comes in one
   * round trip a blob, and of data that is stored already only what is under way when that turns
   * out is sent for nothing.
   *
   * @returns the bytes stored; 0 where the blob was there already
   */
  async put(hash: Hash, content: Buffer): Promise<number> {
    if (this.#mayBeThere) {
      if (await isSettled(this.store, blobKey(hash))) return 0;
      this.#mayBeThere = false;
    }
    const [header, body] = await encodeFrame(content);
    if (await this.store.put(blobKey(hash), [header, body], { ifAbsent: true })) return header.length + body.length;
    this.#mayBeThere = true;
    return 0;
  }
}

/** The content of the blob in this store alone, verified. Throws `ObjectNotFoundError` or `DamagedObjectError`. */
export async function readBlob(store: ObjectStore, hash: Hash, signal?: AbortSignal, memory?: Memory): Promise<Buffer> {
  const loan = memory && new Loan(memory);
  const options = { ...(signal !== undefined && { signal }), ...(loan !== undefined && { memory: loan }) };
  let content: Buffer | undefined;
  try {
    // A byte more than any blob has, so that a longer object is noticed without being read.
    const frame = await store.get(blobKey(hash), { offset: 0, length: MAX_FRAME_SIZE + 1 }, options);
    content = await verifyBlob(store, hash, frame);
    // Another copy came first, and nobody takes this one.
    signal?.throwIfAborted();
    return content;
  } finally {
    // Answers that were refused, too, and those of attempts that failed.
    loan?.end(signal?.aborted === true ? undefined : content);
  }
}

/** The content of the stored form of a blob, verified. Throws `DamagedObjectError`. */
export async function verifyBlob(store: ObjectStore, hash: Hash, frame: Buffer): Promise<Buffer> {
  const key = blobKey(hash);
  let content: Buffer;
  try {
    content = await decodeFrame(frame);
  } catch (error) {
    throw new DamagedObjectError(store.url, key, (error as Error).message, error);
  }
  const actual = hashOf(content);
  if (actual !== hash) throw new DamagedObjectError(store.url, key, `its content has the hash ${actual}`);
  return content;
}

/** The key of a blob: `blobs/ab/abcd…`. */
export function blobKey(hash: Hash): string {
  return `blobs/${hash.slice(0, 2)}/${hash}`;
}
