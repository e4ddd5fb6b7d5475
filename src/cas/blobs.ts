import { DamagedObjectError } from "./errors.ts";
import { decodeFrame, encodeFrame, MAX_FRAME_SIZE } from "./frame.ts";
import { type Hash, hashOf } from "./hash.ts";
import type { ObjectStore } from "./store.ts";

/** Blobs in an object store: content of at most `MAX_BLOB_SIZE` bytes under its own hash, in its stored form. */
export class BlobStore {
  readonly store: ObjectStore;

  constructor(store: ObjectStore) {
    this.store = store;
  }

  /** The blob's content, verified against its hash. Throws `ObjectNotFoundError` or `DamagedObjectError`. */
  async get(hash: Hash): Promise<Buffer> {
    const key = blobKey(hash);
    // A byte more than any blob has, so that a longer object is noticed without being read.
    const frame = await this.store.get(key, { offset: 0, length: MAX_FRAME_SIZE + 1 });
    let content: Buffer;
    try {
      content = await decodeFrame(frame);
    } catch (error) {
      throw new DamagedObjectError(this.store.url, key, (error as Error).message, error);
    }
    const actual = hashOf(content);
    if (actual !== hash) throw new DamagedObjectError(this.store.url, key, `its content has the hash ${actual}`);
    return content;
  }

  /** True where the blob is in the store; its bytes are not looked at. */
  async has(hash: Hash): Promise<boolean> {
    return (await this.store.head(blobKey(hash))) !== undefined;
  }

  /**
   * Stores `content`, whose hash is `hash`, durably.
   *
   * @returns the bytes stored; 0 where the blob was there already
   */
  async put(hash: Hash, content: Buffer): Promise<number> {
    if (await this.has(hash)) return 0;
    const [header, body] = await encodeFrame(content);
    const created = await this.store.put(blobKey(hash), [header, body], { ifAbsent: true });
    return created ? header.length + body.length : 0;
  }
}

/** The key of a blob: `blobs/ab/abcd…`. */
export function blobKey(hash: Hash): string {
  return `blobs/${hash.slice(0, 2)}/${hash}`;
}
