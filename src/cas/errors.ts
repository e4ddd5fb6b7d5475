/**
 * What can go wrong, by kind. The command line turns a code into an exit status and the mount turns
 * it into an errno, each in one place; nothing else inspects messages.
 */
export type ErrorCode =
  /** The command or the configuration asks for something that makes no sense. */
  | "usage"
  /** A repo, bundle, label, file or object that was asked for is not there. */
  | "not-found"
  /** Something of that name exists already. */
  | "exists"
  /** Somebody else changed what this operation was based on. */
  | "conflict"
  /** Stored bytes are not what they must be. */
  | "damaged"
  /** A store or network does not answer. */
  | "unavailable"
  /** A disk or quota is full. */
  | "no-space"
  /** Permission is missing. */
  | "denied"
  /** A file changed while it was read. */
  | "changed"
  /** The user or a signal stopped the operation. */
  | "interrupted"
  /** The machine or this version cannot do it. */
  | "unsupported"
  /** Any other failure of the operating system. */
  | "io";

/** What an error may carry besides its message. */
export interface ErrorDetails {
  /** What the user can do next, as a sentence. */
  hint?: string;
  /** The failure underneath. */
  cause?: unknown;
}

/** A failure that the user is told about: `message` says what happened and to which file or object. */
export class DatamonError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.hint = details.hint;
  }
}

/** An object that a store does not hold. */
export class ObjectNotFoundError extends DatamonError {
  readonly key: string;

  constructor(url: string, key: string) {
    super("not-found", `object ${key} is not in ${url}`);
    this.key = key;
  }
}

/** An object whose bytes are not what its name, frame or schema says. */
export class DamagedObjectError extends DatamonError {
  readonly key: string;

  constructor(url: string, key: string, why: string, cause?: unknown) {
    super("damaged", `object ${key} in ${url} is damaged: ${why}`, {
      hint: "Restore this object from a copy of the store; nothing of it was used.",
      cause,
    });
    this.key = key;
  }
}

/** A store that did not answer, or not usefully, for a reason that may pass: the same request can succeed later. */
export class UnavailableError extends DatamonError {
  /** True where the store asked for fewer requests. */
  readonly throttled: boolean;

  constructor(message: string, details: ErrorDetails & { throttled?: boolean } = {}) {
    super("unavailable", message, details);
    this.throttled = details.throttled === true;
  }
}

/** True for a failure of the operating system with one of these error names, such as `ENOENT`. */
export function isErrno(error: unknown, ...names: string[]): error is NodeJS.ErrnoException {
  const name = (error as NodeJS.ErrnoException | undefined)?.code;
  return error instanceof Error && typeof name === "string" && names.includes(name);
}

/**
 * A failed call of the operating system as a `DatamonError`, with the file or object it was about.
 * An error that is a `DatamonError` already is returned as it is.
 *
 * @param doing what was being done, such as `write blob 3f…` or `read /data/a.csv`
 */
export function ioError(doing: string, error: unknown): DatamonError {
  if (error instanceof DatamonError) return error;
  const why = error instanceof Error ? error.message : String(error);
  if (isErrno(error, "ENOSPC", "EDQUOT", "SQLITE_FULL")) {
    return new DatamonError("no-space", `cannot ${doing}: the disk is full`, {
      hint: "Free some space and run the command again; what was finished is kept.",
      cause: error,
    });
  }
  if (isErrno(error, "EACCES", "EPERM", "EROFS")) {
    return new DatamonError("denied", `cannot ${doing}: ${why}`, { cause: error });
  }
  if (isErrno(error, "ENOENT")) return new DatamonError("not-found", `cannot ${doing}: ${why}`, { cause: error });
  return new DatamonError("io", `cannot ${doing}: ${why}`, { cause: error });
}
