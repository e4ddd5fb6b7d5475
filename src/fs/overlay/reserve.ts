/** Disk space set aside, so that on a full disk files can still be removed: that needs room in the journal. */

import { closeSync, ftruncateSync, openSync, statSync, truncateSync } from "node:fs";
import { fallocate } from "./libc.ts";

/** Bytes set aside. */
const SIZE = 4 * 1024 * 1024;
/** Bytes given back at a time; a removal takes some ten or twenty kilobytes of journal. */
const SLICE = 128 * 1024;

/**
 * A file that takes up space. It is given back slice by slice, since whatever is freed beyond what a
 * removal needs is the next writer's, and gone when the next file is to be removed.
 */
export class Reserve {
  readonly #file: string;
  #size: number;

  constructor(file: string) {
    this.#file = file;
    this.#size = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
    this.hold();
  }

  /** Sets aside what is missing, if the disk has it. */
  hold(): void {
    if (this.#size >= SIZE) return;
    try {
      const fd = openSync(this.#file, "a", 0o600);
      try {
        fallocate(fd, 0, this.#size, SIZE - this.#size);
        this.#size = SIZE;
      } catch {
        // What was allocated before the disk was full may have stayed.
        ftruncateSync(fd, this.#size);
      } finally {
        closeSync(fd);
      }
    } catch {
      // Without a reserve, removals on a full disk may fail.
    }
  }

  /** Gives some of the space back to the disk; false where none is left. */
  release(): boolean {
    if (this.#size === 0) return false;
    this.#size = Math.max(this.#size - SLICE, 0);
    truncateSync(this.#file, this.#size);
    return true;
  }
}
