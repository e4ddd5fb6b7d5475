/** Content-addressed storage: hashing, chunking, framing, and the object stores. */
export * from "./blobs.ts";
export * from "./bytes.ts";
export * from "./chunker.ts";
export * from "./content.ts";
export * from "./damage.ts";
export * from "./errors.ts";
export * from "./faults.ts";
export * from "./frame.ts";
export * from "./hash.ts";
export * from "./hash-index.ts";
export { type HashFilesOptions, type HashResult, hashFiles } from "./ingest/hash-files.ts";
export type { Placed, PlaceResult, PlacerStats } from "./ingest/placement.ts";
export { Placer, type PlacerOptions } from "./ingest/placer.ts";
export type * from "./ingest/source.ts";
export * from "./open.ts";
export { newStoreMetrics, type StoreMetrics, type VerbMetrics } from "./policies/metrics.ts";
export * from "./store.ts";
