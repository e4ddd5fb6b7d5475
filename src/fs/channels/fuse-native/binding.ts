/**
 * The npm package `fuse-native` 2.2.6, loaded only when asked for, with the faults mended that can
 * be mended from outside. The package has no types and no successor, so what is used of it, private
 * parts included, is written down here and nowhere else.
 */

import { createRequire } from "node:module";
import { constants } from "node:os";
import { DatamonError } from "../../../cas/index.ts";

/** Answers a request with 0 or a negative errno; some requests give a number of bytes or a handle. */
export type Done<T = never> = (result: number, value?: T) => void;

/** A stat result; times in milliseconds since 1970. Numbers other than size and blocks are cut to 32 bits. */
export interface BindingStat {
  mode: number;
  ino: number;
  uid: number;
  gid: number;
  size: number;
  nlink: number;
  rdev: number;
  blksize: number;
  blocks: number;
  atime: number;
  mtime: number;
  ctime: number;
}

/** A statfs result; every number is cut to 32 bits. */
export interface BindingStatFs {
  bsize: number;
  frsize: number;
  blocks: number;
  bfree: number;
  bavail: number;
  files: number;
  ffree: number;
  favail: number;
  namemax: number;
}

/** The requests that a mount answers. Paths are absolute within the mount; `handle` is what `open` or `create` gave. */
export interface Operations {
  getattr(path: string, done: Done<BindingStat>): void;
  statfs(path: string, done: Done<BindingStatFs>): void;
  readdir(path: string, done: (result: number, names?: string[], stats?: BindingStat[]) => void): void;
  readlink(path: string, done: Done<string>): void;
  getxattr(path: string, name: string, position: number, done: Done<Buffer>): void;
  listxattr(path: string, done: Done<string[]>): void;
  open(path: string, flags: number, done: Done<number>): void;
  read(path: string, handle: number, buffer: Buffer, length: number, offset: number, done: Done): void;
  release(path: string, handle: number, done: Done): void;
  create?(path: string, mode: number, done: Done<number>): void;
  write?(path: string, handle: number, buffer: Buffer, length: number, offset: number, done: Done): void;
  flush?(path: string, handle: number, done: Done): void;
  fsync?(path: string, dataOnly: number, handle: number, done: Done): void;
  fsyncdir?(path: string, dataOnly: number, handle: number, done: Done): void;
  truncate?(path: string, size: number, done: Done): void;
  ftruncate?(path: string, handle: number, size: number, done: Done): void;
  utimens?(path: string, atimeMs: number, mtimeMs: number, done: Done): void;
  chmod?(path: string, mode: number, done: Done): void;
  chown?(path: string, uid: number, gid: number, done: Done): void;
  mknod?(path: string, mode: number, device: number, done: Done): void;
  mkdir?(path: string, mode: number, done: Done): void;
  rmdir?(path: string, done: Done): void;
  unlink?(path: string, done: Done): void;
  rename?(path: string, newPath: string, done: Done): void;
  link?(path: string, newPath: string, done: Done): void;
  symlink?(target: string, path: string, done: Done): void;
  setxattr?(path: string, name: string, value: Buffer, position: number, flags: number, done: Done): void;
  removexattr?(path: string, name: string, done: Done): void;
}

/** Mount options that the package passes on; others go through `fsname`, see `mountOptions`. */
export interface BindingOptions {
  /** Milliseconds after which a request is given up; false for never. */
  timeout: false;
  fsname: string;
  defaultPermissions: boolean;
  allowOther: boolean;
  maxRead: number;
}

/** One mount of the package. */
export interface FuseMount {
  open(done: (error: Error | null | undefined) => void): void;
  close(done: (error: Error | null | undefined) => void): void;
}

interface PrivateParts extends FuseMount {
  ops: Operations;
  _handlers: unknown[];
  _op_getxattr(signal: Signal, path: string, name: string, into: Buffer, position: number): void;
  _op_listxattr(signal: Signal, path: string, into: Buffer): void;
}

type UtimensHandler = (native: Buffer, opcode: number, path: string, ...times: number[]) => unknown;

type Signal = (result: number, memory: ArrayBufferLike) => void;

interface FuseClass {
  new (directory: string, operations: Operations, options: BindingOptions): PrivateParts;
  /** Called by `close` with the directory. */
  unmount(directory: string, done: (error: Error | null) => void): void;
}

/** A mount of `fuse-native` that is not opened yet. Throws `DatamonError` "unsupported" where the package or libfuse is missing. */
export function createMount(directory: string, operations: Operations, options: BindingOptions): FuseMount {
  const Fuse = loadPackage();
  const mount = new Fuse(directory, operations, options);
  mendModificationTimes(mount);
  mendAttributeBuffers(mount);
  return mount;
}

let loaded: FuseClass | undefined;

function loadPackage(): FuseClass {
  if (loaded !== undefined) return loaded;
  try {
    loaded = createRequire(import.meta.url)("fuse-native") as FuseClass;
  } catch (error) {
    throw explainLoading(error);
  }
  // The package's own hands the directory to a shell, so that a `$(…)` in its name is run, and
  // detaches a mount that is in use. The channel unmounts by itself and closes the package's mount after that.
  loaded.unmount = (_directory, done) => done(null);
  return loaded;
}

/** Another way out, where there is one. */
const OTHERWISE = process.platform === "linux" ? ", or leave --channel away" : "";

/** What is missing, and how to get it, where loading the package failed. */
function explainLoading(error: unknown): DatamonError {
  const why = error instanceof Error ? error.message : String(error);
  const about = "the fuse-native channel cannot be used";
  if (/libfuse\.so|libosxfuse/.test(why)) {
    return new DatamonError("unsupported", `${about}: libfuse version 2 is not installed`, {
      hint:
        process.platform === "darwin"
          ? "Install macFUSE and run the command again."
          : `Install it (Debian and Ubuntu: apt-get install libfuse2 fuse3)${OTHERWISE}.`,
      cause: error,
    });
  }
  if ((error as NodeJS.ErrnoException).code === "MODULE_NOT_FOUND") {
    return new DatamonError("unsupported", `${about}: the npm package fuse-native is not installed`, {
      hint: `Run npm install fuse-native@2.2.6 in Datamon's folder${OTHERWISE}.`,
      cause: error,
    });
  }
  return new DatamonError("unsupported", `${about}: ${why}`, {
    hint: `Install fuse-native@2.2.6 anew${OTHERWISE}.`,
    cause: error,
  });
}

/** Number of the package's handler for utimens. */
const OP_UTIMENS = 12;
/** Where the package's per-thread struct (`fuse_thread_locals_t`, LP64 Linux) keeps the two times, in signed milliseconds. */
const ATIME_OFFSET = 104;
const MTIME_OFFSET = 112;

/**
 * The package hands over the access time twice in place of access and modification time. The right
 * one stands in the struct that comes with the call; it is taken from there where the access time,
 * found beside it, shows that the layout is the one expected.
 */
function mendModificationTimes(mount: PrivateParts): void {
  const handler = mount._handlers[OP_UTIMENS] as UtimensHandler | undefined;
  if (handler === undefined) return;
  mount._handlers[OP_UTIMENS] = (native: Buffer, opcode: number, path: string, ...given: number[]) => {
    if (native.length < MTIME_OFFSET + 8 || native.readUInt32LE(ATIME_OFFSET) !== given[0]) {
      return handler(native, opcode, path, ...given);
    }
    // The package adds low + 2^32 * high: a signed high half keeps times before 1970.
    const times = [ATIME_OFFSET, MTIME_OFFSET].flatMap((at) => [native.readUInt32LE(at), native.readInt32LE(at + 4)]);
    return handler(native, opcode, path, ...times);
  };
}

/** The package writes attributes without looking at the room there is; a caller with too little is to get ERANGE. */
function mendAttributeBuffers(mount: PrivateParts): void {
  const { getxattr, listxattr } = mount.ops;
  mount._op_getxattr = (signal, path, name, into, position) =>
    getxattr(path, name, position, (result, value) => {
      signal(result < 0 ? result : fill(into, value ?? Buffer.alloc(0)), into.buffer);
    });
  mount._op_listxattr = (signal, path, into) =>
    listxattr(path, (result, names = []) => {
      signal(result < 0 ? result : fill(into, Buffer.from(names.map((name) => `${name}\0`).join(""))), into.buffer);
    });
}

/** Copies `value` into the caller's room, which is 0 for a question about the size. */
function fill(into: Buffer, value: Buffer): number {
  if (into.length === 0) return value.length;
  if (value.length > into.length) return -constants.errno.ERANGE;
  value.copy(into);
  return value.length;
}
