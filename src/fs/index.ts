/** File systems: namespaces, mounts, scratch directories, and local trees. */
export { type CommitOptions, commitScratch } from "./commit.ts";
export { type ErrnoName, errnoName, errnoOf, FsError } from "./errno.ts";
export { type MountEvents, type MountOptions, type MountOutcome, runMount } from "./mount.ts";
export { type CommitMountOptions, commitMount } from "./mount-commit.ts";
export { becomeSupervisor, type Care, DEATHS, runDaemon, startMount } from "./mount-daemon.ts";
export type { MountRecord } from "./mount-record.ts";
export { listMounts, type MountReport, type MountStatus, reportMount, type UnmountOptions, unmount } from "./mounts.ts";
export {
  type Attr,
  type Caller,
  type Entry,
  type FsStats,
  type Namespace,
  type NamespaceSpec,
  openNamespace,
  type SetAttr,
} from "./namespace.ts";
export { OPEN_MODES, type OpenMode } from "./open-mode.ts";
export {
  createScratch,
  discardScratch,
  getScratch,
  listScratches,
  type NewScratch,
  type OnConflict,
  type Scratch,
  type ScratchRecord,
  type ScratchStatus,
} from "./scratch.ts";
export { type StoreRequests, storeRequests } from "./store-requests.ts";
export { Supervision } from "./supervision/supervision.ts";
export * from "./transfer/index.ts";
export { type WarmOptions, type WarmResult, warmCache } from "./warm-cache.ts";
