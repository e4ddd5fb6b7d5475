/** Disk space set aside, so that on a full disk files can still be removed: that needs room in the journal. */

import { closeSync, existsSync, openSync, rmSync } from "node:fs";
import { fallocate } from "./libc.ts";

/** Bytes set aside; a removal takes some ten or twenty kilobytes of journal. */
const SIZE = 4 * 1024 * 1024;

export class Reserve {
  readonly #file: string;
  #held: boolean;

  constructor(file: string) {
    this.#file = file;
    this.#held = existsSync(file);
    this.hold();
  }

  /** Sets the space aside where it is not yet and the disk has it. */
  hold(): void {
    if (this.#held) return;
    try {
      const fd = openSync(this.#file, "w", 0o600);
      try {
        fallocate(fd, 0, 0, SIZE);
        this.#held = true;
      } finally {
        closeSync(fd);
      }
    } catch {
      rmSync(this.#file, { force: true });
    }
  }

  /** Gives the space back to the disk; false where there was none. */
  release(): boolean {
    if (!this.#held) return false;
    rmSync(this.#file, { force: true });
    this.#held = false;
    return true;
  }
}
