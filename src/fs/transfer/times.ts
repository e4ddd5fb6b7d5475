/** Modification times in whole nanoseconds, which Node's own calls would round. */
import { type ByteString, display, ioError } from "../../cas/index.ts";
import { AT_FDCWD, AT_SYMLINK_NOFOLLOW, cPath, libc } from "./libc.ts";

const BILLION = 1_000_000_000n;

/** struct timespec[2]: seconds and nanoseconds of the access time, then of the modification time. */
const times = new BigInt64Array(4);

/** Sets access and modification time of an open file. `path` is for the message. */
export function setTimes(fd: number, mtimeNs: bigint, path: ByteString): void {
  fill(mtimeNs);
  if (libc().futimens(fd, times) < 0) throw failed(path);
}

/** The same for a path; a symbolic link's own times are set. */
export function setPathTimes(path: ByteString, mtimeNs: bigint): void {
  fill(mtimeNs);
  if (libc().utimensat(AT_FDCWD, cPath(path), times, AT_SYMLINK_NOFOLLOW) < 0) throw failed(path);
}

function fill(ns: bigint): void {
  // The nanoseconds of a timespec count upwards before 1970 as well.
  const part = BigInt.asIntN(64, ((ns % BILLION) + BILLION) % BILLION);
  times[0] = times[2] = (ns - part) / BILLION;
  times[1] = times[3] = part;
}

function failed(path: ByteString): Error {
  const errno = libc().errno();
  return ioError(`set the times of ${display(path)}`, Object.assign(new Error(errno), { code: errno }));
}
