import { type ByteString, joinPath } from "../../cas/index.ts";
import type { Catalog } from "./catalog.ts";
import { type Dentry, type Inode, isDirectoryMode, kindOf, ROOT_INO } from "./model.ts";

/** Entries fetched at once of each directory. */
const PAGE = 500;

/** A path that differs between two trees. */
export interface Difference {
  /** Added, deleted, or updated: there in both trees. */
  readonly kind: "A" | "D" | "U";
  readonly path: ByteString;
  /** What is there in the first tree. */
  readonly from?: Inode;
  /** What is there in the second tree. */
  readonly to?: Inode;
  /** True where kind, content or target differs; false where only attributes do. Always true for A and D. */
  readonly content: boolean;
}

/**
 * The paths that differ from one tree to the other, each once, a directory directly before what is
 * below it. Directories are listed where they are added or deleted, and as updated where their own
 * attributes differ. Subtrees of equal hash are not looked at; which names are hard links of each
 * other is no difference. Memory is bounded by the depth of the trees.
 */
export function* diffCatalogs(from: Catalog, to: Catalog): Generator<Difference> {
  if (from.summary().tree === to.summary().tree) return;
  const levels: Level[] = [
    { olds: new Cursor(from, ROOT_INO), news: new Cursor(to, ROOT_INO), path: "" as ByteString },
  ];
  for (;;) {
    const level = levels[levels.length - 1];
    if (level === undefined) return;
    const name = firstOf(level.olds.entry?.name, level.news.entry?.name);
    if (name === undefined) {
      levels.pop();
      continue;
    }
    const path = joinPath(level.path, name);
    const before = level.olds.take(name);
    const after = level.news.take(name);
    yield* difference(path, before, after);
    const oldDirectory = before !== undefined && isDirectoryMode(before.mode) ? before : undefined;
    const newDirectory = after !== undefined && isDirectoryMode(after.mode) ? after : undefined;
    if (oldDirectory?.hash !== newDirectory?.hash) {
      levels.push({ olds: new Cursor(from, oldDirectory?.ino), news: new Cursor(to, newDirectory?.ino), path });
    }
  }
}

function firstOf(a: ByteString | undefined, b: ByteString | undefined): ByteString | undefined {
  return a === undefined || (b !== undefined && b < a) ? b : a;
}

function* difference(path: ByteString, from: Inode | undefined, to: Inode | undefined): Generator<Difference> {
  if (from === undefined) yield { kind: "A", path, to: to!, content: true };
  else if (to === undefined) yield { kind: "D", path, from, content: true };
  else {
    const content = !sameContent(from, to);
    if (content || !sameAttributes(from, to)) yield { kind: "U", path, from, to, content };
  }
}

function sameContent(a: Inode, b: Inode): boolean {
  const kind = kindOf(a.mode);
  if (kind !== kindOf(b.mode)) return false;
  return kind === "directory" || (a.hash === b.hash && a.target === b.target);
}

function sameAttributes(a: Inode, b: Inode): boolean {
  if (a.mode !== b.mode || a.uid !== b.uid || a.gid !== b.gid || a.mtimeNs !== b.mtimeNs) return false;
  if (a.xattrs?.size !== b.xattrs?.size) return false;
  for (const [name, value] of a.xattrs ?? []) {
    const other = b.xattrs?.get(name);
    if (other === undefined || !other.equals(value)) return false;
  }
  return true;
}

/** Two directories that are compared; one of them may be none. */
interface Level {
  readonly olds: Cursor;
  readonly news: Cursor;
  readonly path: ByteString;
}

/** Goes through a directory's entries in order; without a directory there are none. */
class Cursor {
  readonly #catalog: Catalog;
  readonly #ino: number | undefined;
  #page: Dentry[] = [];
  #at = 0;

  constructor(catalog: Catalog, ino: number | undefined) {
    this.#catalog = catalog;
    this.#ino = ino;
    if (ino !== undefined) this.#page = catalog.readdir(ino, undefined, PAGE);
  }

  /** The entry at hand, or undefined after the last. */
  get entry(): Dentry | undefined {
    return this.#page[this.#at];
  }

  /** What the entry at hand names, if that is its name; the next entry is at hand then. */
  take(name: ByteString): Inode | undefined {
    const entry = this.entry;
    if (entry?.name !== name) return undefined;
    this.#at++;
    if (this.#at === PAGE && this.#ino !== undefined) {
      this.#page = this.#catalog.readdir(this.#ino, name, PAGE);
      this.#at = 0;
    }
    return entry.inode;
  }
}
