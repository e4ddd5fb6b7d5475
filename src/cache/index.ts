/** Blobs near the reader: memory, disk and the fetches between. */
export { type CacheStatus, DiskCache, type DiskCacheOptions, type DiskCacheStats } from "./disk-cache.ts";
export { type Ahead, Fetcher, type FetcherOptions, type FetcherStats } from "./fetcher.ts";
export { MemoryReader, type SharedContent } from "./memory-directory.ts";
export type { Piece } from "./piece-map.ts";
export { type Home, lastBlob, readLocal, type Segment, type Slice, WHOLE_FILE } from "./plan.ts";
export { type Outlook, Readahead, type Upcoming } from "./readahead.ts";
export type { Resident } from "./verified.ts";
export type { FileLayout, WholeFiles } from "./whole-files.ts";
