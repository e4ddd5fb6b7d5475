import type { OpenOptions } from "./open.ts";
import { BandwidthStore } from "./policies/bandwidth.ts";
import { AdaptiveStore } from "./policies/concurrency.ts";
import { DeadlineStore } from "./policies/deadline.ts";
import { MeteredStore, newStoreMetrics } from "./policies/metrics.ts";
import { RetryingStore, type RetryOptions } from "./policies/retry.ts";
import type { ObjectStore } from "./store.ts";
import { type BucketAddress, parseBucketUrl, senseless } from "./stores/address.ts";

/** Parameters of a remote store's URL that are about policies. */
const POLICY_PARAMETERS = ["timeout", "bandwidth"];
const UNITS: Record<string, number> = { "": 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3 };

/**
 * Opens the remote store at `url` with all policies around it. From the outside in: a request is tried
 * again (holding no place while it waits), takes a place among those under way, keeps to the
 * bandwidth, is counted, gets a deadline, and goes to the store.
 *
 * Of every store the URL's parameters can say `timeout` (seconds until a failing request is given
 * up) and `bandwidth` (bytes a second, with k, M or G for their multiples).
 *
 * @param retry how long requests are tried again where the URL does not say
 * @param objects whether they are Datamon's own or anybody's
 */
export async function openRemoteStore(
  url: string,
  scheme: "gs" | "s3",
  options: OpenOptions,
  retry: RetryOptions = {},
  objects: "own" | "any" = "own",
): Promise<ObjectStore> {
  const address = parseBucketUrl(url, [...POLICY_PARAMETERS, ...(scheme === "s3" ? S3_PARAMETERS : [])], objects);
  const patience = seconds(address);
  const rate = bytesPerSecond(address);
  const bare = await openBare(address, scheme, options);
  const metered = new MeteredStore(new DeadlineStore(bare), options.metrics ?? newStoreMetrics());
  const limited = rate === undefined ? metered : new BandwidthStore(metered, rate);
  return new RetryingStore(new AdaptiveStore(limited), patience === undefined ? retry : { ...retry, patience });
}

const S3_PARAMETERS = ["region", "endpoint", "path-style", "profile"];

async function openBare(address: BucketAddress, scheme: "gs" | "s3", options: OpenOptions): Promise<ObjectStore> {
  if (scheme === "gs") {
    const { GcsStore } = await import("./stores/gcs.ts");
    return await GcsStore.open(address, options.credential);
  }
  const { S3Store } = await import("./stores/s3.ts");
  return await S3Store.open(address);
}

function seconds({ url, parameters }: BucketAddress): number | undefined {
  const text = parameters.get("timeout");
  if (text === undefined) return undefined;
  if (!/^\d{1,6}(\.\d+)?$/.test(text)) throw senseless(url, "timeout is a number of seconds");
  return Number(text) * 1000;
}

function bytesPerSecond({ url, parameters }: BucketAddress): number | undefined {
  const text = parameters.get("bandwidth");
  if (text === undefined) return undefined;
  const [, number, unit = ""] = /^([1-9]\d{0,8})([kmg]?)$/i.exec(text) ?? [];
  if (number === undefined) throw senseless(url, "bandwidth is a number of bytes a second, such as 20M");
  return Number(number) * UNITS[unit.toLowerCase()]!;
}
