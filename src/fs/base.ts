/** What snapshots and overlays read from a bundle's catalog, in the terms of the namespace seam. */

import { type FileLayout, type Home, type Segment, type Slice, WHOLE_FILE } from "../cache/index.ts";
import { type ByteString, bytesOf, type Extent, LARGE_FILE } from "../cas/index.ts";
import { Catalog, type Dentry, type Inode } from "../meta/index.ts";
import { FsError } from "./errno.ts";
import type { Attr } from "./namespace.ts";

const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

export const isDirectory = (mode: number): boolean => (mode & S_IFMT) === S_IFDIR;
export const isRegular = (mode: number): boolean => (mode & S_IFMT) === S_IFREG;
export const isSymlink = (mode: number): boolean => (mode & S_IFMT) === S_IFLNK;
export { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG };

/** Extended attribute of a file: its content hash, 64 hexadecimal digits. */
export const XATTR_HASH = bytesOf("user.datamon.hash");
/** Extended attribute of a file or directory: the id of the bundle that it comes from. */
export const XATTR_BUNDLE = bytesOf("user.datamon.bundle");
/** Bytes of a file whose extents are fetched at once for a sequential reader. */
const PLANNED_AHEAD = 32 * 1024 * 1024;

/** Names that Datamon keeps for itself. */
export const XATTR_RESERVED = "user.datamon.";

/** A read-only tree by inode numbers: what lies below an overlay. */
export interface Base {
  inode(ino: number): Inode | undefined;
  lookup(parent: number, name: ByteString): Inode | undefined;
  readdir(parent: number, after: ByteString | undefined, limit: number): Dentry[];
  /** The directory that holds the directory `ino`. */
  parent(ino: number): number | undefined;
  /** Adds the bytes [start, end) of a file to `plan`; what no blob holds is zeros. */
  plan(file: Inode, start: number, end: number, plan: Segment[]): void;
  maxIno(): number;
  totals(): { inodes: number; bytes: number };
  close(): void;
}

/** A catalog as a base. */
export class CatalogBase implements Base {
  readonly catalog: Catalog;
  /** The extents of the last plan, which cover [start, end) of a file; the plan ended at `next`. */
  #planned: { ino: number; start: number; end: number; next: number; extents: readonly Extent[] } = {
    ino: 0,
    start: 0,
    end: 0,
    next: 0,
    extents: [],
  };

  constructor(file: string) {
    this.catalog = Catalog.open(file);
  }

  inode(ino: number): Inode | undefined {
    return this.catalog.inode(ino);
  }

  lookup(parent: number, name: ByteString): Inode | undefined {
    return this.catalog.lookup(parent, name);
  }

  readdir(parent: number, after: ByteString | undefined, limit: number): Dentry[] {
    return this.catalog.readdir(parent, after, limit);
  }

  parent(ino: number): number | undefined {
    return this.catalog.parent(ino);
  }

  plan(file: Inode, start: number, end: number, plan: Segment[]): void {
    let at = start;
    for (const extent of this.#extents(file.ino, start, end)) {
      const from = Math.max(extent.start, at);
      const to = Math.min(extent.start + extent.length, end);
      if (to <= from) continue;
      addZeros(plan, from - at);
      const offset = extent.offset + from - extent.start;
      const segment = { kind: "blob", blob: extent.blob, offset, length: to - from } as const;
      const home = homeOf(file, extent);
      const slice = home === undefined ? sliceOf(file, extent) : undefined;
      plan.push({ ...segment, ...(home !== undefined && { home }), ...(slice !== undefined && { slice }) });
      at = to;
    }
    addZeros(plan, end - at);
  }

  /** Extents that cover [start, end), and more of them for whoever goes on where the last plan ended. */
  #extents(ino: number, start: number, end: number): readonly Extent[] {
    const last = this.#planned;
    const follows = last.ino === ino && last.next === start;
    if (last.ino === ino && last.start <= start && end <= last.end) {
      last.next = end;
      return last.extents.filter((extent) => extent.start < end && extent.start + extent.length > start);
    }
    const until = follows ? end + PLANNED_AHEAD : end;
    const extents = this.catalog.extents(ino, start, until);
    this.#planned = { ino, start, end: until, next: end, extents };
    return extents;
  }

  maxIno(): number {
    return this.catalog.maxIno();
  }

  totals(): { inodes: number; bytes: number } {
    const { files, directories, symlinks, bytes } = this.catalog.summary();
    return { inodes: files + directories + symlinks, bytes };
  }

  close(): void {
    this.catalog.close();
  }
}

/** Where the blob of an extent belongs in the container of its file, where that is a large one. */
export function homeOf({ hash, size }: Inode, { start, offset, length }: Extent): Home | undefined {
  return size < WHOLE_FILE || hash === undefined || offset !== 0 ? undefined : { file: hash, size, start, length };
}

/** A small file's own part of the blob that it shares with others. */
function sliceOf({ hash, size }: Inode, { start, offset, length }: Extent): Slice | undefined {
  return size >= LARGE_FILE || hash === undefined || start !== 0 || length !== size
    ? undefined
    : { file: hash, offset, length };
}

/** What a file is made of, where it is one that is assembled in the disk cache. */
export function layoutOf(catalog: Catalog, file: Inode): FileLayout | undefined {
  const pieces = [];
  for (const extent of catalog.extents(file.ino)) {
    if (homeOf(file, extent) === undefined) return undefined;
    pieces.push({ blob: extent.blob, offset: extent.start, length: extent.length });
  }
  return file.hash === undefined || pieces.length === 0 ? undefined : { file: file.hash, size: file.size, pieces };
}

/** Appends `length` zero bytes to a plan. */
export function addZeros(plan: Segment[], length: number): void {
  if (length <= 0) return;
  const last = plan[plan.length - 1];
  if (last?.kind === "zeros") plan[plan.length - 1] = { kind: "zeros", length: last.length + length };
  else plan.push({ kind: "zeros", length });
}

/** What stat shows of an inode of a catalog: its change and access times are its modification time. */
export function attrOfInode(inode: Inode): Attr {
  return {
    ino: inode.ino,
    mode: inode.mode,
    uid: inode.uid,
    gid: inode.gid,
    size: inode.size,
    nlink: inode.nlink,
    mtimeNs: inode.mtimeNs,
    ctimeNs: inode.mtimeNs,
    atimeNs: inode.mtimeNs,
    blocks: isRegular(inode.mode) ? Math.ceil(inode.size / 512) : 0,
    rdev: 0,
  };
}

/**
 * The attributes that Datamon adds to an inode of a bundle.
 *
 * @param hash the content hash; undefined for anything but a file
 */
export function reservedXattr(
  name: ByteString,
  mode: number,
  hash: string | undefined,
  bundle: string,
): Buffer | undefined {
  if (name === XATTR_HASH && hash !== undefined && isRegular(mode)) return Buffer.from(hash, "latin1");
  if (name === XATTR_BUNDLE && (isRegular(mode) || isDirectory(mode))) return Buffer.from(bundle, "latin1");
  return undefined;
}

/** Names of the attributes that `reservedXattr` has for such an inode. */
export function reservedXattrNames(mode: number): ByteString[] {
  if (isRegular(mode)) return [XATTR_BUNDLE, XATTR_HASH];
  return isDirectory(mode) ? [XATTR_BUNDLE] : [];
}

/** Throws ENAMETOOLONG for a name of more than 255 bytes. */
export function checkName(name: ByteString): void {
  if (name.length > 255) throw new FsError("ENAMETOOLONG");
}
