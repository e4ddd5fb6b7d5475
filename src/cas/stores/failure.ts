import { DatamonError, ioError, UnavailableError } from "../errors.ts";
import { faultPoint } from "../faults.ts";

/** How a request to a remote store failed, in what the services have in common. */
export interface RemoteFailure {
  /** The HTTP status, where there was an answer. */
  readonly status?: number | undefined;
  /** The service's or the system's name of the failure, such as `SlowDown` or `ECONNRESET`. */
  readonly code?: string | undefined;
  readonly message: string;
  readonly cause?: unknown;
}

/** Nothing came from the store, or could be sent to it, for this long: the request is given up, in milliseconds. */
export const STALL_MS = 15_000;

/** A connection that is not made after this long is given up, in milliseconds. */
export const CONNECT_MS = 5000;

/**
 * A read of at most this many bytes from an object's start is checked by the store's checksum where it
 * brings the whole object, as it does for records. Blobs and catalogs, which are larger, have hashes.
 */
export const CHECKED_SIZE = 2 * 1024 * 1024;

const TOO_MANY =
  /^(SlowDown|Throttl\w*|TooManyRequests\w*|RequestLimitExceeded|rateLimitExceeded|userRateLimitExceeded)$/;
/** Our bytes arrived, but not as we sent them, or not all of them. */
const DAMAGED_ON_THE_WAY =
  /^(BadDigest|InvalidDigest|XAmzContent\w*Mismatch|IncompleteBody|RequestTimeout|RequestTimeTooSkewed)$/;

/**
 * A failed request as a `DatamonError`.
 *
 * @param doing what was being done, such as `read object blobs/ab/… in gs://bucket`
 * @param hint what to do where access is denied
 */
export function remoteError(doing: string, failure: RemoteFailure, hint: string): DatamonError {
  const { status, code, message, cause } = failure;
  const why = status === undefined ? message : `${message} (status ${status})`;
  const text = `cannot ${doing}: ${why}`;
  if (status === 401 || (status === 403 && !isThrottling(failure))) {
    return new DatamonError("denied", text, { hint, cause });
  }
  if (isThrottling(failure)) return new UnavailableError(text, { throttled: true, cause });
  if (status === 501) {
    return new DatamonError("unsupported", text, {
      hint: "Datamon needs a store that can create an object only where it is absent, and list in key order.",
      cause,
    });
  }
  const passing = status === undefined || status === 408 || status >= 500 || DAMAGED_ON_THE_WAY.test(code ?? "");
  // A status that says all is well comes with an error where the answer's body did not arrive.
  if (passing || status < 400) {
    return new UnavailableError(text, { cause, hint: "Check the network and the store's address, then try again." });
  }
  return new DatamonError("io", text, { cause });
}

/** What went wrong below HTTP, or with a request for credentials. */
export function networkFailure(error: unknown): RemoteFailure {
  const { message, code, status } = error as { message?: string; code?: unknown; status?: unknown };
  return {
    status: typeof status === "number" ? status : undefined,
    code: typeof code === "string" ? code : undefined,
    message: message === undefined || message === "" ? String(code ?? error) : message,
    cause: error,
  };
}

function isThrottling({ status, code }: RemoteFailure): boolean {
  return status === 429 || status === 503 || TOO_MANY.test(code ?? "");
}

/** An object that was replaced or removed since it was looked at. */
export function changed(doing: string): DatamonError {
  return new DatamonError("changed", `cannot ${doing}: it changed meanwhile`);
}

/** A fault point of a store (see `faults.ts`), with the failure as the store would tell it. */
export function failPoint(doing: string, verb: string, key: string, stage?: string): void {
  try {
    faultPoint(verb, key, stage);
  } catch (error) {
    throw ioError(doing, error);
  }
}

/** The error of a request on which nothing moves, or for which there is no connection. */
export function stalled(connecting = false): Error {
  const waited = connecting ? `no connection was made in ${CONNECT_MS / 1000}` : `nothing moved for ${STALL_MS / 1000}`;
  const error = new Error(`${waited} seconds`);
  return Object.assign(error, { code: "ETIMEDOUT" });
}
