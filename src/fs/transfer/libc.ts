/**
 * The few calls of the C library that Node does not offer: times in nanoseconds and extended
 * attributes. The binding is loaded when the first of them is made.
 */
import { createRequire } from "node:module";
import type koffi from "koffi";
import { type ByteString, toFsPath } from "../../cas/index.ts";

/** A path or a name as `cPath` makes it. */
export type CPath = string | Buffer;

/** The calls, each answering -1 where it failed; `errno` then tells why. */
export interface Libc {
  utimensat(directory: number, path: CPath | null, times: BigInt64Array, flags: number): number;
  futimens(fd: number, times: BigInt64Array): number;
  /** With a `list` of null and `size` 0 it answers how long the list is. */
  llistxattr(path: CPath, list: Buffer | null, size: number): number;
  lgetxattr(path: CPath, name: CPath, value: Buffer, size: number): number;
  lsetxattr(path: CPath, name: CPath, value: Buffer, size: number, flags: number): number;
  fsetxattr(fd: number, name: CPath, value: Buffer, size: number, flags: number): number;
  lremovexattr(path: CPath, name: CPath): number;
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

/** A path as the calls take it: in ASCII a string, which is less work, else a buffer that ends with a NUL. */
export function cPath(path: ByteString): CPath {
  const native = toFsPath(path);
  return typeof native === "string" ? native : Buffer.from(`${path}\0`, "latin1");
}

function load(): Libc {
  const binding = createRequire(import.meta.url)("koffi") as typeof koffi;
  const library = binding.load(null);
  const names = new Map(Object.entries(binding.os.errno).map(([name, number]) => [number, name]));
  const errno = () => names.get(binding.errno()) ?? `error ${binding.errno()}`;
  const times = {
    utimensat: library.func("int utimensat(int, const char*, const void*, int)"),
    futimens: library.func("int futimens(int, const void*)"),
    errno,
  };
  if (!hasXattrs) return times as unknown as Libc;
  return {
    ...times,
    llistxattr: library.func("long llistxattr(const char*, void*, size_t)"),
    lgetxattr: library.func("long lgetxattr(const char*, const char*, void*, size_t)"),
    lsetxattr: library.func("int lsetxattr(const char*, const char*, const void*, size_t, int)"),
    fsetxattr: library.func("int fsetxattr(int, const char*, const void*, size_t, int)"),
    lremovexattr: library.func("int lremovexattr(const char*, const char*)"),
  } as unknown as Libc;
}
