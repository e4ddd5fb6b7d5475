/** What a mount has done, as its daemon tells when it is asked. */

import * as z from "zod/mini";
import type { FetcherStats } from "../cache/index.ts";
import type { ReplicaStatus, StoreMetrics } from "../cas/index.ts";
import type { ChannelCounts } from "./channels/channel.ts";
import { askDaemon } from "./mount-control.ts";
import type { MountRecord } from "./mount-record.ts";
import { storeRequests, storeRequestsSchema } from "./store-requests.ts";

const count = z.number();

/** Of one place that content is looked for in: how often it was there, and how often not. */
const tierSchema = z.object({ hits: count, misses: count });

const statisticsSchema = z.object({
  /** Since when this daemon counts, ISO 8601; the counts of one that died are lost with it. */
  countedSince: z.string(),
  /**
   * The requests that came from the kernel, by kind, with times in microseconds from when the daemon
   * had them until they were answered. "read-fetched" are the reads that waited for content; they are
   * not counted as "read", too.
   */
  requests: z.array(z.object({ request: z.string(), count, p50Us: count, p90Us: count, p99Us: count })),
  /**
   * Where slices of blobs were found, in the order of looking: the disk cache, memory, the store. What
   * waits for a fetch that another one asked for is a hit, too; misses of the store are failed fetches.
   */
  tiers: z.object({ disk: tierSchema, memory: tierSchema, store: tierSchema }),
  /** Blobs that came from the store, how many of them before they were asked for, and their bytes. */
  fetched: z.object({ blobs: count, ahead: count, bytes: count, failures: count }),
  stores: z.array(storeRequestsSchema),
  /** The stores that hold the same, where there are several: whether each answers, and how often it failed. */
  replicas: z.array(
    z.object({
      url: z.string(),
      answers: z.boolean(),
      failures: count,
      /** Objects that were stored in others and not here. */
      missed: count,
      lastFailure: z.nullable(z.string()),
    }),
  ),
});

/** What a mount's daemon has counted. */
export type MountStatistics = z.infer<typeof statisticsSchema>;

/** Puts together what the parts of a mount have counted. */
export function statisticsOf(
  countedSince: string,
  channel: ChannelCounts,
  fetcher: FetcherStats,
  replicas: readonly ReplicaStatus[],
  sent?: StoreMetrics,
): MountStatistics {
  const { diskHits, storeHits, fetches, prefetches, failures, bytesFetched } = fetcher;
  const memoryHits = channel.memoryHits + fetcher.memoryHits;
  return {
    countedSince,
    requests: [...channel.requests],
    tiers: {
      disk: { hits: channel.diskHits + diskHits, misses: memoryHits + storeHits },
      memory: { hits: memoryHits, misses: diskHits + storeHits },
      store: { hits: storeHits, misses: failures },
    },
    fetched: { blobs: fetches, ahead: prefetches, bytes: bytesFetched, failures },
    stores: storeRequests(sent),
    replicas: [...replicas],
  };
}

/** How long a daemon may take to answer, in milliseconds. */
const PATIENCE = 5000;

/** Asks a mount's daemon. DatamonError "io" where it is dead or does not answer. */
export async function askStatistics(home: string, record: MountRecord): Promise<MountStatistics> {
  const asking = { patience: PATIENCE, repeatable: true };
  return statisticsSchema.parse(await askDaemon(home, record, { request: "statistics" }, asking));
}
