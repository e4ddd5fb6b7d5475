/** The calls of libc that scratch files need and Node does not offer; bound when first used. */

import { createRequire } from "node:module";
import { constants } from "node:os";
import { type ErrnoName, FsError } from "../errno.ts";

interface Libc {
  fallocate(fd: number, mode: number, offset: number, length: number): number;
  syncfs(fd: number): number;
  futimens(fd: number, times: Buffer): number;
  lseek(fd: number, offset: number, whence: number): number;
  errno(): number;
}

let libc: Libc | undefined;
const require = createRequire(import.meta.url);

function bind(): Libc {
  if (libc !== undefined) return libc;
  const koffi = require("koffi");
  const library = koffi.load(null);
  libc = {
    fallocate: library.func("int fallocate64(int, int, int64_t, int64_t)"),
    syncfs: library.func("int syncfs(int)"),
    futimens: library.func("int futimens(int, void*)"),
    lseek: library.func("int64_t lseek64(int, int64_t, int)"),
    errno: () => koffi.errno(),
  };
  return libc;
}

/** fallocate(2): `mode` bits as the kernel hands them over. Throws `FsError`. */
export function fallocate(fd: number, mode: number, offset: number, length: number): void {
  check((calls) => calls.fallocate(fd, mode, offset, length));
}

/** lseek(2) with SEEK_DATA or SEEK_HOLE; undefined where `offset` is past the end or no data follows. Throws `FsError`. */
export function seekFile(fd: number, offset: number, whence: number): number | undefined {
  let found = -1;
  try {
    check((calls) => {
      found = Number(calls.lseek(fd, offset, whence));
      return Math.min(found, 0);
    });
  } catch (error) {
    if (error instanceof FsError && error.errno === "ENXIO") return undefined;
    throw error;
  }
  return found;
}

/** syncfs(2): everything written to the file system of `fd` is on the disk when this returns. */
export function syncfs(fd: number): void {
  check((calls) => calls.syncfs(fd));
}

/** `UTIME_OMIT`: this time stays. */
const OMIT = 0x3fff_fffen;
const SECOND = 1_000_000_000n;

/** Sets the modification time of an open file to the nanosecond. Throws `FsError`. */
export function setModified(fd: number, timeNs: bigint): void {
  const nanoseconds = ((timeNs % SECOND) + SECOND) % SECOND;
  const times = Buffer.alloc(32);
  times.writeBigInt64LE(OMIT, 8);
  times.writeBigInt64LE((timeNs - nanoseconds) / SECOND, 16);
  times.writeBigInt64LE(nanoseconds, 24);
  check((calls) => calls.futimens(fd, times));
}

function check(call: (calls: Libc) => number): void {
  let calls: Libc;
  try {
    calls = bind();
  } catch {
    throw new FsError("ENOTSUP", "this system's libc lacks the call");
  }
  while (call(calls) !== 0) {
    const name = errnoNameOf(calls.errno());
    if (name !== "EINTR") throw new FsError(name);
  }
}

function errnoNameOf(number: number): ErrnoName {
  const found = Object.entries(constants.errno).find(([, value]) => value === number);
  return (found?.[0] ?? "EIO") as ErrnoName;
}
