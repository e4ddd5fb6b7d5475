/** The inodes of an overlay: those of the base, under what the journal says of them. */

import type { Inode } from "../../meta/index.ts";
import { attrOfInode, type Base, isRegular, isSymlink } from "../base.ts";
import { nowNs } from "../clock.ts";
import { errnoName, FsError } from "../errno.ts";
import { type Attr, ROOT_INO } from "../namespace.ts";
import type { DataFiles, DataStat } from "./data.ts";
import type { InodeRow, Journal } from "./journal.ts";
import type { Reserve } from "./reserve.ts";

/** Inodes whose rows are kept in memory; some 300 bytes each. */
const HOT_INODES = 65536;

/** A set of inode numbers of the base, one bit each. */
class InoSet {
  readonly #bits: Uint8Array;

  constructor(last: number) {
    this.#bits = new Uint8Array((last >>> 3) + 1);
  }

  has(ino: number): boolean {
    return ((this.#bits[ino >>> 3] ?? 0) & (1 << (ino & 7))) !== 0;
  }

  add(ino: number): void {
    if (ino >>> 3 < this.#bits.length) this.#bits[ino >>> 3]! |= 1 << (ino & 7);
  }
}

/** What is known of an inode with a row; all of it can be learnt again. */
interface Hot {
  row: InodeRow;
  /** The data file; null where that has to be looked up. */
  data: DataStat | undefined | null;
  /** Its times were told since the row was changed. */
  told: boolean;
}

/** The clock of files goes in steps of this many nanoseconds at most (one of the kernel's ticks), and lags as much. */
export const FILE_CLOCK_STEP = 10_000_000n;

/** The changes of one call, gathered so that they are made together or not at all. */
export class Edit {
  readonly now = nowNs();
  readonly rows = new Map<number, InodeRow>();
  /** Rows of inodes that go; undefined where there is none and only the base's inode disappears. */
  readonly removed = new Map<number, InodeRow | undefined>();
  readonly #inodes: Inodes;
  readonly #read = new Map<number, InodeRow>();

  constructor(inodes: Inodes) {
    this.#inodes = inodes;
  }

  /** The inode as this edit leaves it so far; ENOENT. */
  get(ino: number): InodeRow {
    if (this.removed.has(ino)) throw new FsError("ENOENT");
    let row = this.rows.get(ino) ?? this.#read.get(ino);
    if (row === undefined) {
      row = this.#inodes.rowToChange(ino);
      this.#read.set(ino, row);
    }
    return row;
  }

  put(row: InodeRow): void {
    this.rows.set(row.ino, row);
  }

  update(ino: number, changes: Partial<InodeRow>): void {
    this.rows.set(ino, { ...this.get(ino), ...changes });
  }

  remove(ino: number): void {
    this.removed.set(ino, this.#inodes.row(ino));
    this.rows.delete(ino);
  }
}

/** Inode rows with write-through to the journal. */
export class Inodes {
  readonly journal: Journal;
  readonly data: DataFiles;
  #base: Base;
  /** Numbers up to this one are the base's. */
  readonly lastBaseIno: number;
  /** Inodes of the base that have a row, or had one and are gone. */
  readonly #changed: InoSet;
  readonly #hot = new Map<number, Hot>();
  readonly #reserve: Reserve | undefined;

  /** @param reserve what nothing is changed without; undefined for inodes that are only read */
  constructor(base: Base, journal: Journal, data: DataFiles, reserve: Reserve | undefined) {
    this.#reserve = reserve;
    this.#base = base;
    this.journal = journal;
    this.data = data;
    this.lastBaseIno = journal.lastBaseIno;
    this.#changed = new InoSet(this.lastBaseIno);
    for (const ino of journal.changedInos(this.lastBaseIno)) this.#changed.add(ino);
  }

  get base(): Base {
    return this.#base;
  }

  /** Puts another base, which has the same inodes by the same numbers, in the place of this one. */
  rebase(base: Base): void {
    this.#base = base;
  }

  /** True where the inode is not, or was not always, the base's as it was. */
  hasRow(ino: number): boolean {
    return ino > this.lastBaseIno || this.#changed.has(ino);
  }

  /** The inode's row, undefined where it is the base's as it was; ENOENT where there is no such inode any more. */
  row(ino: number): InodeRow | undefined {
    return this.#find(ino)?.row;
  }

  /** The base's inode where it shows unchanged. */
  unchanged(ino: number): Inode {
    const inode = this.base.inode(ino);
    if (inode === undefined) throw new FsError("ENOENT");
    return inode;
  }

  /** Type and permissions; ENOENT. */
  mode(ino: number): number {
    return (this.row(ino) ?? this.unchanged(ino)).mode;
  }

  attr(ino: number): Attr {
    const hot = this.#find(ino);
    if (hot === undefined) return attrOfInode(this.unchanged(ino));
    hot.told = true;
    return attrOfRow(hot.row, this.#data(hot));
  }

  /** The attributes of an inode that the base has just been asked for. */
  attrOver(inode: Inode): Attr {
    return this.#changed.has(inode.ino) ? this.attr(inode.ino) : attrOfInode(inode);
  }

  /** The data file of an inode that has a row. */
  dataStat(ino: number): DataStat | undefined {
    const hot = this.#find(ino);
    return hot === undefined ? undefined : this.#data(hot);
  }

  /**
   * True where a write that only the data file shows might leave the modification time that was told:
   * the row's is of a finer clock. Programs that look for changes would not see this one, unless the
   * file was empty.
   */
  hidesWrite(ino: number): boolean {
    const hot = this.#hot.get(ino);
    return hot?.told === true && hot.data !== undefined && nowNs() - hot.row.mtimeNs < FILE_CLOCK_STEP;
  }

  /** Says that the data file of `ino` was changed. */
  dataChanged(ino: number): void {
    const hot = this.#hot.get(ino);
    if (hot !== undefined) hot.data = null;
  }

  /** Says that `ino`, which was just made, has no data file. */
  noData(ino: number): void {
    const hot = this.#hot.get(ino);
    if (hot !== undefined) hot.data = undefined;
  }

  /**
   * The row to change: where there is none yet, the one that says what the base says. To be asked for
   * before anything is written to the inode's data file.
   */
  rowToChange(ino: number): InodeRow {
    const row = this.row(ino);
    if (row !== undefined) return row;
    const inode = this.unchanged(ino);
    // A data file here was left by a process that died before it came to the row.
    if (isRegular(inode.mode)) this.data.remove(ino);
    return {
      ino,
      mode: inode.mode,
      uid: inode.uid,
      gid: inode.gid,
      rdev: 0,
      nlink: inode.nlink,
      size: isRegular(inode.mode) ? inode.size : 0,
      baseSize: isRegular(inode.mode) ? inode.size : 0,
      mtimeNs: inode.mtimeNs,
      ctimeNs: inode.mtimeNs,
      atimeNs: undefined,
      mtimeSet: true,
      target: inode.target,
      parent: 0,
      trim: false,
      ownXattrs: false,
      changed: false,
    };
  }

  /** As `apply`, for changes that give space back: they are made on a full disk, too. */
  applyFreeing<T>(change: (edit: Edit) => T): T {
    try {
      for (;;) {
        try {
          return this.apply(change);
        } catch (error) {
          if (errnoName(error) !== "ENOSPC" || !this.#reserve?.release()) throw error;
        }
      }
    } finally {
      this.#reserve?.hold();
    }
  }

  /**
   * Makes the changes of `change` in one transaction. Data files of removed inodes go afterwards.
   * After a failure nothing has changed.
   */
  apply<T>(change: (edit: Edit) => T): T {
    const edit = new Edit(this);
    const result = this.journal.transaction(() => {
      const answer = change(edit);
      for (const row of edit.removed.values()) if (row !== undefined) this.journal.removeInode(row);
      for (const row of edit.rows.values()) this.journal.putInode(row);
      return answer;
    });
    for (const row of edit.rows.values()) this.#install(row);
    for (const [ino, row] of edit.removed) {
      this.#hot.delete(ino);
      this.#changed.add(ino);
      if (row !== undefined && isRegular(row.mode)) this.data.remove(ino);
    }
    return result;
  }

  #find(ino: number): Hot | undefined {
    const hot = this.#hot.get(ino);
    if (hot !== undefined) return hot;
    if (ino <= this.lastBaseIno && !this.#changed.has(ino)) return undefined;
    const row = this.journal.inode(ino);
    if (row === undefined) throw new FsError("ENOENT");
    this.#install(row.trim ? this.#trimmed(row) : row);
    return this.#hot.get(ino);
  }

  #install(row: InodeRow): void {
    const hot = this.#hot.get(row.ino);
    if (hot !== undefined) {
      hot.row = row;
      hot.data = null;
      hot.told = false;
      return;
    }
    if (this.#hot.size >= HOT_INODES) this.#coolDown();
    this.#hot.set(row.ino, { row, data: null, told: false });
    this.#changed.add(row.ino);
  }

  /** Forgets the older half: many at a time, since the first key of a map that others were deleted before is slow to find. */
  #coolDown(): void {
    let excess = HOT_INODES / 2;
    for (const ino of this.#hot.keys()) {
      if (excess-- <= 0) return;
      this.#hot.delete(ino);
    }
  }

  #data(hot: Hot): DataStat | undefined {
    // What others write they do not tell.
    if (hot.data === null || this.data.isShared(hot.row.ino))
      hot.data = isRegular(hot.row.mode) ? this.data.stat(hot.row.ino) : undefined;
    return hot.data;
  }

  /** Ends a truncation that a process died in. */
  #trimmed(row: InodeRow): InodeRow {
    const size = row.baseSize > 0 ? row.size : 0;
    if ((this.data.stat(row.ino)?.size ?? 0) > size) this.data.truncate(row.ino, size);
    const trimmed = { ...row, trim: false };
    this.journal.putInode(trimmed);
    return trimmed;
  }
}

/** The size of a file with this row and data file. */
export function sizeOf(row: InodeRow, data: DataStat | undefined): number {
  if (isSymlink(row.mode)) return row.target?.length ?? 0;
  return row.baseSize > 0 ? row.size : (data?.size ?? 0);
}

/**
 * Writes are not journaled one by one: unless the modification time was set, it is the data file's
 * or, where that is older for its clock is coarser, the row's.
 */
function attrOfRow(row: InodeRow, data: DataStat | undefined): Attr {
  const size = sizeOf(row, data);
  const written = data?.mtimeNs ?? 0n;
  const mtimeNs = row.mtimeSet || row.mtimeNs > written ? row.mtimeNs : written;
  return {
    ino: row.ino,
    mode: row.mode,
    uid: row.uid,
    gid: row.gid,
    size,
    nlink: row.nlink,
    mtimeNs,
    ctimeNs: data !== undefined && data.ctimeNs > row.ctimeNs ? data.ctimeNs : row.ctimeNs,
    atimeNs: row.atimeNs ?? mtimeNs,
    blocks: !isRegular(row.mode) ? 0 : row.baseSize > 0 ? Math.ceil(size / 512) : (data?.blocks ?? 0),
    rdev: row.rdev,
  };
}

/** The root of an empty base, as it is journaled when the scratch is made. */
export function firstRoot(base: Base): InodeRow {
  const inode = base.inode(ROOT_INO)!;
  const now = nowNs();
  return {
    ino: ROOT_INO,
    mode: inode.mode,
    uid: inode.uid,
    gid: inode.gid,
    rdev: 0,
    nlink: inode.nlink,
    size: 0,
    baseSize: 0,
    mtimeNs: now,
    ctimeNs: now,
    atimeNs: undefined,
    mtimeSet: true,
    target: undefined,
    parent: 0,
    trim: false,
    ownXattrs: false,
    changed: false,
  };
}
