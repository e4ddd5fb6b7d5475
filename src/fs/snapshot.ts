/** A bundle as a read-only tree. */

import { type Segment, WHOLE_FILE } from "../cache/index.ts";
import type { ByteString } from "../cas/index.ts";
import type { Inode } from "../meta/index.ts";
import {
  attrOfInode,
  CatalogBase,
  checkName,
  isDirectory,
  isRegular,
  isSymlink,
  reservedXattr,
  reservedXattrNames,
} from "./base.ts";
import { FsError } from "./errno.ts";
import { type Attr, type Backing, type Entry, type FsStats, NAME_MAX, type Namespace } from "./namespace.ts";
import { seek } from "./seek.ts";

const BLOCK = 4096;

/** The namespace over a catalog. It keeps no state: any number may be open on one catalog, in any thread. */
export class SnapshotNamespace implements Namespace {
  readonly writable = false;
  readonly root = 1;
  readonly #base: CatalogBase;
  readonly #bundle: string;
  /** The inode that was asked for last: whoever reads a file asks for it again and again. */
  #last: Inode | undefined;

  /** Opens the catalog `file` of the bundle with id `bundle`. */
  constructor(file: string, bundle: string) {
    this.#base = new CatalogBase(file);
    this.#bundle = bundle;
  }

  lookup(parent: number, name: ByteString): Attr {
    checkName(name);
    const inode = this.#base.lookup(parent, name);
    if (inode !== undefined) return attrOfInode(inode);
    this.#directory(parent);
    throw new FsError("ENOENT");
  }

  getattr(ino: number): Attr {
    return attrOfInode(this.#inode(ino));
  }

  readlink(ino: number): ByteString {
    const inode = this.#inode(ino);
    if (!isSymlink(inode.mode) || inode.target === undefined) throw new FsError("EINVAL");
    return inode.target;
  }

  readdir(ino: number, after: ByteString | undefined, limit: number): Entry[] {
    const entries = this.#base.readdir(ino, after, limit);
    if (entries.length === 0) this.#directory(ino);
    return entries.map(({ name, inode }) => ({ name, attr: attrOfInode(inode) }));
  }

  parent(ino: number): number {
    if (ino === this.root) return ino;
    this.#directory(ino);
    return this.#base.parent(ino) ?? this.root;
  }

  planRead(ino: number, offset: number, length: number): Segment[] {
    const inode = this.#inode(ino);
    if (isDirectory(inode.mode)) throw new FsError("EISDIR");
    if (!isRegular(inode.mode)) throw new FsError("EINVAL");
    const plan: Segment[] = [];
    const end = Math.min(offset + length, inode.size);
    if (offset < end) this.#base.plan(inode, offset, end, plan);
    return plan;
  }

  seek(ino: number, offset: number, whence: number): number {
    return seek((at, length) => this.planRead(ino, at, length), this.#inode(ino).size, offset, whence);
  }

  backing(ino: number): Backing | undefined {
    const { mode, size, hash } = this.#inode(ino);
    return isRegular(mode) && size >= WHOLE_FILE && hash !== undefined ? { kind: "content", hash } : undefined;
  }

  getxattr(ino: number, name: ByteString): Buffer {
    const inode = this.#inode(ino);
    const value = reservedXattr(name, inode.mode, inode.hash, this.#bundle) ?? inode.xattrs?.get(name);
    if (value === undefined) throw new FsError("ENODATA");
    return value;
  }

  listxattr(ino: number): ByteString[] {
    const inode = this.#inode(ino);
    return [...reservedXattrNames(inode.mode), ...(inode.xattrs?.keys() ?? [])];
  }

  statfs(): FsStats {
    const { inodes, bytes } = this.#base.totals();
    return {
      blocks: Math.ceil(bytes / BLOCK),
      bfree: 0,
      bavail: 0,
      files: inodes,
      ffree: 0,
      bsize: BLOCK,
      namemax: NAME_MAX,
    };
  }

  open(ino: number, _flags: number): void {
    this.#inode(ino);
  }

  release(_ino: number): void {}

  flush(_ino: number): void {}

  fsync(_ino: number): void {}

  syncAll(): void {}

  changes(): number {
    return 0;
  }

  freeze(): never {
    throw new FsError("EROFS");
  }

  rebase(): never {
    throw new FsError("EROFS");
  }

  begin(_request: string): void {}

  isDone(_request: string): boolean {
    return false;
  }

  forget(_ino: number): void {}

  close(): void {
    this.#base.close();
  }

  create(): never {
    throw new FsError("EROFS");
  }

  mkdir(): never {
    throw new FsError("EROFS");
  }

  symlink(): never {
    throw new FsError("EROFS");
  }

  mknod(): never {
    throw new FsError("EROFS");
  }

  link(): never {
    throw new FsError("EROFS");
  }

  unlink(): never {
    throw new FsError("EROFS");
  }

  rmdir(): never {
    throw new FsError("EROFS");
  }

  rename(): never {
    throw new FsError("EROFS");
  }

  write(): never {
    throw new FsError("EROFS");
  }

  setattr(): never {
    throw new FsError("EROFS");
  }

  fallocate(): never {
    throw new FsError("EROFS");
  }

  setxattr(): never {
    throw new FsError("EROFS");
  }

  removexattr(): never {
    throw new FsError("EROFS");
  }

  #inode(ino: number): Inode {
    if (this.#last?.ino === ino) return this.#last;
    const inode = this.#base.inode(ino);
    if (inode === undefined) throw new FsError("ENOENT");
    this.#last = inode;
    return inode;
  }

  #directory(ino: number): void {
    if (!isDirectory(this.#inode(ino).mode)) throw new FsError("ENOTDIR");
  }
}
