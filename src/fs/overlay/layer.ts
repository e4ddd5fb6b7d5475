/** One layer of a scratch, opened: what differs from the tree below it. */

import type { Segment } from "../../cache/index.ts";
import type { ByteString } from "../../cas/index.ts";
import type { Dentry, Inode } from "../../meta/index.ts";
import { addZeros, type Base, CatalogBase, isRegular } from "../base.ts";
import { FsError } from "../errno.ts";
import { ROOT_INO } from "../namespace.ts";
import { Contents } from "./contents.ts";
import { DataFiles } from "./data.ts";
import { EmptyBase } from "./empty.ts";
import { firstRoot, Inodes } from "./inodes.ts";
import { type InodeRow, Journal } from "./journal.ts";
import { baseOfLayer, dataDirectory, journalFile, layerDirectory } from "./layers.ts";
import { isKept } from "./leftovers.ts";
import { type Found, Names } from "./names.ts";
import type { Reserve } from "./reserve.ts";

/** The parts of a layer. */
export class Layer {
  readonly number: number;
  readonly directory: string;
  readonly journal: Journal;
  readonly data: DataFiles;
  readonly inodes: Inodes;
  readonly names: Names;
  readonly contents: Contents;

  constructor(directory: string, number: number, journal: Journal, data: DataFiles, base: Base, reserve?: Reserve) {
    this.number = number;
    this.directory = directory;
    this.journal = journal;
    this.data = data;
    this.inodes = new Inodes(base, journal, data, reserve);
    this.names = new Names(this.inodes);
    this.contents = new Contents(this.inodes);
  }

  /** What lies below, which changes when a bundle takes the place of frozen layers. */
  get base(): Base {
    return this.inodes.base;
  }

  /** Closes this layer, and nothing of what is below it. */
  close(): void {
    this.data.close();
    this.journal.close();
  }
}

/** What a catalog says, or nothing where there is none. */
export function baseFrom(catalog: string | undefined): Base {
  return catalog === undefined ? new EmptyBase() : new CatalogBase(catalog);
}

/** Opens the journal of a layer over `base`, which is called `name`. */
export function openJournal(directory: string, name: string | undefined, base: Base): Journal {
  const journal = Journal.open(journalFile(directory), name, base.maxIno());
  if (base instanceof EmptyBase && journal.inode(ROOT_INO) === undefined) journal.putInode(firstRoot(base));
  return journal;
}

/**
 * Opens a frozen layer to be read, over the catalog of the bundle that what is below it became. It
 * may be open elsewhere: nothing changes it any more.
 */
export function openFrozen(scratch: string, number: number, catalog: string | undefined): Layer {
  const directory = layerDirectory(scratch, number);
  const base = baseFrom(catalog);
  try {
    const journal = openJournal(directory, baseOfLayer(scratch, number), base);
    return new Layer(directory, number, journal, new DataFiles(dataDirectory(directory)), base);
  } catch (error) {
    base.close();
    throw error;
  }
}

/**
 * A frozen layer as what another stands on: the tree that its bundle will have, by the same numbers.
 * What no bundle can hold is not shown, except to who has it open.
 */
export class FrozenBase implements Base {
  readonly layer: Layer;

  constructor(layer: Layer) {
    this.layer = layer;
  }

  inode(ino: number): Inode | undefined {
    const row = this.#row(ino);
    if (row === undefined || row === "gone") return row === "gone" ? undefined : this.layer.base.inode(ino);
    return isKept(row.mode) ? this.#inodeOf(row) : undefined;
  }

  lookup(parent: number, name: ByteString): Inode | undefined {
    const found = this.layer.names.find(parent, name);
    return found && this.#found(found);
  }

  readdir(parent: number, after: ByteString | undefined, limit: number): Dentry[] {
    const entries: Dentry[] = [];
    for (let from = after; entries.length < limit; ) {
      const page = this.layer.names.list(parent, from, limit - entries.length);
      for (const { name, found } of page) {
        const inode = this.#found(found);
        if (inode !== undefined) entries.push({ name, inode });
        from = name;
      }
      if (page.length === 0) break;
    }
    return entries;
  }

  parent(ino: number): number | undefined {
    const row = this.#row(ino);
    if (row === "gone") return undefined;
    return row?.parent ? row.parent : this.layer.base.parent(ino);
  }

  plan(file: Inode, start: number, end: number, plan: Segment[]): void {
    let at = start;
    for (const segment of this.layer.contents.plan(file.ino, start, end - start)) {
      plan.push(segment);
      at += segment.length;
    }
    addZeros(plan, end - at);
  }

  maxIno(): number {
    return this.layer.journal.lastIno;
  }

  totals(): { inodes: number; bytes: number } {
    return this.layer.base.totals();
  }

  close(): void {
    this.layer.close();
    this.layer.base.close();
  }

  #row(ino: number): InodeRow | "gone" | undefined {
    try {
      return this.layer.inodes.row(ino);
    } catch (error) {
      if (error instanceof FsError && error.errno === "ENOENT") return "gone";
      throw error;
    }
  }

  #found({ ino, inode }: Found): Inode | undefined {
    if (inode !== undefined && !this.layer.inodes.hasRow(ino)) return inode;
    return this.inode(ino);
  }

  #inodeOf(row: InodeRow): Inode {
    const { inodes, contents, journal } = this.layer;
    const { ino } = row;
    const below = inodes.base.inode(ino);
    const { mode, uid, gid, size, nlink, mtimeNs } = inodes.attr(ino);
    const xattrs = row.ownXattrs ? journal.xattrs(ino) : below?.xattrs;
    const unchanged = isRegular(mode) && below !== undefined && !contents.isChanged(row);
    return {
      ino,
      mode,
      uid,
      gid,
      mtimeNs,
      size,
      nlink,
      hash: unchanged ? below.hash : undefined,
      target: row.target,
      ...(xattrs !== undefined && xattrs.size > 0 && { xattrs }),
    };
  }
}
