/** The two calls of libc that scratch files need and Node does not offer; bound when first used. */

import { createRequire } from "node:module";
import { constants } from "node:os";
import { type ErrnoName, FsError } from "../errno.ts";

interface Libc {
  fallocate(fd: number, mode: number, offset: number, length: number): number;
  syncfs(fd: number): number;
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
    errno: () => koffi.errno(),
  };
  return libc;
}

/** fallocate(2): `mode` bits as the kernel hands them over. Throws `FsError`. */
export function fallocate(fd: number, mode: number, offset: number, length: number): void {
  check((calls) => calls.fallocate(fd, mode, offset, length));
}

/** syncfs(2): everything written to the file system of `fd` is on the disk when this returns. */
export function syncfs(fd: number): void {
  check((calls) => calls.syncfs(fd));
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
