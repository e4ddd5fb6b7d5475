/**
 * Restoring a catalog's tree in an order that leaves no way out of the destination: all directories
 * and files first, then hard links, then symbolic links, and each directory's attributes when
 * everything in it is done.
 */
import type { ByteString } from "../../cas/index.ts";
import type { Catalog } from "../../meta/index.ts";
import type { Breath } from "./breath.ts";
import { kindOf, type Node, walkCatalog } from "./catalog-walk.ts";
import type { ContentWriter } from "./content-writer.ts";
import type { Restorer } from "./restorer.ts";
import type { Selection } from "./selection.ts";
import { OWN_NAME } from "./walk.ts";

/** What to restore, and with what. */
export interface RestoreParts {
  catalog: Catalog;
  restorer: Restorer;
  writer: ContentWriter;
  breath: Breath;
  selection: Selection;
  /** Which files and links must be made; of the others, the attributes are brought up to date. By default all. */
  isNeeded?(node: Node): boolean;
  /** Whether the destination itself takes the attributes of the tree's root. */
  restoresRoot: boolean;
  /** The tree has an entry named `.datamon` at its top, which is not restored. */
  onOwnName(): void;
}

/** Restores the tree; when it resolves, everything is in place. */
export async function restoreTree(parts: RestoreParts): Promise<void> {
  const { catalog, restorer, writer, breath, selection } = parts;
  const isNeeded = parts.isNeeded ?? (() => true);
  const made = new Set<number>();
  const enter = (node: Node | undefined): void => {
    if (node?.parent === undefined || made.has(node.inode.ino)) return;
    enter(node.parent);
    restorer.directory(node.path);
    made.add(node.inode.ino);
  };
  /** Where files with several names were written. */
  const written = new Map<number, ByteString>();

  for (const { node, leaves } of walkCatalog(catalog)) {
    if (breath.due()) await breath.pause();
    if (isOwn(node.path)) {
      if (node.path === OWN_NAME && !leaves) parts.onOwnName();
      continue;
    }
    const kind = kindOf(node.inode);
    if (leaves || !selection.has(node.path)) continue;
    if (kind === "directory") {
      enter(node);
    } else if (kind === "symlink") {
      // From the first link on, no directory is made any more.
      enter(node.parent);
    } else if (isNeeded(node)) {
      enter(node.parent);
      if (node.inode.nlink > 1) {
        if (written.has(node.inode.ino)) continue;
        written.set(node.inode.ino, node.path);
      }
      await writer.add(node.path, node.inode);
    }
  }
  await writer.finish();

  for (const { node } of written.size === 0 ? [] : stepsOf(catalog)) {
    if (breath.due()) await breath.pause();
    const first = written.get(node.inode.ino);
    if (kindOf(node.inode) !== "file" || !selection.has(node.path) || first === undefined || first === node.path)
      continue;
    restorer.link(first, node.path);
  }
  for (const { node, leaves } of stepsOf(catalog)) {
    if (breath.due()) await breath.pause();
    const kind = kindOf(node.inode);
    if (leaves) {
      if (made.has(node.inode.ino)) restorer.fix(node.path, node.inode, restorer.tree.stat(node.path));
      else if (node.parent === undefined && parts.restoresRoot) restoreRoot(restorer, node);
    } else if (kind === "symlink" && selection.has(node.path)) {
      if (isNeeded(node)) restorer.symlink(node.path, node.inode);
      else restorer.fix(node.path, node.inode, restorer.tree.stat(node.path));
    } else if (kind === "file" && !written.has(node.inode.ino) && selection.has(node.path) && !isNeeded(node)) {
      restorer.fix(node.path, node.inode, restorer.tree.stat(node.path));
    }
  }
}

function* stepsOf(catalog: Catalog): ReturnType<typeof walkCatalog> {
  for (const step of walkCatalog(catalog)) if (!isOwn(step.node.path)) yield step;
}

function isOwn(path: ByteString): boolean {
  return path === OWN_NAME || path.startsWith(`${OWN_NAME}/`);
}

/** The destination may belong to somebody else, such as a mount point: its attributes are set where that is allowed. */
function restoreRoot(restorer: Restorer, root: Node): void {
  try {
    restorer.fix(root.path, root.inode, restorer.tree.stat(root.path));
  } catch {
    // Everything in it is restored; a directory that was there keeps the attributes that its owner gave it.
  }
}
