/** The inodes of a journal that are in no bundle to come, and that a commit has to find among all others. */

import { isDirectory, isRegular, isSymlink } from "../base.ts";
import type { InodeRow } from "./journal.ts";

/** Numbers of such inodes, kept up to date row by row. */
export class Leftovers {
  /** Those without a name: they are open. */
  readonly orphans = new Set<number>();
  /** Those that are neither files nor directories nor symbolic links. */
  readonly specials = new Set<number>();

  put({ ino, mode, nlink }: Pick<InodeRow, "ino" | "mode" | "nlink">): void {
    if (nlink === 0) this.orphans.add(ino);
    else this.orphans.delete(ino);
    if (!isKept(mode)) this.specials.add(ino);
  }

  remove(ino: number): void {
    this.orphans.delete(ino);
    this.specials.delete(ino);
  }
}

/** True for what a bundle can hold. */
export function isKept(mode: number): boolean {
  return isRegular(mode) || isDirectory(mode) || isSymlink(mode);
}
