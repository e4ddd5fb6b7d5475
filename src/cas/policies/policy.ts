import { setTimeout as delay } from "node:timers/promises";
import type {
  ByteRange,
  GetOptions,
  ListOptions,
  ObjectBody,
  ObjectInfo,
  ObjectStore,
  PutOptions,
  RequestOptions,
} from "../store.ts";

import { sizeOf } from "../stores/body.ts";

/** A request to a store, as policies see it. */
export interface StoreRequest {
  readonly verb: "get" | "put" | "head" | "list" | "delete";
  /** The key, or the prefix of a listing. */
  readonly key: string;
  readonly range?: ByteRange | undefined;
  readonly body?: ObjectBody;
  readonly signal?: AbortSignal | undefined;
}

/** Performs a request once, to be ended early by the signal. */
export type Perform<T> = (signal: AbortSignal | undefined) => Promise<T>;

/** A wrapper around a store that does something about every request, and knows nothing of any particular store. */
export abstract class PolicyStore implements ObjectStore {
  readonly url: string;
  protected readonly inner: ObjectStore;

  constructor(inner: ObjectStore) {
    this.url = inner.url;
    this.inner = inner;
  }

  get(key: string, range?: ByteRange, options: GetOptions = {}): Promise<Buffer> {
    const request: StoreRequest = { verb: "get", key, range, signal: options.signal };
    return this.around(request, (own) => this.inner.get(key, range, { ...options, ...within(own) }));
  }

  put(key: string, body: ObjectBody, options: PutOptions = {}): Promise<boolean> {
    const request: StoreRequest = { verb: "put", key, body, signal: options.signal };
    return this.around(request, (own) => this.inner.put(key, body, { ...options, ...within(own) }));
  }

  head(key: string, { signal }: RequestOptions = {}): Promise<ObjectInfo | undefined> {
    return this.around({ verb: "head", key, signal }, (own) => this.inner.head(key, within(own)));
  }

  list(prefix: string, options: ListOptions = {}): Promise<ObjectInfo[]> {
    const request: StoreRequest = { verb: "list", key: prefix, signal: options.signal };
    return this.around(request, (own) => this.inner.list(prefix, { ...options, ...within(own) }));
  }

  delete(key: string, { signal }: RequestOptions = {}): Promise<void> {
    return this.around({ verb: "delete", key, signal }, (own) => this.inner.delete(key, within(own)));
  }

  protected abstract around<T>(request: StoreRequest, perform: Perform<T>): Promise<T>;
}

/** The length of what a request sends, in bytes. */
export async function sentBytes({ verb, key, body }: StoreRequest, url: string): Promise<number> {
  return body === undefined ? 0 : await sizeOf(body, `${verb} object ${key} in ${url}`);
}

/** Waits so many milliseconds; rejects with the signal's reason where that comes first. */
export async function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  await delay(milliseconds, undefined, within(signal)).catch((error) => {
    signal?.throwIfAborted();
    throw error;
  });
}

function within(signal: AbortSignal | undefined): RequestOptions {
  return signal === undefined ? {} : { signal };
}
