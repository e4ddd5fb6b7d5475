/**
 * The few calls of the C library that Node does not offer: times in nanoseconds and extended
 * attributes. The binding is loaded when the first of them is made.
 */
import { createRequire } from "node:module";
import type koffi from "koffi";
import type { ByteString } from "../../cas/index.ts";

/** The calls, each answering -1 where it failed; `errno` then tells why. Paths end with a NUL. */
export interface Libc {
  utimensat(directory: number, path: Buffer | null, times: BigInt64Array, flags: number): number;
  futimens(fd: number, times: BigInt64Array): number;
  llistxattr(path: Buffer, list: Buffer, size: number): number;
  lgetxattr(path: Buffer, name: Buffer, value: Buffer, size: number): number;
  lsetxattr(path: Buffer, name: Buffer, value: Buffer, size: number, flags: number): number;
  fsetxattr(fd: number, name: Buffer, value: Buffer, size: number, flags: number): number;
  lremovexattr(path: Buffer, name: Buffer): number;
  /** Name of the error of the last call, such as `ENOTSUP`. */
  errno(): string;
}

const isLinux = process.platform === "linux";

/** Whether this system's extended attributes can be read and written. */
export const hasXattrs = isLinux;
/** "Relative to the working directory" and "not through a symbolic link", as this system numbers them. */
export const AT_FDCWD = isLinux ? -100 : -2;
export const AT_SYMLINK_NOFOLLOW = isLinux ? 0x100 : 0x20;

let loaded: Libc | undefined;

/** The C library of this process. */
export function libc(): Libc {
  loaded ??= load();
  return loaded;
}

/** A path as the C library takes it. */
export function cPath(path: ByteString): Buffer {
  return Buffer.from(`${path}\0`, "latin1");
}

function load(): Libc {
  const binding = createRequire(import.meta.url)("koffi") as typeof koffi;
  const library = binding.load(null);
  const names = new Map(Object.entries(binding.os.errno).map(([name, number]) => [number, name]));
  const errno = () => names.get(binding.errno()) ?? `error ${binding.errno()}`;
  const times = {
    utimensat: library.func("int utimensat(int, const void*, const void*, int)"),
    futimens: library.func("int futimens(int, const void*)"),
    errno,
  };
  if (!hasXattrs) return times as unknown as Libc;
  return {
    ...times,
    llistxattr: library.func("long llistxattr(const void*, void*, size_t)"),
    lgetxattr: library.func("long lgetxattr(const void*, const void*, void*, size_t)"),
    lsetxattr: library.func("int lsetxattr(const void*, const void*, const void*, size_t, int)"),
    fsetxattr: library.func("int fsetxattr(int, const void*, const void*, size_t, int)"),
    lremovexattr: library.func("int lremovexattr(const void*, const void*)"),
  } as unknown as Libc;
}
