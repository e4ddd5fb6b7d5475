/** The files of a tree in the byte order of their paths, which is what `sort` makes of a list of them. */

import { type ByteString, joinPath } from "../../cas/index.ts";
import type { LocalStat, LocalTree } from "../../fs/index.ts";
import { type Catalog, type Inode, kindOf, ROOT_INO } from "../../meta/index.ts";

/** A file or symbolic link, by its path from the root of the tree. */
export interface Listed<T> {
  readonly path: ByteString;
  readonly entry: T;
}

/**
 * Files and symbolic links of a folder. What cannot be read is passed to `onFailure` and left out.
 * A directory's names are held in memory, and those of the directories above it.
 */
export function localFiles(tree: LocalTree, onFailure: (error: unknown) => void): Generator<Listed<LocalStat>> {
  return walk<LocalStat>("" as ByteString, {
    *entries(directory) {
      for (const name of attempt(() => tree.names(directory), onFailure) ?? []) {
        const entry = attempt(() => tree.stat(joinPath(directory, name)), onFailure);
        if (entry !== undefined) yield { name, entry };
      }
    },
    kindOf: (stat) => stat.kind,
  });
}

/** Files and symbolic links of a bundle. */
export function bundleFiles(catalog: Catalog): Generator<Listed<Inode>> {
  const root = catalog.inode(ROOT_INO);
  return walk<Inode>("" as ByteString, {
    *entries(_, directory) {
      let after: ByteString | undefined;
      for (;;) {
        const page = catalog.readdir((directory ?? root)?.ino ?? ROOT_INO, after, PAGE);
        for (const { name, inode } of page) yield { name, entry: inode };
        if (page.length < PAGE) return;
        after = page[PAGE - 1]?.name;
      }
    },
    kindOf: (inode) => kindOf(inode.mode) ?? "other",
  });
}

/** Entries read from a catalog at once. */
const PAGE = 1000;

interface Tree<T> {
  /** What is in a directory, in byte order of names; `entry` is undefined for the root. */
  entries(directory: ByteString, entry: T | undefined): Iterable<{ name: ByteString; entry: T }>;
  kindOf(entry: T): string;
}

function* walk<T>(directory: ByteString, tree: Tree<T>, of?: T): Generator<Listed<T>> {
  // Everything below `a` comes after `a-b` and `a.txt`, since "/" comes after "-" and ".".
  const waiting: { key: string; path: ByteString; entry: T }[] = [];
  const ready = (before: string | undefined) => waiting.findIndex(({ key }) => before !== undefined && key >= before);
  const takeReady = (before: string | undefined) => {
    const end = ready(before);
    return waiting.splice(0, end < 0 ? waiting.length : end);
  };
  for (const { name, entry } of tree.entries(directory, of)) {
    for (const below of takeReady(name)) yield* walk(below.path, tree, below.entry);
    const path = joinPath(directory, name);
    const kind = tree.kindOf(entry);
    if (kind === "directory") {
      const key = `${name}/`;
      const at = waiting.findIndex((other) => other.key > key);
      waiting.splice(at < 0 ? waiting.length : at, 0, { key, path, entry });
    } else if (kind === "file" || kind === "symlink") {
      yield { path, entry };
    }
  }
  for (const below of takeReady(undefined)) yield* walk(below.path, tree, below.entry);
}

function attempt<T>(read: () => T, onFailure: (error: unknown) => void): T | undefined {
  try {
    return read();
  } catch (error) {
    onFailure(error);
    return undefined;
  }
}
