/**
 * The seam between channels and trees: what the kernel can ask of a file tree. Every call is
 * synchronous and never waits for the network; content is answered with a plan that others execute.
 */

import type { Segment } from "../cache/index.ts";
import type { ByteString, Hash } from "../cas/index.ts";
import { OverlayNamespace } from "./overlay/overlay.ts";
import { SnapshotNamespace } from "./snapshot.ts";

export { FsError } from "./errno.ts";

/** The inode number of every namespace's root. */
export const ROOT_INO = 1;

/** Longest name of an entry, in bytes. */
export const NAME_MAX = 255;

/** Who makes a call. */
export interface Caller {
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
}

/** What stat shows of an inode. */
export interface Attr {
  readonly ino: number;
  /** st_mode, type bits included. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes; of a symbolic link, those of its target. */
  readonly size: number;
  readonly nlink: number;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
  readonly atimeNs: bigint;
  /** In units of 512 bytes. */
  readonly blocks: number;
  /** Device number of a device node, in the form of `st_rdev`; 0 for everything else. */
  readonly rdev: number;
}

/** Changes to an inode; what is absent stays. */
export interface SetAttr {
  /** Permission bits; type bits are ignored. */
  mode?: number;
  uid?: number;
  gid?: number;
  size?: number;
  mtimeNs?: bigint;
  atimeNs?: bigint;
}

/** An entry of a directory. */
export interface Entry {
  readonly name: ByteString;
  readonly attr: Attr;
}

/** Capacity, as statvfs shows it. Blocks are of `bsize` bytes. */
export interface FsStats {
  readonly blocks: number;
  readonly bfree: number;
  readonly bavail: number;
  readonly files: number;
  readonly ffree: number;
  readonly bsize: number;
  readonly namemax: number;
}

/** What a file's bytes are all in, so that the kernel could use it in the file's place. */
export type Backing =
  /** The container of a large file in the disk cache, by content hash, once it is whole. */
  | { readonly kind: "content"; readonly hash: Hash }
  /** An open local file. */
  | { readonly kind: "file"; readonly fd: number };

/** `rename` flag: fail with EEXIST where the new name exists. */
export const RENAME_NOREPLACE = 1;
/** `rename` flag: the two names change places. */
export const RENAME_EXCHANGE = 2;

/** `fallocate` mode bit: the size stays. */
export const FALLOC_KEEP_SIZE = 1;
/** `fallocate` mode bit: the range becomes zeros. */
export const FALLOC_PUNCH_HOLE = 2;
/** `fallocate` mode bit: the range becomes zeros, and the file may grow. */
export const FALLOC_ZERO_RANGE = 16;

/** `setxattr` flag: fail with EEXIST where the attribute is there. */
export const XATTR_CREATE = 1;
/** `setxattr` flag: fail with ENODATA where the attribute is not there. */
export const XATTR_REPLACE = 2;

/**
 * A file tree by inode numbers, as the kernel sees one. Calls fail with `FsError`, or with an error
 * of the disk below; `errnoOf` has the number for both. Inode numbers are stable over restarts.
 *
 * Permissions are the kernel's to check (mount option `default_permissions`), if they are to be checked.
 */
export interface Namespace {
  readonly writable: boolean;
  readonly root: 1;

  /** ENOENT, ENOTDIR, ENAMETOOLONG. */
  lookup(parent: number, name: ByteString): Attr;
  getattr(ino: number): Attr;
  /** EINVAL for anything but a symbolic link. */
  readlink(ino: number): ByteString;
  /** At most `limit` entries, in byte order of names, that come after `after`; without `.` and `..`. */
  readdir(ino: number, after: ByteString | undefined, limit: number): Entry[];
  /** The directory that holds the directory `ino`; the root's is itself. */
  parent(ino: number): number;
  /** Where the bytes of a file lie, clipped to its end: an empty plan at or past it. Valid until the next call that changes the file. */
  planRead(ino: number, offset: number, length: number): Segment[];
  /** As lseek(2) with `SEEK_DATA` or `SEEK_HOLE`; ENXIO at or past the end. */
  seek(ino: number, offset: number, whence: number): number;
  /**
   * The one place where all bytes of an open file are; undefined where there is none. After the
   * answer "file", and until the last `release`, the file may be read and written there without
   * this namespace being asked.
   */
  backing(ino: number): Backing | undefined;
  /** ENODATA where there is no such attribute. */
  getxattr(ino: number, name: ByteString): Buffer;
  /** What of an inode can be copied; a namespace that is not writable tells of Datamon's own attributes, too. */
  listxattr(ino: number): ByteString[];
  statfs(): FsStats;
  /** Counts a handle: an unlinked file keeps its content until the last `release`. */
  open(ino: number, flags: number): void;
  release(ino: number): void;

  // The rest changes the tree; a namespace that is not writable throws EROFS.

  /** A new regular file of permissions `mode` (the umask is the caller's affair). It is not opened. */
  create(parent: number, name: ByteString, mode: number, caller: Caller): Attr;
  mkdir(parent: number, name: ByteString, mode: number, caller: Caller): Attr;
  symlink(parent: number, name: ByteString, target: ByteString, caller: Caller): Attr;
  /** `mode` with type bits. */
  mknod(parent: number, name: ByteString, mode: number, rdev: number, caller: Caller): Attr;
  link(ino: number, parent: number, name: ByteString): Attr;
  unlink(parent: number, name: ByteString): void;
  rmdir(parent: number, name: ByteString): void;
  rename(parent: number, name: ByteString, newParent: number, newName: ByteString, flags: number): void;
  /** Writes all of `data`. With a caller other than root, setuid and setgid bits are cleared. */
  write(ino: number, offset: number, data: Buffer, caller?: Caller): number;
  setattr(ino: number, changes: SetAttr, caller: Caller): Attr;
  fallocate(ino: number, mode: number, offset: number, length: number): void;
  setxattr(ino: number, name: ByteString, value: Buffer, flags: number): void;
  removexattr(ino: number, name: ByteString): void;
  /** The file's content and attributes, and its names, are on the disk when this returns. */
  fsync(ino: number): void;
  /** A descriptor was closed. */
  flush(ino: number): void;
  /** All that was written is on the disk when this returns. */
  syncAll(): void;
  /** How many names and inodes differ from the base; 0 where nothing does. */
  changes(): number;

  /**
   * Has everything stay as it is at this moment in a layer of its own, under what is changed from
   * here on; false where nothing differs from the base, which changes nothing. Costs no copies but of
   * files that `backing` named and that are open.
   */
  freeze(): boolean;
  /**
   * Puts a bundle in the place of the frozen layers and all below them: one made of them, with the
   * numbers of their inodes. Both undefined: an empty tree. Returns what closes them, to be called
   * when no plan is read any more that was made before; undefined, and nothing has changed, as long
   * as a file is open that lost its name before it was frozen.
   */
  rebase(catalog: string | undefined, bundle: string | undefined): (() => void) | undefined;

  // For requests that come once more, to another process, because the one that had them died.

  /** Says that the next change is what the request of this id asks for: both are kept in one step. */
  begin(request: string): void;
  /** True where the last change for which `begin` was called was made for this request. */
  isDone(request: string): boolean;
  /** The kernel has forgotten the inode: nobody has it open, whatever handles were given by others. */
  forget(ino: number): void;

  close(): void;
}

/** What a thread needs to open a namespace; can be cloned between threads. */
export type NamespaceSpec =
  | {
      readonly kind: "snapshot";
      /** File of the catalog, checked already. */
      readonly catalog: string;
      /** Bundle id. */
      readonly bundle: string;
    }
  | {
      readonly kind: "overlay";
      /** File of the base's catalog; undefined for a tree that starts empty. */
      readonly catalog: string | undefined;
      /** Directory of the scratch. */
      readonly scratch: string;
      /** Bundle id of the base. */
      readonly bundle: string | undefined;
      /** The process before died, and the kernel has not noticed: files that were open still are. */
      readonly adopted?: boolean;
      /** `forget` is told of every inode: one whose name another takes by a rename is kept until then. */
      readonly forgets?: boolean;
      /** Bytes that the scratch may take. */
      readonly limit?: number | undefined;
    };

/** Opens the namespace that `spec` describes. Throws `DatamonError`. */
export function openNamespace(spec: NamespaceSpec): Namespace {
  return spec.kind === "snapshot"
    ? new SnapshotNamespace(spec.catalog, spec.bundle)
    : OverlayNamespace.open(spec.scratch, spec.catalog, spec.bundle, spec);
}
