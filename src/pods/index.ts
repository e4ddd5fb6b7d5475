/** What runs beside an application in a pod: sidecars, the wrapper's protocol, backups. */
export { type BackupOptions, type BackupPart, backup } from "./backup/backup.ts";
export { type DatamoverOptions, type DatamoverResult, datamover } from "./backup/datamover.ts";
export { parseMoment } from "./backup/moment.ts";
export {
  ApplicationFailedError,
  ApplicationSilentError,
  Coordination,
  type CoordinationOptions,
  DEFAULT_TIMEOUT,
  type SidecarKind,
  STEPS,
  type Steps,
} from "./coordination.ts";
export { readFuseParams } from "./fuse/params.ts";
export { type FusePlan, planOf, type SidecarCommand } from "./fuse/plan.ts";
export { type FuseSidecarOptions, runFuseSidecar } from "./fuse/sidecar.ts";
export { type Log, logOf } from "./log.ts";
export type { SavedDatabase } from "./postgres/database.ts";
export {
  coordinationOf,
  type DatabaseParams,
  type PostgresParams,
  parseEntries,
  postgresParams,
} from "./postgres/params.ts";
export { type PostgresSidecarOptions, runPostgresSidecar } from "./postgres/sidecar.ts";
export { splitWords } from "./words.ts";
