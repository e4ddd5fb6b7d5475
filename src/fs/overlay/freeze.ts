/** Freezing a layer: what is in it stays as it is, and another begins above it. */

import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  linkSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { faultPoint } from "../../cas/index.ts";
import { isRegular } from "../base.ts";
import { copyOf } from "./ahead.ts";
import type { InodeRow } from "./journal.ts";
import { Journal } from "./journal.ts";
import { FrozenBase, Layer } from "./layer.ts";
import {
  aheadDirectory,
  dataDirectory,
  draftDirectory,
  journalFile,
  layerDirectory,
  layerName,
  placeCopies,
  syncDirectory,
} from "./layers.ts";
import { seekFile, setModified } from "./libc.ts";
import type { Reserve } from "./reserve.ts";

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** Bytes copied at once. */
const PIECE = 4 * 1024 * 1024;

/**
 * Begins a layer above `top`, in the scratch `directory`. Its cost does not grow with what is in
 * `top`, but for the files that others write to (`DataFiles.share`): those go on to be written to
 * above, and leave a copy. Along with them come the inodes that no bundle can hold, because they
 * have no name any more or are sockets, pipes and devices.
 *
 * After a failure, and after a death anywhere in here, `top` is the topmost layer or frozen whole.
 */
export function layerAbove(directory: string, top: Layer, reserve: Reserve): Layer {
  const number = top.number + 1;
  const draft = draftDirectory(directory, number);
  const layer = layerDirectory(directory, number);
  rmSync(draft, { recursive: true, force: true });
  for (const part of [dataDirectory(draft), join(draft, "below")]) mkdirSync(part, { recursive: true, mode: 0o700 });
  let moved: number[];
  try {
    const journal = Journal.open(journalFile(draft), layerName(top.number), top.journal.lastIno);
    try {
      moved = carry(top, journal, draft, aheadDirectory(directory, number));
    } finally {
      journal.close();
    }
    for (const part of [dataDirectory(draft), draft]) syncDirectory(part);
    faultPoint("freeze");
    renameSync(draft, layer);
  } catch (error) {
    rmSync(draft, { recursive: true, force: true });
    throw error;
  }
  let journal: Journal | undefined;
  try {
    syncDirectory(join(directory, "layers"));
    faultPoint("freeze", "done");
    journal = Journal.open(journalFile(layer), layerName(top.number));
  } catch (error) {
    renameSync(layer, draft);
    rmSync(draft, { recursive: true, force: true });
    throw error;
  }
  rmSync(aheadDirectory(directory, number), { recursive: true, force: true });
  placeCopies(directory, number);
  const data = top.data.above(dataDirectory(layer), moved);
  for (const ino of moved) top.inodes.dataChanged(ino);
  const base = new FrozenBase(top);
  data.space?.begin(journalFile(layer), data.directory);
  return new Layer(layer, number, journal, data, base, reserve);
}

/** Brings to the new layer what goes on above; returns the inodes whose data files come along. */
function carry(top: Layer, journal: Journal, draft: string, ahead: string): number[] {
  const { inodes, data } = top;
  const moved: number[] = [];
  const move = (ino: number): boolean => {
    if (data.stat(ino) === undefined) return false;
    linkSync(data.path(ino), join(dataDirectory(draft), String(ino)));
    moved.push(ino);
    return true;
  };
  const orphans = top.journal.orphans();
  const specials = top.journal.specials();
  const request = top.journal.lastRequest();
  if (request !== undefined) journal.begin(request);
  journal.transaction(() => {
    for (const ino of orphans) {
      const row = inodes.row(ino);
      if (row === undefined) continue;
      for (const [name, value] of xattrsOf(top, row)) journal.putXattr(ino, name, value);
      const above = { ...row, ownXattrs: true };
      if (isRegular(row.mode) && row.baseSize > 0) above.baseSize = row.size;
      else move(ino);
      journal.putInode(above);
    }
    for (const row of specials) journal.putInode({ ...row, ownXattrs: true });
    for (const { parent, name, ino } of top.journal.namesOf(specials.map(({ ino }) => ino))) {
      journal.putDentry(parent, name, ino);
    }
    for (const ino of data.shared()) {
      const row = inodes.row(ino);
      if (row === undefined || row.nlink === 0 || data.stat(ino) === undefined) continue;
      const copied = copyOf(ahead, ino, data.path(ino));
      move(ino);
      copy(data.path(ino), join(draft, "below", String(ino)), copied);
      journal.putInode({ ...row, ownXattrs: false });
    }
  });
  return moved;
}

function xattrsOf({ inodes, journal }: Layer, row: InodeRow): Iterable<[Parameters<Journal["xattr"]>[1], Buffer]> {
  if (row.ownXattrs) return journal.xattrs(row.ino);
  return inodes.base.inode(row.ino)?.xattrs ?? [];
}

/**
 * Copies a file with its holes and its modification time; it shares the blocks where the file system
 * can. Where `copied` is there, it is the copy.
 */
function copy(from: string, to: string, copied: string): void {
  const { size, blocks, mtimeNs } = statSync(from, { bigint: true });
  if (existsSync(copied)) renameSync(copied, to);
  else if (blocks * 512n >= size) copyFileSync(from, to, constants.COPYFILE_FICLONE);
  else copyData(from, to);
  const fd = openSync(to, "r+");
  try {
    setModified(fd, mtimeNs);
  } finally {
    closeSync(fd);
  }
}

function copyData(from: string, to: string): void {
  const source = openSync(from, "r");
  const target = openSync(to, "wx", 0o600);
  try {
    const { size } = fstatSync(source);
    ftruncateSync(target, size);
    const piece = Buffer.allocUnsafe(PIECE);
    for (let at = 0; at < size; ) {
      const start = seekFile(source, at, SEEK_DATA);
      if (start === undefined) break;
      const end = seekFile(source, start, SEEK_HOLE) ?? size;
      for (at = start; at < end; ) {
        const count = readSync(source, piece, 0, Math.min(PIECE, end - at), at);
        if (count === 0) return;
        writeSync(target, piece, 0, count, at);
        at += count;
      }
    }
  } finally {
    closeSync(source);
    closeSync(target);
  }
}
