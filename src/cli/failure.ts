import { DatamonError, type ErrorCode, ObjectNotFoundError } from "../cas/index.ts";

/** Exit status for each kind of failure. */
export function exitCodeOf(error: unknown): number {
  if (!(error instanceof DatamonError) || isLostObject(error)) return 1;
  return exitCodes[error.code];
}

/** True where a store has lost an object that something refers to, which is not what "not found" tells a caller. */
function isLostObject(error: unknown): boolean {
  return error instanceof Error && (error instanceof ObjectNotFoundError || isLostObject(error.cause));
}

const exitCodes: Record<ErrorCode, number> = {
  usage: 1,
  "not-found": 2,
  exists: 1,
  conflict: 1,
  damaged: 1,
  unavailable: 1,
  "no-space": 1,
  denied: 1,
  changed: 1,
  interrupted: 130,
  unsupported: 1,
  io: 1,
};

/** Tells the user on stderr what happened and what to do next; a stack trace only with `DATAMON_DEBUG` set. */
export function reportError(error: unknown): void {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`datamon: ${message}\n`);
  if (error instanceof DatamonError && error.hint !== undefined) process.stderr.write(`  ${error.hint}\n`);
  if (process.env.DATAMON_DEBUG) console.error(error);
}
