/** Comparing a local folder with a catalog by content. */
import { type ByteString, type Hash, hashFiles, joinPath } from "../../cas/index.ts";
import { type Catalog, type Inode, ROOT_INO } from "../../meta/index.ts";
import { DirectoryCursor } from "./base-tree.ts";
import type { Breath } from "./breath.ts";
import { kindOf } from "./catalog-walk.ts";
import { PageNotes } from "./page-notes.ts";
import { isCurrent, pagesOf } from "./pages.ts";
import type { StatCache } from "./stat-cache.ts";
import { type LocalStat, type LocalTree, OWN_NAME } from "./walk.ts";
import { readXattrs } from "./xattr.ts";

/** A local entry that differs from the catalog's, or the other way round. */
export interface Comparison {
  path: ByteString;
  /** The bundle's entry, undefined where it has none. */
  inode: Inode | undefined;
  /** The folder's entry, undefined where it has none. */
  local: LocalEntry | undefined;
  /** True where the local entry lies where the bundle has something of another kind, at this path or above it. */
  inTheWay: boolean;
}

/** What a folder has at a path. */
export interface LocalEntry {
  stat: LocalStat;
  /** Content hash of a file. */
  hash: Hash | undefined;
  /** Of a symbolic link. */
  target: ByteString | undefined;
}

interface Directory {
  path: ByteString;
  /** In the catalog. */
  ino: number | undefined;
  local: boolean;
  inTheWay: boolean;
}

/** A pair to be compared once the local file's hash is known. */
interface Pair extends Comparison {
  notes: PageNotes | undefined;
}

/** Files are hashed in batches of so many files and bytes, so that differences come in path order from little memory. */
const BATCH_FILES = 4096;
const BATCH_BYTES = 1024 ** 3;

/**
 * Every path at which folder and catalog differ in content, in path order: files by their hash,
 * links by their target, directories only where one of the two has an empty one and the other
 * nothing. Where a file stands against a directory, both come, each for itself.
 */
export async function* compareTree(
  tree: LocalTree,
  catalog: Catalog,
  cache: StatCache,
  breath: Breath,
  signal: AbortSignal | undefined,
): AsyncGenerator<Comparison> {
  let batch: Pair[] = [];
  let files = 0;
  let bytes = 0;
  for (const pair of pairsOf(tree, catalog, cache)) {
    if (breath.due()) await breath.pause();
    batch.push(pair);
    if (pair.notes !== undefined) {
      files++;
      bytes += pair.local?.stat.size ?? 0;
    }
    if (batch.length < BATCH_FILES && bytes < BATCH_BYTES) continue;
    yield* differences(tree, batch, files > 0, signal);
    batch = [];
    files = 0;
    bytes = 0;
  }
  yield* differences(tree, batch, files > 0, signal);
  cache.prune();
}

async function* differences(
  tree: LocalTree,
  batch: Pair[],
  unread: boolean,
  signal: AbortSignal | undefined,
): AsyncGenerator<Comparison> {
  if (unread) await hashPairs(tree, batch, signal);
  for (const { path, inode, local, inTheWay } of batch) {
    if (inode !== undefined && local !== undefined && isEqual(inode, local)) continue;
    yield { path, inode, local, inTheWay };
  }
}

async function hashPairs(tree: LocalTree, batch: Pair[], signal: AbortSignal | undefined): Promise<void> {
  async function* sources() {
    for (const pair of batch) {
      if (pair.notes === undefined || pair.local === undefined) continue;
      yield { tag: pair, path: tree.absolute(pair.path), size: pair.local.stat.size };
    }
  }
  for await (const result of hashFiles(sources(), signal === undefined ? {} : { signal })) {
    if ("error" in result) throw result.error;
    const { path, local, notes } = result.tag;
    if (local === undefined) continue;
    local.hash = result.hash;
    const known = { ...result.stat, name: path, hash: result.hash, xattrs: undefined };
    if (!isCurrent(known, local.stat)) notes?.giveUp();
    else notes?.learn(nameOf(path), result.stat, result.hash, readXattrs(tree.absolute(path)));
  }
}

/** Whether a local entry has the content of a catalog's. */
export function isEqual(inode: Inode, local: LocalEntry): boolean {
  const kind = kindOf(inode);
  if (kind !== local.stat.kind) return false;
  if (kind === "file") return inode.hash === local.hash;
  return kind === "directory" || inode.target === local.target;
}

function* pairsOf(tree: LocalTree, catalog: Catalog, cache: StatCache): Generator<Pair> {
  const stack: Directory[] = [{ path: "" as ByteString, ino: ROOT_INO, local: true, inTheWay: false }];
  for (let directory = stack.pop(); directory !== undefined; directory = stack.pop()) {
    const below: Directory[] = [];
    const cursor = new DirectoryCursor(catalog, directory.ino);
    const names = directory.local ? tree.names(directory.path) : [];
    for (const page of pagesOf(names)) {
      const notes = new PageNotes(cache, directory.path, page.end);
      for (const name of page.names) {
        yield* remoteOnly(catalog, directory, cursor, name, below);
        const inode = cursor.seek(name);
        yield* localEntry(tree, catalog, directory, name, inode, notes, below);
      }
      notes.end(false);
    }
    yield* remoteOnly(catalog, directory, cursor, undefined, below);
    for (let child = below.pop(); child !== undefined; child = below.pop()) stack.push(child);
  }
}

/** The catalog's entries before `name` (all that are left where it is undefined), which the folder does not have. */
function* remoteOnly(
  catalog: Catalog,
  directory: Directory,
  cursor: DirectoryCursor,
  name: ByteString | undefined,
  below: Directory[],
): Generator<Pair> {
  for (
    let entry = cursor.peek();
    entry !== undefined && (name === undefined || entry.name < name);
    entry = cursor.peek()
  ) {
    cursor.take();
    const path = joinPath(directory.path, entry.name);
    if (path !== OWN_NAME) yield* remoteEntry(catalog, path, entry.inode, below);
  }
}

function* remoteEntry(catalog: Catalog, path: ByteString, inode: Inode, below: Directory[]): Generator<Pair> {
  if (kindOf(inode) === "directory") {
    below.push({ path, ino: inode.ino, local: false, inTheWay: false });
    if (catalog.readdir(inode.ino, undefined, 1).length > 0) return;
  }
  yield { path, inode, local: undefined, inTheWay: false, notes: undefined };
}

function* localEntry(
  tree: LocalTree,
  catalog: Catalog,
  directory: Directory,
  name: ByteString,
  inode: Inode | undefined,
  notes: PageNotes,
  below: Directory[],
): Generator<Pair> {
  const path = joinPath(directory.path, name);
  const stat = tree.stat(path);
  const kind = inode === undefined ? undefined : kindOf(inode);
  if (stat === undefined || stat.kind === "other") {
    if (inode !== undefined) yield* remoteEntry(catalog, path, inode, below);
    return;
  }
  const local: LocalEntry = { stat, hash: undefined, target: undefined };
  const inTheWay = directory.inTheWay || (inode !== undefined && kind !== stat.kind);
  if (stat.kind === "directory") {
    notes.find(name, stat);
    below.push({ path, ino: kind === "directory" ? inode?.ino : undefined, local: true, inTheWay });
    if (kind === "directory") return;
    if (inode !== undefined) yield { path, inode, local: undefined, inTheWay: false, notes: undefined };
    if (tree.names(path).length === 0) yield { path, inode: undefined, local, inTheWay, notes: undefined };
    return;
  }
  let waiting: PageNotes | undefined;
  if (stat.kind === "symlink") {
    local.target = tree.target(path);
  } else {
    local.hash = notes.find(name, stat)?.hash;
    if (local.hash === undefined) {
      notes.expect();
      waiting = notes;
    }
  }
  if (inode !== undefined && kind === "directory") {
    yield { path, inode: undefined, local, inTheWay: true, notes: waiting };
    yield* remoteEntry(catalog, path, inode, below);
    return;
  }
  yield { path, inode, local, inTheWay, notes: waiting };
}

function nameOf(path: ByteString): ByteString {
  return path.slice(path.lastIndexOf("/") + 1) as ByteString;
}
