import { againIfDamaged } from "./damage.ts";
import { DamagedObjectError } from "./errors.ts";
import { decodeFrame, encodeFrame, MAX_FRAME_SIZE } from "./frame.ts";
import { type Hash, hashOf } from "./hash.ts";
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
   * The blob's content, verified against its hash. What is damaged is read again, because most damage
   * happens on the way. Throws `ObjectNotFoundError` or `DamagedObjectError`.
   */
  async get(hash: Hash): Promise<Buffer> {
    return await againIfDamaged(() => this.#get(hash));
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
      if (await this.has(hash)) return 0;
      this.#mayBeThere = false;
    }
    const [header, body] = await encodeFrame(content);
    if (await this.store.put(blobKey(hash), [header, body], { ifAbsent: true })) return header.length + body.length;
    this.#mayBeThere = true;
    return 0;
  }

  async #get(hash: Hash): Promise<Buffer> {
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
}

/** The key of a blob: `blobs/ab/abcd…`. */
export function blobKey(hash: Hash): string {
  return `blobs/${hash.slice(0, 2)}/${hash}`;
}
