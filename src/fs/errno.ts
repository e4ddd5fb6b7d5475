/** What the kernel is told when something fails: the one place where errors turn into errno numbers. */

import { constants } from "node:os";
import { DatamonError, type ErrorCode } from "../cas/index.ts";

/** The name of an errno, such as `ENOENT`. */
export type ErrnoName = keyof typeof constants.errno;

/** A file system call that fails the way POSIX says, as part of normal life. */
export class FsError extends Error {
  readonly errno: ErrnoName;

  constructor(errno: ErrnoName, what = "") {
    // Programs probe for absent files all the time: a stack trace would be most of the cost of the answer.
    const limit = Error.stackTraceLimit;
    Error.stackTraceLimit = 0;
    super(what === "" ? errno : `${errno}: ${what}`);
    Error.stackTraceLimit = limit;
    this.name = "FsError";
    this.errno = errno;
  }
}

const ERRNO_OF_CODE: Record<ErrorCode, ErrnoName> = {
  usage: "EINVAL",
  // An object that the catalog names and the store lacks: the file is there, its bytes are not.
  "not-found": "EIO",
  exists: "EEXIST",
  conflict: "ESTALE",
  damaged: "EIO",
  unavailable: "EIO",
  "no-space": "ENOSPC",
  denied: "EACCES",
  changed: "EIO",
  interrupted: "EINTR",
  unsupported: "ENOTSUP",
  io: "EIO",
};

const ERRNO_OF_SQLITE: Record<string, ErrnoName> = {
  SQLITE_FULL: "ENOSPC",
  SQLITE_READONLY: "EROFS",
  SQLITE_BUSY: "EBUSY",
  SQLITE_NOMEM: "ENOMEM",
};

/** The name of the errno that `error` is answered with; `EIO` for what nobody foresaw. */
export function errnoName(error: unknown): ErrnoName {
  if (error instanceof FsError) return error.errno;
  if (error instanceof DatamonError) return ERRNO_OF_CODE[error.code];
  const code = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
  if (typeof code !== "string") return "EIO";
  if (code in constants.errno) return code as ErrnoName;
  const sqlite = /^SQLITE_[A-Z]+/.exec(code);
  return (sqlite !== null ? ERRNO_OF_SQLITE[sqlite[0]] : undefined) ?? "EIO";
}

/** The errno, a positive number of this machine, that `error` is answered with. */
export function errnoOf(error: unknown): number {
  return constants.errno[errnoName(error)];
}
