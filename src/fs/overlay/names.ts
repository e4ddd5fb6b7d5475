/** The directory entries of an overlay: those of the base, under those of the journal. */

import type { ByteString } from "../../cas/index.ts";
import type { Dentry, Inode } from "../../meta/index.ts";
import { checkName, isDirectory } from "../base.ts";
import { FsError } from "../errno.ts";
import { type Entry, ROOT_INO } from "../namespace.ts";
import type { Edit, Inodes } from "./inodes.ts";
import type { DentryRow } from "./journal.ts";

/** Entries that are read at a time when base and journal are merged. */
const PAGE_MIN = 128;
const PAGE_MAX = 4096;

/** An entry that was found: its inode's number, and its inode where the base had it at hand. */
export interface Found {
  readonly ino: number;
  readonly inode?: Inode;
}

/** Looks up, lists and changes names. Changes are made within an edit. */
export class Names {
  readonly #inodes: Inodes;
  /** Directories of the base that have entries in the journal. */
  readonly #touched: Set<number>;

  constructor(inodes: Inodes) {
    this.#inodes = inodes;
    this.#touched = new Set();
    for (let after = 0; ; ) {
      const page = inodes.journal.directories(after, PAGE_MAX);
      for (const ino of page) if (ino <= inodes.lastBaseIno) this.#touched.add(ino);
      if (page.length < PAGE_MAX) break;
      after = page[page.length - 1]!;
    }
  }

  /** ENOENT, ENOTDIR, ENAMETOOLONG. */
  lookup(parent: number, name: ByteString): Found {
    checkName(name);
    const found = this.find(parent, name);
    if (found !== undefined) return found;
    this.directory(parent);
    throw new FsError("ENOENT");
  }

  /** Throws ENOTDIR for anything but a directory. */
  directory(ino: number): void {
    if (!isDirectory(this.#inodes.mode(ino))) throw new FsError("ENOTDIR");
  }

  /** Throws where `name` cannot be made in `parent`: it is there, or `parent` is no directory or was removed. */
  free(edit: Edit, parent: number, name: ByteString): void {
    checkName(name);
    const row = edit.get(parent);
    if (!isDirectory(row.mode)) throw new FsError("ENOTDIR");
    if (row.nlink === 0) throw new FsError("ENOENT");
    if (this.find(parent, name) !== undefined) throw new FsError("EEXIST");
  }

  /** Makes `name` lead to `ino`, whatever it led to. */
  set(parent: number, name: ByteString, ino: number): void {
    if (this.#inBase(parent, name)?.ino === ino) {
      this.#inodes.journal.removeDentry(parent, name);
      return;
    }
    this.#inodes.journal.putDentry(parent, name, ino);
    this.#touch(parent);
  }

  /** Removes a name that is there. */
  remove(parent: number, name: ByteString): void {
    if (this.#inBase(parent, name) === undefined) {
      this.#inodes.journal.removeDentry(parent, name);
      return;
    }
    this.#inodes.journal.putDentry(parent, name, undefined);
    this.#touch(parent);
  }

  isEmpty(ino: number): boolean {
    return this.#merge(ino, undefined, PAGE_MIN).next().done === true;
  }

  readdir(ino: number, after: ByteString | undefined, limit: number): Entry[] {
    this.directory(ino);
    const entries: Entry[] = [];
    if (limit <= 0) return entries;
    for (const { name, found } of this.#merge(ino, after, Math.min(Math.max(limit, PAGE_MIN), PAGE_MAX))) {
      const attr = found.inode === undefined ? this.#inodes.attr(found.ino) : this.#inodes.attrOver(found.inode);
      entries.push({ name, attr });
      if (entries.length >= limit) break;
    }
    return entries;
  }

  /** As `readdir`, of what may be no directory and without attributes. */
  list(ino: number, after: ByteString | undefined, limit: number): { name: ByteString; found: Found }[] {
    const entries: { name: ByteString; found: Found }[] = [];
    for (const entry of this.#merge(ino, after, Math.min(Math.max(limit, PAGE_MIN), PAGE_MAX))) {
      entries.push(entry);
      if (entries.length >= limit) break;
    }
    return entries;
  }

  /** The directory that holds the directory `ino`. */
  parent(ino: number): number {
    if (ino === ROOT_INO) return ino;
    const moved = this.#inodes.row(ino)?.parent ?? 0;
    if (moved !== 0) return moved;
    const parent = ino <= this.#inodes.lastBaseIno ? this.#inodes.base.parent(ino) : undefined;
    if (parent === undefined) throw new FsError("ENOENT");
    return parent;
  }

  /** True where `ino` is `ancestor` or lies below it. */
  isBelow(ino: number, ancestor: number): boolean {
    for (let at = ino; ; at = this.parent(at)) {
      if (at === ancestor) return true;
      if (at === ROOT_INO) return false;
    }
  }

  #isBase(parent: number): boolean {
    return parent <= this.#inodes.lastBaseIno;
  }

  #touch(parent: number): void {
    if (this.#isBase(parent)) this.#touched.add(parent);
  }

  #inBase(parent: number, name: ByteString): Inode | undefined {
    return this.#isBase(parent) ? this.#inodes.base.lookup(parent, name) : undefined;
  }

  /** What the name leads to; undefined where it leads nowhere. */
  find(parent: number, name: ByteString): Found | undefined {
    if (!this.#isBase(parent) || this.#touched.has(parent)) {
      const own = this.#inodes.journal.dentry(parent, name);
      if (own !== undefined) return own.ino === undefined ? undefined : { ino: own.ino };
    }
    const inode = this.#inBase(parent, name);
    return inode && { ino: inode.ino, inode };
  }

  /** The entries after `after`, read in pages of `page`. */
  *#merge(
    parent: number,
    after: ByteString | undefined,
    page: number,
  ): Generator<{ name: ByteString; found: Found }, undefined> {
    const isBase = this.#isBase(parent);
    const below = new Pages<Dentry>(after, page, (from) =>
      isBase ? this.#inodes.base.readdir(parent, from, page) : [],
    );
    const own = new Pages<DentryRow>(after, page, (from) =>
      !isBase || this.#touched.has(parent) ? this.#inodes.journal.dentries(parent, from, page) : [],
    );
    for (;;) {
      const base = below.peek();
      const changed = own.peek();
      if (changed !== undefined && (base === undefined || changed.name <= base.name)) {
        own.skip();
        if (base?.name === changed.name) below.skip();
        if (changed.ino !== undefined) yield { name: changed.name, found: { ino: changed.ino } };
      } else if (base !== undefined) {
        below.skip();
        yield { name: base.name, found: { ino: base.inode.ino, inode: base.inode } };
      } else return;
    }
  }
}

/** A listing that is fetched page by page. */
class Pages<T extends { readonly name: ByteString }> {
  readonly #size: number;
  readonly #fetch: (after: ByteString | undefined) => T[];
  #page: T[];
  #at = 0;

  constructor(after: ByteString | undefined, size: number, fetch: (after: ByteString | undefined) => T[]) {
    this.#size = size;
    this.#fetch = fetch;
    this.#page = fetch(after);
  }

  peek(): T | undefined {
    if (this.#at === this.#page.length && this.#page.length === this.#size) {
      this.#page = this.#fetch(this.#page[this.#at - 1]!.name);
      this.#at = 0;
    }
    return this.#page[this.#at];
  }

  skip(): void {
    this.#at++;
  }
}
