/** Blobs near the reader: memory, disk and the fetches between. */
export { type CacheStatus, DiskCache, type DiskCacheOptions, type DiskCacheStats } from "./disk-cache.ts";
export { Fetcher, type FetcherOptions, type FetcherStats } from "./fetcher.ts";
export { readLocal, type Segment } from "./plan.ts";
export type { Resident } from "./verified.ts";
