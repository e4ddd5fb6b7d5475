/** A writable tree: a bundle below, or nothing, and over it what a scratch holds. */

import { constants, statfsSync } from "node:fs";
import { join } from "node:path";
import type { Segment } from "../../cache/index.ts";
import { type ByteString, faultPoint } from "../../cas/index.ts";
import {
  type Base,
  isDirectory,
  isRegular,
  isSymlink,
  reservedXattr,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  XATTR_HASH,
  XATTR_RESERVED,
} from "../base.ts";
import { nowNs } from "../clock.ts";
import { FsError } from "../errno.ts";
import {
  type Attr,
  type Backing,
  type Caller,
  type Entry,
  type FsStats,
  NAME_MAX,
  type Namespace,
  RENAME_EXCHANGE,
  RENAME_NOREPLACE,
  ROOT_INO,
  type SetAttr,
  XATTR_CREATE,
  XATTR_REPLACE,
} from "../namespace.ts";
import { seek } from "../seek.ts";
import { type Contents, withoutSetId } from "./contents.ts";
import { DataFiles } from "./data.ts";
import { layerAbove } from "./freeze.ts";
import { type Edit, FILE_CLOCK_STEP, type Inodes } from "./inodes.ts";
import type { InodeRow, Journal } from "./journal.ts";
import { baseFrom, FrozenBase, Layer, openJournal } from "./layer.ts";
import { dataDirectory, journalFile, layerDirectory, layerName, settleLayers, stackOf } from "./layers.ts";
import { ScratchLock } from "./lock.ts";
import type { Names } from "./names.ts";
import { Reserve } from "./reserve.ts";
import { Space } from "./space.ts";

const S_ISGID = 0o2000;
const PERMISSIONS = 0o7777;

/** Longest target of a symbolic link, in bytes. */
const TARGET_MAX = 4095;
/** Limits of Linux for extended attributes, in bytes. */
const XATTR_NAME_MAX = 255;
const XATTR_SIZE_MAX = 65536;

/** How a scratch is opened; as in `NamespaceSpec`. */
export interface OverlayOptions {
  readonly adopted?: boolean;
  readonly forgets?: boolean;
  readonly limit?: number | undefined;
}

/** The namespace over a scratch. One process at a time has it open. */
export class OverlayNamespace implements Namespace {
  readonly writable = true;
  readonly root = ROOT_INO;
  readonly #directory: string;
  #bundle: string | undefined;
  readonly #lock: ScratchLock;
  readonly #reserve: Reserve;
  /** The topmost layer, and its parts. */
  #top!: Layer;
  #journal!: Journal;
  #data!: DataFiles;
  #inodes!: Inodes;
  #names!: Names;
  #contents!: Contents;
  /** The layers below it, the topmost first: frozen, and on their way to be a bundle. */
  #frozen: Layer[] = [];
  readonly #handles = new Map<number, number>();
  /** Inodes below this number may be open by handles that a process before this one gave and that are not counted. */
  #firstCounted = 0;
  /** The channel tells what the kernel forgets. */
  readonly #forgets: boolean;
  /** Inodes without names that are or may yet be opened so: they stay until the kernel forgets them. */
  readonly #left = new Set<number>();
  #closed = false;

  private constructor(
    directory: string,
    bundle: string | undefined,
    lock: ScratchLock,
    reserve: Reserve,
    top: Layer,
    forgets: boolean,
  ) {
    this.#forgets = forgets;
    this.#directory = directory;
    this.#bundle = bundle;
    this.#lock = lock;
    this.#reserve = reserve;
    this.#stand(top);
  }

  /**
   * Opens the scratch in `directory`, with what a process that died left in it. Throws "conflict"
   * where another process has it, or where it was made over another base.
   *
   * @param catalog file of the catalog that its lowest layer stands on; undefined for a tree that starts empty
   * @param bundle id of that bundle
   * @param options as in `NamespaceSpec`
   */
  static open(
    directory: string,
    catalog: string | undefined,
    bundle: string | undefined,
    options: OverlayOptions = {},
  ): OverlayNamespace {
    const { adopted = false, forgets = false, limit } = options;
    const lock = ScratchLock.take(directory);
    let base: Base | undefined;
    let top: Layer | undefined;
    try {
      settleLayers(directory);
      base = baseFrom(catalog);
      const reserve = new Reserve(join(directory, "reserve"));
      const space = limit === undefined ? undefined : new Space(limit);
      let name = bundle;
      for (const number of stackOf(directory)) {
        if (top !== undefined) base = new FrozenBase(top);
        const layer = layerDirectory(directory, number);
        const journal = openJournal(layer, name, base);
        const data = new DataFiles(dataDirectory(layer), space);
        space?.begin(journalFile(layer), data.directory);
        top = new Layer(layer, number, journal, data, base, reserve);
        name = layerName(number);
      }
      const overlay = new OverlayNamespace(directory, bundle, lock, reserve, top as Layer, forgets);
      if (adopted) overlay.#adopt();
      else {
        overlay.#journal.forgetRequest();
        overlay.#data.removeFrom(overlay.#journal.firstFreeIno);
        overlay.#removeOrphans();
      }
      return overlay;
    } catch (error) {
      if (top !== undefined && base !== undefined && top.base === base) top.close();
      base?.close();
      lock.release();
      throw error;
    }
  }

  /** The topmost layer, for a commit to read. */
  get layer(): Layer {
    return this.#top;
  }

  lookup(parent: number, name: ByteString): Attr {
    const { ino, inode } = this.#names.lookup(parent, name);
    return inode === undefined ? this.#inodes.attr(ino) : this.#inodes.attrOver(inode);
  }

  getattr(ino: number): Attr {
    return this.#inodes.attr(ino);
  }

  readlink(ino: number): ByteString {
    const inode = this.#inodes.row(ino) ?? this.#inodes.unchanged(ino);
    if (!isSymlink(inode.mode) || inode.target === undefined) throw new FsError("EINVAL");
    return inode.target;
  }

  readdir(ino: number, after: ByteString | undefined, limit: number): Entry[] {
    return this.#names.readdir(ino, after, limit);
  }

  parent(ino: number): number {
    this.#names.directory(ino);
    return this.#names.parent(ino);
  }

  planRead(ino: number, offset: number, length: number): Segment[] {
    return this.#contents.plan(ino, offset, length);
  }

  seek(ino: number, offset: number, whence: number): number {
    return seek((at, length) => this.planRead(ino, at, length), this.#inodes.attr(ino).size, offset, whence);
  }

  /**
   * A file is in one place where nothing of the base shows; whoever writes to another changes the
   * journal. One with bits that go when it is written to has to be written to here.
   */
  backing(ino: number): Backing | undefined {
    // What the kernel writes by itself nobody counts.
    if (this.#data.space !== undefined || !this.#data.hasRoom) return undefined;
    const row = this.#inodes.row(ino);
    if (row === undefined || !isRegular(row.mode) || row.baseSize > 0 || !row.changed) return undefined;
    if (withoutSetId(row.mode) !== row.mode) return undefined;
    if (row.mtimeSet) this.#inodes.apply((edit) => this.#moveTime(edit, ino, row.mtimeNs));
    const isMade = this.#inodes.dataStat(ino) === undefined;
    const fd = this.#data.share(ino);
    // Who only looks into an empty file is not to change its time by that.
    if (isMade && nowNs() - row.mtimeNs > FILE_CLOCK_STEP) this.#data.setModified(ino, row.mtimeNs);
    this.#inodes.dataChanged(ino);
    return { kind: "file", fd };
  }

  getxattr(ino: number, name: ByteString): Buffer {
    const value = name.startsWith(XATTR_RESERVED) ? this.#reserved(ino, name) : this.#xattr(ino, name);
    if (value === undefined) throw new FsError("ENODATA");
    return value;
  }

  /** Without Datamon's own, which `getxattr` has: programs that copy attributes would be refused to set them. */
  listxattr(ino: number): ByteString[] {
    const stored = this.#inodes.row(ino)?.ownXattrs ? this.#journal.xattrs(ino) : this.#inodes.base.inode(ino)?.xattrs;
    return [...(stored?.keys() ?? [])];
  }

  statfs(): FsStats {
    const { blocks, bfree, bavail, files, ffree, bsize } = statfsSync(this.#directory);
    const { space } = this.#data;
    const names = { files, ffree, bsize, namemax: NAME_MAX };
    if (space === undefined) return { blocks, bfree, bavail, ...names };
    const left = Math.min(Math.floor(space.left / bsize), bavail);
    return { blocks: Math.floor(space.limit / bsize), bfree: left, bavail: left, ...names };
  }

  /** As the seam says; with O_TRUNC a file is emptied. */
  open(ino: number, flags: number): void {
    if ((flags & constants.O_TRUNC) !== 0) this.#contents.truncate(ino, 0);
    else this.#inodes.mode(ino);
    this.#handles.set(ino, (this.#handles.get(ino) ?? 0) + 1);
    this.#data.pin(ino);
    for (const { data } of this.#frozen) data.pin(ino);
  }

  release(ino: number): void {
    const handles = this.#handles.get(ino);
    if (handles === undefined) return;
    this.#unpin(ino);
    if (handles > 1) {
      this.#handles.set(ino, handles - 1);
      return;
    }
    this.#handles.delete(ino);
    if (this.#data.unshare(ino)) this.#inodes.dataChanged(ino);
    if (!this.#left.has(ino) && this.#inodes.row(ino)?.nlink === 0) this.#removeInode(ino);
  }

  create(parent: number, name: ByteString, mode: number, caller: Caller): Attr {
    return this.#make(parent, name, S_IFREG | (mode & PERMISSIONS), caller, {});
  }

  mkdir(parent: number, name: ByteString, mode: number, caller: Caller): Attr {
    return this.#make(parent, name, S_IFDIR | (mode & PERMISSIONS), caller, { nlink: 2, parent });
  }

  symlink(parent: number, name: ByteString, target: ByteString, caller: Caller): Attr {
    if (target.length === 0) throw new FsError("ENOENT");
    if (target.length > TARGET_MAX) throw new FsError("ENAMETOOLONG");
    return this.#make(parent, name, S_IFLNK | 0o777, caller, { target });
  }

  mknod(parent: number, name: ByteString, mode: number, rdev: number, caller: Caller): Attr {
    const type = mode & S_IFMT;
    if (type === S_IFDIR || type === S_IFLNK) throw new FsError("EINVAL");
    return this.#make(parent, name, (type === 0 ? S_IFREG : type) | (mode & PERMISSIONS), caller, { rdev });
  }

  link(ino: number, parent: number, name: ByteString): Attr {
    this.#data.space?.check();
    this.#inodes.apply((edit) => {
      const row = edit.get(ino);
      this.#names.free(edit, parent, name);
      if (isDirectory(row.mode)) throw new FsError("EPERM");
      if (row.nlink === 0) throw new FsError("ENOENT");
      this.#names.set(parent, name, ino);
      edit.update(ino, { nlink: row.nlink + 1, ctimeNs: edit.now });
      touch(edit, parent);
    });
    return this.#inodes.attr(ino);
  }

  unlink(parent: number, name: ByteString): void {
    const { ino } = this.#names.lookup(parent, name);
    if (isDirectory(this.#inodes.mode(ino))) throw new FsError("EISDIR");
    this.#inodes.applyFreeing((edit) => {
      this.#names.remove(parent, name);
      touch(edit, parent);
      this.#drop(edit, ino);
    });
  }

  rmdir(parent: number, name: ByteString): void {
    const { ino } = this.#names.lookup(parent, name);
    this.#names.directory(ino);
    if (!this.#names.isEmpty(ino)) throw new FsError("ENOTEMPTY");
    this.#inodes.applyFreeing((edit) => {
      this.#names.remove(parent, name);
      touch(edit, parent, -1);
      this.#drop(edit, ino);
    });
  }

  rename(parent: number, name: ByteString, newParent: number, newName: ByteString, flags: number): void {
    const exchange = (flags & RENAME_EXCHANGE) !== 0;
    const noReplace = (flags & RENAME_NOREPLACE) !== 0;
    if ((flags & ~(RENAME_EXCHANGE | RENAME_NOREPLACE)) !== 0 || (exchange && noReplace)) throw new FsError("EINVAL");
    const { ino } = this.#names.lookup(parent, name);
    const replaced = this.#lookupIfThere(newParent, newName);
    if (exchange && replaced === undefined) throw new FsError("ENOENT");
    if (noReplace && replaced !== undefined) throw new FsError("EEXIST");
    const directory = isDirectory(this.#inodes.mode(ino));
    if (directory && this.#names.isBelow(newParent, ino)) throw new FsError("EINVAL");
    const replacedDirectory = replaced !== undefined && isDirectory(this.#inodes.mode(replaced));
    if (exchange) {
      if (replacedDirectory && this.#names.isBelow(parent, replaced)) throw new FsError("EINVAL");
    } else if (replaced !== undefined && replaced !== ino) {
      if (directory && !replacedDirectory) throw new FsError("ENOTDIR");
      if (!directory && replacedDirectory) throw new FsError("EISDIR");
      if (replacedDirectory && !this.#names.isEmpty(replaced)) throw new FsError("ENOTEMPTY");
    }
    if (replaced === ino) return;
    this.#inodes.applyFreeing((edit) => {
      if (edit.get(newParent).nlink === 0) throw new FsError("ENOENT");
      this.#names.set(newParent, newName, ino);
      if (exchange) this.#names.set(parent, name, replaced!);
      else this.#names.remove(parent, name);
      touch(edit, parent, (directory ? -1 : 0) + (exchange && replacedDirectory ? 1 : 0));
      touch(edit, newParent, (directory ? 1 : 0) - (replacedDirectory ? 1 : 0));
      edit.update(ino, { ctimeNs: edit.now, ...(directory ? { parent: newParent } : {}) });
      if (replaced === undefined) return;
      if (exchange) edit.update(replaced, { ctimeNs: edit.now, ...(replacedDirectory ? { parent } : {}) });
      else this.#drop(edit, replaced, this.#forgets);
    });
  }

  write(ino: number, offset: number, data: Buffer, caller?: Caller): number {
    return this.#contents.write(ino, offset, data, caller);
  }

  setattr(ino: number, changes: SetAttr, _caller: Caller): Attr {
    const { mode, uid, gid, size, mtimeNs, atimeNs } = changes;
    if (size !== undefined) this.#contents.truncate(ino, size);
    if (
      mode !== undefined ||
      uid !== undefined ||
      gid !== undefined ||
      mtimeNs !== undefined ||
      atimeNs !== undefined
    ) {
      this.#inodes.apply((edit) => {
        const row = edit.get(ino);
        const shown = this.#inodes.attr(ino);
        let bits = row.mode;
        // Linux does so for root as well, and leaves directories alone.
        if ((uid !== undefined || gid !== undefined) && !isDirectory(bits)) bits = withoutSetId(bits);
        if (mode !== undefined) bits = (row.mode & S_IFMT) | (mode & PERMISSIONS);
        edit.update(ino, {
          mode: bits,
          uid: uid ?? row.uid,
          gid: gid ?? row.gid,
          ctimeNs: edit.now,
          changed: true,
          ...(mtimeNs === undefined ? {} : { mtimeNs, mtimeSet: true, atimeNs: row.atimeNs ?? shown.atimeNs }),
          ...(atimeNs === undefined ? {} : { atimeNs }),
        });
        if (mtimeNs !== undefined && this.#data.isShared(ino)) this.#moveTime(edit, ino, mtimeNs);
      });
    }
    return this.#inodes.attr(ino);
  }

  fallocate(ino: number, mode: number, offset: number, length: number): void {
    this.#contents.fallocate(ino, mode, offset, length);
  }

  setxattr(ino: number, name: ByteString, value: Buffer, flags: number): void {
    checkXattrName(name);
    if (value.length > XATTR_SIZE_MAX) throw new FsError("E2BIG");
    this.#data.space?.check();
    this.#inodes.apply((edit) => {
      this.#ownXattrs(edit, ino);
      const known = this.#journal.xattr(ino, name) !== undefined;
      if ((flags & XATTR_CREATE) !== 0 && known) throw new FsError("EEXIST");
      if ((flags & XATTR_REPLACE) !== 0 && !known) throw new FsError("ENODATA");
      this.#journal.putXattr(ino, name, value);
    });
  }

  removexattr(ino: number, name: ByteString): void {
    checkXattrName(name);
    this.#inodes.apply((edit) => {
      this.#ownXattrs(edit, ino);
      if (this.#journal.xattr(ino, name) === undefined) throw new FsError("ENODATA");
      this.#journal.removeXattr(ino, name);
    });
  }

  fsync(ino: number): void {
    for (const { data, journal } of [this.#top, ...this.#frozen]) {
      data.sync(ino);
      journal.sync();
    }
  }

  /** Nothing is left to do at a close: what was written is with the kernel already. */
  flush(_ino: number): void {}

  syncAll(): void {
    for (const { data, journal } of [this.#top, ...this.#frozen]) {
      data.syncAll();
      journal.sync();
    }
  }

  changes(): number {
    return this.#journal.countChanges();
  }

  freeze(): boolean {
    if (!this.#journal.hasChanges()) return false;
    this.#stand(layerAbove(this.#directory, this.#top, this.#reserve));
    return true;
  }

  rebase(catalog: string | undefined, bundle: string | undefined): (() => void) | undefined {
    const before = this.#inodes.base;
    const base = baseFrom(catalog);
    try {
      if (this.#needs(base)) {
        base.close();
        return undefined;
      }
      this.#journal.rebase(bundle ?? "");
    } catch (error) {
      base.close();
      throw error;
    }
    faultPoint("rebase");
    this.#inodes.rebase(base);
    this.#bundle = bundle;
    this.#frozen = [];
    this.#data.space?.drop();
    return () => before.close();
  }

  begin(request: string): void {
    this.#journal.begin(request);
  }

  isDone(request: string): boolean {
    return this.#journal.lastRequest() === request;
  }

  forget(ino: number): void {
    if (!this.#left.delete(ino)) return;
    for (let left = this.#handles.get(ino) ?? 0; left > 0; left--) this.#unpin(ino);
    this.#handles.delete(ino);
    if (this.#inodes.row(ino)?.nlink === 0) this.#removeInode(ino);
  }

  /** Closes; inodes that were unlinked and are open still go now. A second call does nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#handles.clear();
    try {
      this.#removeOrphans();
    } finally {
      this.#top.close();
      this.#top.base.close();
      this.#lock.release();
    }
  }

  #stand(top: Layer): void {
    this.#top = top;
    this.#journal = top.journal;
    this.#data = top.data;
    this.#inodes = top.inodes;
    this.#names = top.names;
    this.#contents = top.contents;
    this.#frozen = [];
    for (let base = top.base; base instanceof FrozenBase; base = base.layer.base) this.#frozen.push(base.layer);
  }

  #unpin(ino: number): void {
    this.#data.unpin(ino);
    for (const { data } of this.#frozen) data.unpin(ino);
  }

  /** True where a file that lost its name before the bundle of `base` was made shows what is below it now. */
  #needs(base: Base): boolean {
    return this.#journal.orphans().some((ino) => this.#inodes.row(ino)!.baseSize > 0 && base.inode(ino) === undefined);
  }

  #make(parent: number, name: ByteString, mode: number, caller: Caller, more: Partial<InodeRow>): Attr {
    this.#data.space?.check();
    const ino = this.#inodes.apply((edit) => {
      this.#names.free(edit, parent, name);
      const above = edit.get(parent);
      const inherits = (above.mode & S_ISGID) !== 0;
      const directory = isDirectory(mode);
      const made = this.#journal.allocateIno();
      edit.put({
        ino: made,
        mode: inherits && directory ? mode | S_ISGID : mode,
        uid: caller.uid,
        gid: inherits ? above.gid : caller.gid,
        rdev: 0,
        nlink: 1,
        size: 0,
        baseSize: 0,
        mtimeNs: edit.now,
        ctimeNs: edit.now,
        atimeNs: undefined,
        mtimeSet: !isRegular(mode),
        target: undefined,
        parent: 0,
        trim: false,
        ownXattrs: false,
        changed: true,
        ...more,
      });
      this.#names.set(parent, name, made);
      touch(edit, parent, directory ? 1 : 0);
      return made;
    });
    this.#inodes.noData(ino);
    return this.#inodes.attr(ino);
  }

  /** Makes the modification time that of the data file, so that it holds until the next write, whoever writes. */
  #moveTime(edit: Edit, ino: number, mtimeNs: bigint): void {
    this.#data.setModified(ino, mtimeNs);
    this.#inodes.dataChanged(ino);
    // The later of row and file counts, and the next write may come before a time that was set in the future.
    edit.update(ino, { mtimeSet: false, mtimeNs: mtimeNs < edit.now ? mtimeNs : edit.now });
  }

  #lookupIfThere(parent: number, name: ByteString): number | undefined {
    try {
      return this.#names.lookup(parent, name).ino;
    } catch (error) {
      if (error instanceof FsError && error.errno === "ENOENT") return undefined;
      throw error;
    }
  }

  /**
   * Takes one name from an inode; without names it goes, at once or when nobody has it open any more.
   *
   * @param replaced another has the name: who looked it up just before is to find this one still
   */
  #drop(edit: Edit, ino: number, replaced = false): void {
    const { mode, nlink } = this.#inodes.row(ino) ?? this.#inodes.unchanged(ino);
    const left = isDirectory(mode) ? 0 : nlink - 1;
    const kept = ino < this.#firstCounted || (replaced && !isDirectory(mode));
    if (left > 0 || this.#handles.has(ino) || kept) {
      edit.update(ino, { nlink: left, ctimeNs: edit.now });
      if (left === 0 && kept) this.#left.add(ino);
      return;
    }
    edit.remove(ino);
    this.#contents.forget(ino);
  }

  #adopt(): void {
    this.#firstCounted = this.#journal.firstFreeIno;
    for (const ino of this.#journal.orphans()) this.#left.add(ino);
  }

  #removeInode(ino: number): void {
    this.#contents.forget(ino);
    this.#inodes.applyFreeing((edit) => edit.remove(ino));
  }

  #removeOrphans(): void {
    for (const ino of this.#journal.orphans()) this.#removeInode(ino);
  }

  #reserved(ino: number, name: ByteString): Buffer | undefined {
    const inode = ino <= this.#inodes.lastBaseIno ? this.#inodes.base.inode(ino) : undefined;
    const row = this.#inodes.row(ino);
    if (inode === undefined || this.#bundle === undefined) return undefined;
    // Of a frozen layer, and in no bundle yet.
    if (isRegular(inode.mode) && inode.hash === undefined) return undefined;
    if (row !== undefined && isRegular(row.mode) && this.#contents.isChanged(row)) return undefined;
    return reservedXattr(name, inode.mode, name === XATTR_HASH ? inode.hash : undefined, this.#bundle);
  }

  #xattr(ino: number, name: ByteString): Buffer | undefined {
    const row = this.#inodes.row(ino);
    if (row?.ownXattrs) return this.#journal.xattr(ino, name);
    if (ino > this.#inodes.lastBaseIno) return undefined;
    return this.#inodes.unchanged(ino).xattrs?.get(name);
  }

  /** Makes the journal's attributes of `ino` those that count, and says that they change. */
  #ownXattrs(edit: Edit, ino: number): void {
    const row = edit.get(ino);
    if (!row.ownXattrs && ino <= this.#inodes.lastBaseIno) {
      for (const [name, value] of this.#inodes.unchanged(ino).xattrs ?? []) this.#journal.putXattr(ino, name, value);
    }
    edit.update(ino, { ownXattrs: true, ctimeNs: edit.now, changed: true });
  }
}

/** Says that names in `parent` changed; `links` more subdirectories are in it. */
function touch(edit: Edit, parent: number, links = 0): void {
  edit.update(parent, { mtimeNs: edit.now, ctimeNs: edit.now, mtimeSet: true, nlink: edit.get(parent).nlink + links });
}

/** Only user attributes are kept; those that Datamon makes are nobody's to change. */
function checkXattrName(name: ByteString): void {
  if (name.startsWith(XATTR_RESERVED)) throw new FsError("EPERM");
  if (!name.startsWith("user.") || name.length === "user.".length) throw new FsError("ENOTSUP");
  if (name.length > XATTR_NAME_MAX) throw new FsError("ERANGE");
}
