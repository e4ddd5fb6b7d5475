/**
 * What the files of an overlay hold. A file is in one of two forms. Where its row's `baseSize` is 0,
 * its data file is its content, size and all, and writes to it are no business of the journal. Else
 * the content is the base's up to `baseSize`, zeros from there to `size`, and over both the ranges of
 * the journal, whose bytes are in the data file at the same offsets; outside the ranges the data file
 * has only holes. Data is written before the range that says so, and a range is removed before its data.
 */

import type { Segment } from "../../cache/index.ts";
import { addZeros, isDirectory, isRegular } from "../base.ts";
import { nowNs } from "../clock.ts";
import { FsError } from "../errno.ts";
import { type Caller, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE } from "../namespace.ts";
import { type Edit, type Inodes, sizeOf } from "./inodes.ts";
import type { InodeRow, Range } from "./journal.ts";

const S_ISUID = 0o4000;
const S_ISGID = 0o2000;
const S_IXGRP = 0o0010;

/** Files whose last written range is remembered. */
const REMEMBERED = 1024;

/** `mode` after somebody without special rights changed the file: no setuid, and no setgid that grants a group. */
export function withoutSetId(mode: number): number {
  return mode & ~(S_ISUID | ((mode & S_IXGRP) !== 0 ? S_ISGID : 0));
}

/** Reads, writes and cuts the content of regular files. */
export class Contents {
  readonly #inodes: Inodes;
  /** The range that was last written of some files, to know a rewrite of it without asking the journal. */
  readonly #written = new Map<number, Range>();

  constructor(inodes: Inodes) {
    this.#inodes = inodes;
  }

  plan(ino: number, offset: number, length: number): Segment[] {
    const row = this.#inodes.row(ino);
    const inode = row === undefined ? this.#inodes.unchanged(ino) : undefined;
    checkRegular((row ?? inode!).mode);
    const plan: Segment[] = [];
    if (row === undefined) {
      const end = Math.min(offset + length, inode!.size);
      if (offset < end) this.#inodes.base.plan(inode!, offset, end, plan);
      return plan;
    }
    const data = this.#inodes.dataStat(ino);
    const end = Math.min(offset + length, sizeOf(row, data));
    if (offset >= end) return plan;
    if (row.baseSize === 0) {
      this.#planData(ino, offset, end, data!.size, plan);
      return plan;
    }
    let at = offset;
    for (const range of this.#inodes.journal.ranges(ino, offset, end)) {
      const start = Math.max(range.start, at);
      const stop = Math.min(range.end, end);
      if (stop <= start) continue;
      this.#planBelow(row, at, start, plan);
      this.#planData(ino, start, stop, data?.size ?? 0, plan);
      at = stop;
    }
    this.#planBelow(row, at, end, plan);
    return plan;
  }

  write(ino: number, offset: number, data: Buffer, caller: Caller | undefined): number {
    const row = this.#inodes.row(ino);
    checkRegular(row?.mode ?? this.#inodes.unchanged(ino).mode);
    if (data.length === 0) return 0;
    const mode = row === undefined || caller === undefined || caller.uid === 0 ? row?.mode : withoutSetId(row.mode);
    const plain = row?.changed && !row.mtimeSet && mode === row.mode && !this.#inodes.hidesWrite(ino);
    if (plain && this.#isJournaled(row, offset, offset + data.length)) {
      const done = this.#inodes.data.write(ino, offset, data);
      this.#inodes.dataChanged(ino);
      return done;
    }
    let covered: Range | undefined;
    const done = this.#inodes.apply((edit) => {
      const before = edit.get(ino);
      const taken = this.#inodes.data.write(ino, offset, data);
      this.#inodes.dataChanged(ino);
      if (caller !== undefined && caller.uid !== 0) edit.update(ino, { mode: withoutSetId(before.mode) });
      this.#modified(edit, ino);
      if (before.baseSize > 0) covered = this.#cover(edit, ino, offset, offset + taken);
      return taken;
    });
    this.forget(ino);
    if (covered !== undefined) this.#remember(ino, covered);
    return done;
  }

  /** Sets the size; what it grows by is zeros. */
  truncate(ino: number, size: number): void {
    this.#written.delete(ino);
    const row = this.#inodes.row(ino);
    const mode = row?.mode ?? this.#inodes.unchanged(ino).mode;
    checkRegular(mode);
    const baseSize = row?.baseSize ?? this.#inodes.unchanged(ino).size;
    if (baseSize === 0) {
      this.#inodes.applyFreeing((edit) => {
        this.#modified(edit, ino);
        if (size > 0 || this.#inodes.data.stat(ino) !== undefined) this.#inodes.data.truncate(ino, size);
      });
      return;
    }
    const data = row === undefined ? undefined : this.#inodes.dataStat(ino);
    const trim = (data?.size ?? 0) > size;
    this.#inodes.applyFreeing((edit) => {
      const before = edit.get(ino);
      this.#modified(edit, ino);
      edit.update(ino, { size, baseSize: Math.min(before.baseSize, size), trim });
      this.#inodes.journal.cutRanges(ino, size);
    });
    if (!trim) return;
    this.#inodes.data.truncate(ino, size);
    this.#inodes.dataChanged(ino);
    // Without a base writes go unjournaled: the journal must not ask for this cut once more after them.
    this.#inodes.applyFreeing((edit) => edit.update(ino, { trim: false }));
  }

  fallocate(ino: number, mode: number, offset: number, length: number): void {
    checkRegular(this.#inodes.mode(ino));
    if (offset < 0 || length <= 0) throw new FsError("EINVAL");
    if (!Number.isSafeInteger(offset + length)) throw new FsError("EFBIG");
    const keep = (mode & FALLOC_KEEP_SIZE) !== 0;
    const kind = mode & ~FALLOC_KEEP_SIZE;
    if (kind !== 0 && kind !== FALLOC_ZERO_RANGE && !(kind === FALLOC_PUNCH_HOLE && keep)) throw new FsError("ENOTSUP");
    const end = offset + length;
    this.#inodes.apply((edit) => {
      const row = edit.get(ino);
      const size = sizeOf(row, this.#inodes.data.stat(ino));
      this.#modified(edit, ino);
      if (kind === 0) this.#inodes.data.allocate(ino, FALLOC_KEEP_SIZE, offset, length);
      else this.#zero(edit, row, offset, Math.min(end, size));
      this.#inodes.dataChanged(ino);
      if (keep || end <= size) return;
      if (edit.get(ino).baseSize > 0) edit.update(ino, { size: end });
      else this.#inodes.data.truncate(ino, end);
    });
    this.forget(ino);
  }

  /** True where the content of a file with a row is not the base's. */
  isChanged(row: InodeRow): boolean {
    const size = row.ino <= this.#inodes.lastBaseIno ? this.#inodes.unchanged(row.ino).size : undefined;
    if (size === undefined) return true;
    if (row.baseSize === 0) return size !== 0 || (this.#inodes.dataStat(row.ino)?.size ?? 0) !== 0;
    return row.size !== size || row.baseSize !== size || this.#inodes.journal.hasRanges(row.ino);
  }

  /** Forgets what it remembers of an inode that is gone. */
  forget(ino: number): void {
    this.#written.delete(ino);
  }

  /** True where a write of [start, end) changes nothing that the journal keeps. */
  #isJournaled(row: InodeRow, start: number, end: number): boolean {
    if (row.baseSize === 0) return true;
    const known = this.#written.get(row.ino);
    return known !== undefined && known.start <= start && end <= known.end;
  }

  #modified(edit: Edit, ino: number): void {
    const now = nowNs();
    edit.update(ino, { mtimeNs: now, ctimeNs: now, mtimeSet: false, changed: true });
  }

  #remember(ino: number, range: Range): void {
    if (this.#written.size >= REMEMBERED) this.#written.clear();
    this.#written.set(ino, range);
  }

  /** Journals that [start, end) of a file with a base is in the data file; returns the range, where the base still shows. */
  #cover(edit: Edit, ino: number, start: number, end: number): Range | undefined {
    const { journal, data } = this.#inodes;
    const row = edit.get(ino);
    const range = journal.addRange(ino, start, end);
    const size = Math.max(row.size, end);
    if (range.start === 0 && range.end >= row.baseSize) {
      // Nothing of the base shows any more: from here on the data file is the content.
      if ((data.stat(ino)?.size ?? 0) < size) data.truncate(ino, size);
      journal.cutRanges(ino, 0);
      edit.update(ino, { baseSize: 0 });
      return undefined;
    }
    edit.update(ino, { size });
    return range;
  }

  #zero(edit: Edit, row: InodeRow, start: number, end: number): void {
    if (start >= end) return;
    const { data } = this.#inodes;
    if (data.stat(row.ino) !== undefined) {
      data.allocate(row.ino, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, end - start);
    }
    if (row.baseSize > 0) this.#cover(edit, row.ino, start, end);
  }

  #planData(ino: number, start: number, end: number, size: number, plan: Segment[]): void {
    const stop = Math.min(end, Math.max(size, start));
    if (stop > start) {
      plan.push({ kind: "file", fd: this.#inodes.data.descriptor(ino), offset: start, length: stop - start });
    }
    addZeros(plan, end - stop);
  }

  #planBelow(row: InodeRow, start: number, end: number, plan: Segment[]): void {
    const shown = Math.min(end, row.baseSize);
    if (start < shown) this.#inodes.base.plan(this.#inodes.unchanged(row.ino), start, shown, plan);
    addZeros(plan, end - Math.max(start, shown));
  }
}

function checkRegular(mode: number): void {
  if (isRegular(mode)) return;
  throw new FsError(isDirectory(mode) ? "EISDIR" : "EINVAL");
}
