/** The catalog of a bundle to come: the base's, changed where an overlay differs from it. */

import type { Fetcher } from "../cache/index.ts";
import {
  type ByteString,
  bytesOf,
  display,
  type Extent,
  type FileContent,
  type Hash,
  HashIndex,
  hashOf,
  LARGE_FILE,
  type Source,
} from "../cas/index.ts";
import type { Attributes, Catalog, CatalogWriter, Inode } from "../meta/index.ts";
import { isDirectory, isRegular, isSymlink, S_IFMT } from "./base.ts";
import { ROOT_INO } from "./namespace.ts";
import type { InodeRow } from "./overlay/journal.ts";
import type { Layer } from "./overlay/layer.ts";
import { isKept } from "./overlay/leftovers.ts";

const PAGE = 1000;

/** An index of a base's files is made where at least one in so many of them, as it were, changed. */
const WORTH_INDEXING = 16;

const NOTHING: FileContent = { hash: hashOf(Buffer.alloc(0)), size: 0, extents: [] };

/** What to do with the content of a file once it is stored. */
export type Placing =
  | {
      readonly kind: "new";
      readonly parent: number;
      readonly name: ByteString;
      readonly ino: number;
      readonly attributes: Attributes;
    }
  | { readonly kind: "changed"; readonly ino: number };

/** A directory whose entries in the journal are to be added. Numbers may differ for directories that are new. */
interface Directory {
  readonly overlayIno: number;
  readonly ino: number;
}

/**
 * Brings the differences of a layer into a catalog. Inodes of the base keep their numbers; new ones
 * get theirs directory by directory, in path order, so that readers who go through the tree find
 * what follows, or keep the layer's where another layer stands on it. All of `sources` is to be consumed, each
 * content given to `placed`, and then `finish` called.
 */
export class TreeEdit {
  readonly #layer: Layer;
  readonly #base: Catalog | undefined;
  readonly #writer: CatalogWriter;
  readonly #fetcher: Fetcher;
  readonly #warn: (text: string) => void;
  readonly #lastBaseIno: number;
  /** Catalog numbers of new files with several names, by overlay number. */
  readonly #linked = new Map<number, number>();
  /** Further names of those, added when they are all there. */
  readonly #links: { parent: number; name: ByteString; ino: number }[] = [];
  readonly #keepNumbers: boolean;
  #changesRoot = false;
  #changesNames = false;

  constructor(
    layer: Layer,
    base: Catalog | undefined,
    writer: CatalogWriter,
    fetcher: Fetcher,
    { keepNumbers, warn = () => {} }: { keepNumbers: boolean; warn?: ((text: string) => void) | undefined },
  ) {
    this.#keepNumbers = keepNumbers;
    this.#layer = layer;
    this.#base = base;
    this.#writer = writer;
    this.#fetcher = fetcher;
    this.#warn = warn;
    this.#lastBaseIno = layer.inodes.lastBaseIno;
  }

  /**
   * True once `sources` is through where the root's mode, owner or extended attributes differ from the
   * base's, which no tree hash shows. Its time alone also moves when entries come and go again.
   */
  get changesRoot(): boolean {
    return this.#changesRoot;
  }

  /** True once `sources` is through where a name leads to another inode than in the base, be it an equal one. */
  get changesNames(): boolean {
    return this.#changesNames;
  }

  /** Makes every change that needs no content, and gives the files whose content is to be stored. */
  async *sources(): AsyncGenerator<{ tag: Placing; source: Source }> {
    this.#removeNames();
    yield* this.#changedInodes();
    for (const ino of this.#changedDirectories()) yield* this.#addBelow({ overlayIno: ino, ino });
  }

  /** The content of a file is stored. */
  placed(tag: Placing, content: FileContent): void {
    if (tag.kind === "new") this.#writer.addFile(tag.parent, tag.name, tag.ino, tag.attributes, content);
    else if (content.hash !== this.#base?.inode(tag.ino)?.hash) this.#writer.setContent(tag.ino, content);
  }

  /** To be called when every file is placed. */
  finish(): void {
    for (const { parent, name, ino } of this.#links) this.#writer.link(parent, name, ino);
  }

  /** Directories of the base with entries in the journal. */
  *#changedDirectories(): Generator<number> {
    for (let after = 0; ; ) {
      const page = this.#layer.inodes.journal.directories(after, PAGE);
      for (const ino of page) {
        if (ino > this.#lastBaseIno) return;
        yield ino;
      }
      if (page.length < PAGE) return;
      after = page[page.length - 1]!;
    }
  }

  *#entries(parent: number): Generator<{ name: ByteString; ino: number | undefined }> {
    for (let after: ByteString | undefined; ; ) {
      const page = this.#layer.inodes.journal.dentries(parent, after, PAGE);
      yield* page;
      if (page.length < PAGE) return;
      after = page[page.length - 1]!.name;
    }
  }

  /** Removes what the base has under names that lead elsewhere now: first of all, so that anything can be put there. */
  #removeNames(): void {
    for (const parent of this.#changedDirectories()) {
      for (const { name } of this.#entries(parent)) {
        if (this.#base?.lookup(parent, name) === undefined) continue;
        this.#writer.unlink(parent, name);
        this.#changesNames = true;
      }
    }
  }

  async *#changedInodes(): AsyncGenerator<{ tag: Placing; source: Source }> {
    for (const row of this.#layer.inodes.journal.inodes(ROOT_INO, this.#lastBaseIno)) {
      const inode = this.#base?.inode(row.ino);
      // Open without a name, or of a kind that no bundle holds.
      if (row.nlink === 0 || (inode === undefined && row.ino !== ROOT_INO)) continue;
      const attributes = this.#attributes(row);
      if (inode === undefined || !sameAttributes(attributes, inode)) this.#writer.setAttributes(row.ino, attributes);
      if (row.ino === ROOT_INO && inode !== undefined) {
        this.#changesRoot = !sameAttributes({ ...attributes, mtimeNs: inode.mtimeNs }, inode);
      }
      if (!isRegular(row.mode) || !this.#layer.contents.isChanged(row)) continue;
      yield { tag: { kind: "changed", ino: row.ino }, source: await this.#source(row) };
    }
  }

  /** Adds the entries of a directory that the journal has, and everything below those that are new. */
  async *#addBelow(top: Directory): AsyncGenerator<{ tag: Placing; source: Source }> {
    const stack = [top];
    for (let directory = stack.pop(); directory !== undefined; directory = stack.pop()) {
      const subdirectories: Directory[] = [];
      const { overlayIno, ino: parent } = directory;
      const count = this.#layer.inodes.journal.countDentries(overlayIno, this.#lastBaseIno);
      let next = count === 0 || this.#keepNumbers ? 0 : this.#writer.reserve(count);
      for (const { name, ino } of this.#entries(overlayIno)) {
        if (ino === undefined) continue;
        if (ino <= this.#lastBaseIno && this.#base?.inode(ino) !== undefined) {
          this.#changesNames = true;
          this.#writer.link(parent, name, ino);
          continue;
        }
        const known = this.#linked.get(ino);
        if (known !== undefined) {
          this.#links.push({ parent, name, ino: known });
          continue;
        }
        const row = this.#layer.inodes.row(ino)!;
        if (!isKept(row.mode)) {
          this.#warn(`${display(name)} is ${typeName(row.mode)} and is not kept`);
          continue;
        }
        this.#changesNames = true;
        if (this.#keepNumbers) next = ino;
        const attributes = this.#attributes(row);
        if (isDirectory(row.mode)) {
          this.#writer.addDirectory(parent, name, next, attributes);
          subdirectories.push({ overlayIno: ino, ino: next });
        } else if (isSymlink(row.mode)) {
          this.#writer.addSymlink(parent, name, next, attributes, row.target!);
        } else {
          const tag: Placing = { kind: "new", parent, name, ino: next, attributes };
          yield { tag, source: await this.#source(row) };
        }
        if (row.nlink > 1 && !isDirectory(row.mode)) this.#linked.set(ino, next);
        next++;
      }
      stack.push(...subdirectories.reverse());
    }
  }

  #attributes(row: InodeRow): Attributes {
    const { mode, uid, gid, mtimeNs } = this.#layer.inodes.attr(row.ino);
    const xattrs = row.ownXattrs ? this.#layer.inodes.journal.xattrs(row.ino) : this.#base?.inode(row.ino)?.xattrs;
    return { mode, uid, gid, mtimeNs, ...(xattrs !== undefined && xattrs.size > 0 && { xattrs }) };
  }

  /** Where the content of a file with a row is to be read. */
  async #source(row: InodeRow): Promise<Source> {
    const { inodes } = this.#layer;
    const { ino, baseSize } = row;
    const size = inodes.attr(ino).size;
    if (size === 0) return { kind: "bytes", bytes: Buffer.alloc(0) };
    if (baseSize === 0) return { kind: "path", path: bytesOf(inodes.data.path(ino)), size };
    if (size < LARGE_FILE) return { kind: "bytes", bytes: await this.#read(ino, 0, size) };
    const base = this.#base!.content(ino);
    // A small file's extents are slices of groups: nothing of it can be taken as a chunk.
    const whole = base.size < LARGE_FILE;
    return {
      kind: "patched",
      size,
      base: whole ? NOTHING : base,
      dirty: whole
        ? []
        : [...inodes.journal.ranges(ino, 0, size), { start: baseSize, end: size }].map(({ start, end }) => ({
            start,
            length: end - start,
          })),
      read: (offset, length) => this.#read(ino, offset, length),
    };
  }

  async #read(ino: number, offset: number, length: number): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(length);
    const count = await this.#fetcher.read(this.#layer.contents.plan(ino, offset, length), bytes);
    return bytes.subarray(0, count);
  }
}

/**
 * How to find content in the base by its hash; undefined where so little changed that looking
 * through all of the base costs more than it can save.
 */
export function reuseOf(
  base: Catalog | undefined,
  changes: number,
): ((hash: Hash, size: number) => readonly Extent[] | undefined) | undefined {
  if (base === undefined || changes * WORTH_INDEXING < base.summary().files) return undefined;
  let index: HashIndex | undefined;
  return (hash, size) => {
    if (index === undefined) {
      index = new HashIndex(base.summary().files);
      for (const file of base.contentHashes()) index.add(file.hash, file.ino);
    }
    for (const ino of index.candidates(hash)) {
      const inode = base.inode(ino);
      if (inode?.hash === hash && inode.size === size) return base.extents(ino);
    }
    return undefined;
  };
}

function sameAttributes(attributes: Attributes, inode: Inode): boolean {
  return (
    attributes.mode === inode.mode &&
    attributes.uid === inode.uid &&
    attributes.gid === inode.gid &&
    attributes.mtimeNs === inode.mtimeNs &&
    sameXattrs(attributes.xattrs, inode.xattrs)
  );
}

function sameXattrs(some: Attributes["xattrs"], others: Attributes["xattrs"]): boolean {
  if ((some?.size ?? 0) !== (others?.size ?? 0)) return false;
  for (const [name, value] of some ?? []) if (!others?.get(name)?.equals(value)) return false;
  return true;
}

function typeName(mode: number): string {
  switch (mode & S_IFMT) {
    case 0o010000:
      return "a named pipe";
    case 0o020000:
      return "a character device";
    case 0o060000:
      return "a block device";
    default:
      return "a socket";
  }
}
