/** The files that a bundle was made from, once it is complete. */

import { unlinkSync } from "node:fs";
import { type ByteString, ioError, isErrno, toFsPath } from "../../cas/index.ts";
import type { Breath, LocalTree } from "../../fs/index.ts";
import { type Catalog, type Inode, kindOf } from "../../meta/index.ts";
import { FileList } from "./file-list.ts";
import { bundleFiles } from "./path-order.ts";

/** Whether what is in the folder is what was read for the bundle, by its size and modification time. */
export function isHeld(tree: LocalTree, path: ByteString, inode: Inode): boolean {
  try {
    const stat = tree.stat(path);
    if (stat === undefined || stat.kind !== kindOf(inode.mode) || stat.mtimeNs !== inode.mtimeNs) return false;
    return stat.kind === "symlink" ? tree.target(path) === inode.target : stat.size === inode.size;
  } catch {
    return false;
  }
}

/**
 * Unlinks the files and links that were last changed before `before` (nanoseconds), each only if it
 * is still what the bundle holds, which is looked at right before. Those whose paths no list can hold
 * stay, and those that cannot be unlinked.
 */
export async function unlinkOriginals(
  tree: LocalTree,
  catalog: Catalog,
  before: bigint,
  breath: Breath,
  onWarning: ((line: string) => void) | undefined,
): Promise<{ unlinked: number; failed: number }> {
  let unlinked = 0;
  let failed = 0;
  for (const { path, entry } of bundleFiles(catalog)) {
    if (breath.due()) await breath.pause();
    if (entry.mtimeNs >= before || !FileList.canHold(path) || !isHeld(tree, path, entry)) continue;
    try {
      unlinkSync(toFsPath(tree.absolute(path)));
      unlinked++;
    } catch (error) {
      if (isErrno(error, "ENOENT")) continue;
      failed++;
      onWarning?.(ioError(`unlink ${tree.show(path)}`, error).message);
    }
  }
  return { unlinked, failed };
}
