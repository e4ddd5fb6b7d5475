/** Finding out, at the cost of one `lstat` a file, that a tree is what it was when a bundle was made. */
import { type ByteString, joinPath } from "../../cas/index.ts";
import { type Catalog, type Inode, ROOT_INO } from "../../meta/index.ts";
import { DirectoryCursor, LinkComparison } from "./base-tree.ts";
import type { Breath } from "./breath.ts";
import { readRoot } from "./page-notes.ts";
import { isCurrent, type KnownEntry, pagesOf } from "./pages.ts";
import type { StatCache } from "./stat-cache.ts";
import type { LocalStat, SourceTree } from "./walk.ts";
import { sameXattrs } from "./xattr.ts";

/** What a comparison found. */
export interface Unchanged {
  /** Entries that no bundle keeps: sockets, fifos and devices. */
  skipped: ByteString[];
}

/**
 * Compares a local tree with a catalog by what the stat cache knows of the files. No file is opened.
 * Answers undefined at the first difference, and also where a file is not in the stat cache.
 */
export async function findUnchanged(
  tree: SourceTree,
  catalog: Catalog,
  cache: StatCache,
  breath: Breath,
  onFile: (size: number) => void,
): Promise<Unchanged | undefined> {
  const skipped: ByteString[] = [];
  const links = new LinkComparison();
  if (!sameRoot(tree, catalog, cache)) return undefined;

  const directories = [{ path: "" as ByteString, ino: ROOT_INO }];
  for (let directory = directories.pop(); directory !== undefined; directory = directories.pop()) {
    const cursor = new DirectoryCursor(catalog, directory.ino);
    for (const page of pagesOf(tree.names(directory.path))) {
      const reader = cache.page(directory.path, page.end);
      for (const name of page.names) {
        if (breath.due()) await breath.pause();
        const path = joinPath(directory.path, name);
        const stat = tree.stat(path);
        if (stat?.kind === "other") {
          skipped.push(path);
          continue;
        }
        const entry = cursor.take();
        if (stat === undefined || entry === undefined || entry.name !== name) return undefined;
        const known = reader?.seek(name);
        if (!sameAttributes(stat, entry.inode)) return undefined;
        // Another name of a file that was compared under its first one.
        const seen = stat.kind === "file" && links.see(stat, entry.inode);
        if (!seen && !isSame(tree, path, stat, entry.inode, known)) return undefined;
        if (stat.kind === "directory") directories.push({ path, ino: entry.inode.ino });
        else if (stat.kind === "file") onFile(stat.size);
      }
    }
    if (cursor.peek() !== undefined) return undefined;
  }
  return links.equal() ? { skipped } : undefined;
}

/** Whether the root directory's own attributes, which no tree hash covers, are those of the catalog. */
export function sameRoot(tree: SourceTree, catalog: Catalog, cache: StatCache): boolean {
  const inode = catalog.inode(ROOT_INO);
  const { stat, xattrs } = readRoot(tree, cache);
  return inode !== undefined && sameAttributes(stat, inode) && sameXattrs(xattrs, inode.xattrs);
}

/** Whether mode, owner and time are those of the inode. */
function sameAttributes(stat: LocalStat, inode: Inode): boolean {
  return stat.mode === inode.mode && stat.mtimeNs === inode.mtimeNs && stat.uid === inode.uid && stat.gid === inode.gid;
}

function isSame(
  tree: SourceTree,
  path: ByteString,
  stat: LocalStat,
  inode: Inode,
  known: KnownEntry | undefined,
): boolean {
  if (stat.kind === "symlink") return inode.target === tree.target(path);
  const current = known !== undefined && isCurrent(known, stat) ? known : undefined;
  if (stat.kind === "directory") {
    return sameXattrs(current === undefined ? tree.xattrs(path) : current.xattrs, inode.xattrs);
  }
  return (
    current !== undefined &&
    stat.size === inode.size &&
    current.hash === inode.hash &&
    sameXattrs(current.xattrs, inode.xattrs)
  );
}
