/**
 * Extended attributes in the `user.` namespace. Linux alone has them here; elsewhere files have
 * none. Names below `user.datamon.` are what Datamon itself shows on a mount or notes on a
 * downloaded folder; they are no part of a tree.
 */
import { type ByteString, bytesOf, display, ioError } from "../../cas/index.ts";
import { type CPath, cPath, hasXattrs, libc } from "./libc.ts";

const PREFIX = "user.";
const OWN_PREFIX = "user.datamon.";

/** Linux's limit for one value and for a file's list of names. */
const MAX_VALUE = 65536;

let scratch: Buffer | undefined;

/** The attributes of a file or directory (not followed where it is a link), undefined where it has none. */
export function readXattrs(path: ByteString): Map<ByteString, Buffer> | undefined {
  if (!hasXattrs) return undefined;
  const c = libc();
  const native = cPath(path);
  // Most files have none, and to hand a buffer over takes as long as the call.
  if (c.llistxattr(native, null, 0) === 0) return undefined;
  scratch ??= Buffer.allocUnsafeSlow(MAX_VALUE);
  const size = c.llistxattr(native, scratch, scratch.length);
  if (size === 0) return undefined;
  if (size < 0) return failedRead(path, c.errno());
  let found: Map<ByteString, Buffer> | undefined;
  for (const name of scratch.toString("latin1", 0, size).split("\0") as ByteString[]) {
    if (!name.startsWith(PREFIX) || name.startsWith(OWN_PREFIX)) continue;
    const value = readValue(path, native, name);
    if (value === undefined) continue;
    found ??= new Map();
    found.set(name, value);
  }
  return found;
}

/** One attribute's value, undefined where there is none. */
export function readXattr(path: ByteString, name: string): Buffer | undefined {
  return hasXattrs ? readValue(path, cPath(path), bytesOf(name)) : undefined;
}

/** Sets attributes of an open file or of a path; answers the first failure's error name. */
export function writeXattrs(target: number | ByteString, xattrs: Map<ByteString, Buffer>): string | undefined {
  if (!hasXattrs) return "ENOTSUP";
  const c = libc();
  let failure: string | undefined;
  const native = typeof target === "number" ? target : cPath(target);
  for (const [name, value] of xattrs) {
    const result =
      typeof native === "number"
        ? c.fsetxattr(native, cPath(name), value, value.length, 0)
        : c.lsetxattr(native, cPath(name), value, value.length, 0);
    if (result < 0) failure ??= c.errno();
  }
  return failure;
}

/** Brings a path's attributes to exactly `wanted`; answers the first failure's error name. */
export function replaceXattrs(path: ByteString, wanted: Map<ByteString, Buffer> | undefined): string | undefined {
  if (!hasXattrs) return wanted === undefined ? undefined : "ENOTSUP";
  const present = readXattrs(path);
  if (present === undefined && wanted === undefined) return undefined;
  for (const name of present?.keys() ?? []) {
    if (!wanted?.has(name)) libc().lremovexattr(cPath(path), cPath(name));
  }
  return wanted === undefined || sameXattrs(present, wanted) ? undefined : writeXattrs(path, wanted);
}

/** Whether two sets of attributes are equal; none and an empty set are the same. */
export function sameXattrs(
  a: ReadonlyMap<ByteString, Buffer> | undefined,
  b: ReadonlyMap<ByteString, Buffer> | undefined,
): boolean {
  if ((a?.size ?? 0) !== (b?.size ?? 0)) return false;
  for (const [name, value] of a ?? []) {
    const other = b?.get(name);
    if (other === undefined || !value.equals(other)) return false;
  }
  return true;
}

function readValue(path: ByteString, native: CPath, name: ByteString): Buffer | undefined {
  const value = Buffer.allocUnsafe(MAX_VALUE);
  const size = libc().lgetxattr(native, cPath(name), value, value.length);
  return size < 0 ? failedRead(path, libc().errno()) : Buffer.from(value.subarray(0, size));
}

/** A file without attributes, without support for them, or gone in the meantime has none. */
function failedRead(path: ByteString, errno: string): undefined {
  if (["ENOTSUP", "EOPNOTSUPP", "ENODATA", "ENOENT", "EACCES", "EPERM", "ENOSYS"].includes(errno)) return undefined;
  throw ioError(`read the extended attributes of ${display(path)}`, new Error(errno));
}
