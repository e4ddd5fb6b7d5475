/** Extended attributes as programs see them. */

import { type ByteString, bytesOf } from "../../src/cas/index.ts";
import { cPath, libc } from "../../src/fs/transfer/libc.ts";

function checked(result: number, call: string): number {
  if (result < 0) throw Object.assign(new Error(call), { code: libc().errno() });
  return result;
}

/** Names, sorted. */
export function listXattrs(path: ByteString): string[] {
  const list = Buffer.alloc(65536);
  const length = checked(libc().llistxattr(cPath(path), list, list.length), "llistxattr");
  return list.toString("latin1", 0, length).split("\0").slice(0, -1).sort();
}

export function getXattr(path: ByteString, name: string): Buffer {
  const value = Buffer.alloc(65536);
  const length = checked(libc().lgetxattr(cPath(path), cPath(bytesOf(name)), value, value.length), "lgetxattr");
  return Buffer.from(value.subarray(0, length));
}

/** @param flags as in setxattr(2) */
export function setXattr(path: ByteString, name: string, value: Buffer, flags = 0): void {
  checked(libc().lsetxattr(cPath(path), cPath(bytesOf(name)), value, value.length, flags), "lsetxattr");
}

export function removeXattr(path: ByteString, name: string): void {
  checked(libc().lremovexattr(cPath(path), cPath(bytesOf(name))), "lremovexattr");
}
