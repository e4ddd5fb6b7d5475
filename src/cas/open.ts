import { DatamonError } from "./errors.ts";
import type { StoreMetrics } from "./policies/metrics.ts";
import type { ObjectStore } from "./store.ts";

/** What a store needs besides its URL. */
export interface OpenOptions {
  /** A file with the key of a Google service account. */
  readonly credential?: string | undefined;
  /** Counts the requests that are sent to a remote store. */
  readonly metrics?: StoreMetrics;
}

/**
 * Opens the object store at `url`: `file:///data/store`, `gs://bucket/prefix` or
 * `s3://bucket/prefix?region=…`. Nothing is made or asked until it is used. What is no URL of a
 * store gives `usage`.
 *
 * Requests to a remote store are tried again, bounded in number and rate, and counted: see `remote.ts`.
 */
export async function openStore(url: string, options: OpenOptions = {}): Promise<ObjectStore> {
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(url)?.[1]?.toLowerCase();
  switch (scheme) {
    case "file": {
      const { LocalStore } = await import("./stores/local.ts");
      return await LocalStore.open(url);
    }
    case "gs":
    case "s3": {
      const { openRemoteStore } = await import("./remote.ts");
      return await openRemoteStore(url, scheme, options);
    }
    default:
      throw new DatamonError("usage", `${url} is not the URL of a store`, {
        hint: "Write it like file:///data/datamon, gs://bucket or s3://bucket.",
      });
  }
}
