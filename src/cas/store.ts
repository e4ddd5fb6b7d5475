/** The object store seam: what every place that keeps objects offers, and all that the rest knows of it. */

import type { Memory } from "./memory.ts";

/** Where an object's bytes come from: memory, in one piece or in several that follow each other, or a whole file on disk. */
export type ObjectBody = Uint8Array | readonly Uint8Array[] | { readonly file: string };

/** A run of an object's bytes. */
export interface ByteRange {
  /** First byte, from 0. */
  readonly offset: number;
  /** How many bytes; fewer come back where the object ends before. */
  readonly length: number;
}

/** What every request can be given. */
export interface RequestOptions {
  /** Ends the request early where the store can; the promise then rejects with the signal's reason or `unavailable`. */
  readonly signal?: AbortSignal;
  /** Where the memory for a large answer may come from. It is the caller's, to give back or not. */
  readonly memory?: Memory;
}

/** How an object is read. */
export interface GetOptions extends RequestOptions {
  /** Throws "changed" where the object is another one than this state tells of; buckets only, see `openBucket`. */
  readonly ifVersion?: string;
}

/** An object as a listing or a `head` shows it. */
export interface ObjectInfo {
  readonly key: string;
  /** Stored size in bytes. */
  readonly size: number;
  /** What else is known of an object of a bucket; see `openBucket`. */
  readonly state?: ObjectState;
}

/** What a bucket tells of an object that Datamon did not put there. */
export interface ObjectState {
  /** Another one whenever the object is put: its generation, or its ETag. */
  readonly version: string;
  /** When it was put, in milliseconds since 1970. */
  readonly modified: number;
  /** Of all its bytes, in base64; undefined where the store has none. Listings of S3 never tell. */
  readonly checksum?: { readonly kind: "crc32" | "crc32c"; readonly value: string };
}

/** How an object is put. */
export interface PutOptions extends RequestOptions {
  /** Leave an object that is there already as it is. */
  readonly ifAbsent?: boolean;
}

/** What part of a listing is wanted. */
export interface ListOptions extends RequestOptions {
  /** The key that the page's first one comes after. */
  readonly after?: string;
  /** How many objects a page has at the most. */
  readonly limit?: number;
}

/**
 * A store of immutable objects named by keys. Keys are `/`-separated ASCII paths such as
 * `blobs/ab/abcd…`; listings are in the byte order of the whole key. Every method may be called by
 * many callers and processes at once. Failures are `DatamonError`s that name the key.
 */
export interface ObjectStore {
  /** The URL that opened it, for messages. */
  readonly url: string;

  /** The object's bytes, or a run of them. Throws `ObjectNotFoundError`. */
  get(key: string, range?: ByteRange, options?: GetOptions): Promise<Buffer>;

  /**
   * Stores an object whole and durably before it resolves. With `ifAbsent`, an object that is there
   * already stays untouched and the answer is false: of any number of concurrent writers exactly
   * one gets true. Without it the object is replaced atomically (for repairs only). The body's memory
   * is the caller's again, to change or reuse, when the promise has settled.
   */
  put(key: string, body: ObjectBody, options?: PutOptions): Promise<boolean>;

  /** The object's size, or undefined where it is not there. */
  head(key: string, options?: RequestOptions): Promise<ObjectInfo | undefined>;

  /**
   * One page, in key order, of the objects whose keys start with `prefix` and come after `after`.
   * An empty page is the end. A page costs in proportion to its size, not to the store's.
   */
  list(prefix: string, options?: ListOptions): Promise<ObjectInfo[]>;

  /** Removes an object; an object that is not there is no error. */
  delete(key: string, options?: RequestOptions): Promise<void>;
}

/** Every object below `prefix`, in key order, fetched page by page. */
export async function* listAll(store: ObjectStore, prefix: string, signal?: AbortSignal): AsyncGenerator<ObjectInfo> {
  const within = signal === undefined ? {} : { signal };
  let after: string | undefined;
  for (;;) {
    const page = await store.list(prefix, after === undefined ? within : { ...within, after });
    if (page.length === 0) return;
    yield* page;
    after = page[page.length - 1]?.key;
  }
}
