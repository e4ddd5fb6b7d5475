import { DatamonError } from "./errors.ts";
import type { StoreMetrics } from "./policies/metrics.ts";
import type { RetryOptions } from "./policies/retry.ts";
import { ReplicatedStore } from "./replicas/replicated-store.ts";
import type { ObjectStore } from "./store.ts";

/** Where another store can help, one that does not answer is given up soon; one that asks for fewer requests is not. */
const BESIDE_OTHERS: RetryOptions = { patience: 3000, throttledPatience: 60_000 };

/** What a store needs besides its URL. */
export interface OpenOptions {
  /** A file with the key of a Google service account. */
  readonly credential?: string | undefined;
  /** Counts the requests that are sent to a remote store. */
  readonly metrics?: StoreMetrics;
  /** Of several stores: in how many an object has to be before a put is done; by default in all that answer. */
  readonly copies?: number | undefined;
  /** Of several stores: is told in a sentence when one does not answer, or fails, or holds something wrong. */
  readonly onTrouble?: ((url: string, message: string) => void) | undefined;
}

/** One store's URL, or those of several that hold the same. */
export type StoreUrls = string | readonly string[];

/**
 * Opens the object store at a URL: `file:///data/store`, `gs://bucket/prefix` or
 * `s3://bucket/prefix?region=…`; or several as one, see `replicas/replicated-store.ts`. Nothing is made or
 * asked until it is used. What is no URL of a store gives `usage`.
 *
 * Requests to a remote store are tried again, bounded in number and rate, and counted: see `remote.ts`.
 */
export async function openStore(urls: StoreUrls, options: OpenOptions = {}): Promise<ObjectStore> {
  if (typeof urls === "string") return await openOne(urls, options);
  const [first] = urls;
  if (urls.length === 1 && first !== undefined) return await openOne(first, options);
  const stores = await Promise.all(urls.map((url) => openOne(url, options, BESIDE_OTHERS)));
  return new ReplicatedStore(stores, options);
}

/** True for the URL of something that `openBucket` opens. */
export function isBucketUrl(text: string): boolean {
  return /^(gs|s3):\/\//i.test(text);
}

/**
 * Opens what lies below a prefix of a bucket, whoever put it there and whatever its keys are: to be read
 * and listed with the state of each object, so that it is noticed where one changes meanwhile.
 *
 * @param url as of a remote store: `gs://bucket/prefix` or `s3://bucket/prefix?region=…`
 */
export async function openBucket(url: string, options: OpenOptions = {}): Promise<ObjectStore> {
  const { openRemoteStore } = await import("./remote.ts");
  return await openRemoteStore(url, /^gs:/i.test(url) ? "gs" : "s3", options, {}, "any");
}

async function openOne(url: string, options: OpenOptions, patience?: RetryOptions): Promise<ObjectStore> {
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(url)?.[1]?.toLowerCase();
  switch (scheme) {
    case "file": {
      const { LocalStore } = await import("./stores/local.ts");
      return await LocalStore.open(url);
    }
    case "gs":
    case "s3": {
      const { openRemoteStore } = await import("./remote.ts");
      return await openRemoteStore(url, scheme, options, patience);
    }
    default:
      throw new DatamonError("usage", `${url} is not the URL of a store`, {
        hint: "Write it like file:///data/datamon, gs://bucket or s3://bucket.",
      });
  }
}
