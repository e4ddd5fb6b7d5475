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
export { type Log, logOf } from "./log.ts";
