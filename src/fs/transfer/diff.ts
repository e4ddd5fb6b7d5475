/** What differs between a local folder and a bundle, by content. */
import type { ByteString, Hash } from "../../cas/index.ts";
import { type Bundle, type Catalog, type Context, diffCatalogs, type Inode, type Kind } from "../../meta/index.ts";
import { openBundleCatalog } from "./base-tree.ts";
import { Breath } from "./breath.ts";
import { kindOf } from "./catalog-walk.ts";
import { type Comparison, compareTree, type LocalEntry } from "./compare.ts";
import { StatCache } from "./stat-cache.ts";
import { LocalTree } from "./walk.ts";

/** One side of a difference. */
export interface DiffSide {
  kind: Kind;
  /** Bytes of content of a file, of the target of a link, 0 of a directory. */
  size: number;
  /** Content hash of a file; other kinds have none. */
  hash: Hash | undefined;
}

/**
 * A path at which folder and bundle differ, told as what bringing the folder to the bundle would do:
 * A adds what only the bundle has, D deletes what only the folder has, U updates what both have.
 */
export interface DiffEntry {
  kind: "A" | "D" | "U";
  path: ByteString;
  /** The bundle's; undefined for D. */
  remote: DiffSide | undefined;
  /** The folder's; undefined for A. */
  local: DiffSide | undefined;
}

/** What to compare. */
export interface DiffOptions {
  bundle: Bundle;
  directory: string;
  cacheDirectory: string;
  /** The stat cache's SQLite file. */
  stateFile: string;
  signal?: AbortSignal | undefined;
}

/**
 * Compares a folder with a bundle, in path order. Contents are compared, attributes are not;
 * directories show only where one side has an empty one and the other nothing. Sockets, fifos,
 * devices and an entry `.datamon` at the top count as absent.
 */
export async function* diffTree(context: Context, options: DiffOptions): AsyncGenerator<DiffEntry, void> {
  const tree = LocalTree.open(options.directory);
  const breath = new Breath("the comparison", options.signal);
  const catalog = await openBundleCatalog(context, options.bundle, options.cacheDirectory);
  const cache = StatCache.open(options.stateFile, tree.root);
  try {
    for await (const found of compareTree(tree, catalog, cache, breath, options.signal)) yield entryOf(found);
  } catch (error) {
    throw breath.explain(error);
  } finally {
    cache.close();
    catalog.close();
  }
}

/**
 * What differs by content from one bundle to another, in path order: A is only in `to`, D only in
 * `from`. `to` stands on the remote side, `from` on the local one. Directories show only where they are empty.
 */
export async function* diffBundles(
  context: Context,
  options: { from: Bundle; to: Bundle; cacheDirectory: string },
): AsyncGenerator<DiffEntry, void> {
  const from = await openBundleCatalog(context, options.from, options.cacheDirectory);
  try {
    const to = await openBundleCatalog(context, options.to, options.cacheDirectory);
    try {
      for (const found of diffCatalogs(from, to)) {
        if (!found.content) continue;
        const { kind, path } = found;
        if (kind === "A" && found.to && isFullDirectory(to, found.to)) continue;
        if (kind === "D" && found.from && isFullDirectory(from, found.from)) continue;
        yield { kind, path, remote: found.to && remoteSide(found.to), local: found.from && remoteSide(found.from) };
      }
    } finally {
      to.close();
    }
  } finally {
    from.close();
  }
}

/** A directory that shows by what is in it. */
function isFullDirectory(catalog: Catalog, inode: Inode): boolean {
  return kindOf(inode) === "directory" && catalog.readdir(inode.ino, undefined, 1).length > 0;
}

function entryOf({ path, inode, local }: Comparison): DiffEntry {
  const kind = local === undefined ? "A" : inode === undefined ? "D" : "U";
  return { kind, path, remote: inode && remoteSide(inode), local: local && localSide(local) };
}

function remoteSide(inode: Inode): DiffSide {
  const kind = kindOf(inode);
  return { kind, size: inode.size, hash: kind === "file" ? inode.hash : undefined };
}

function localSide({ stat, hash, target }: LocalEntry): DiffSide {
  if (stat.kind === "symlink") return { kind: "symlink", size: target?.length ?? 0, hash: undefined };
  if (stat.kind === "directory") return { kind: "directory", size: 0, hash: undefined };
  return { kind: "file", size: stat.size, hash };
}
