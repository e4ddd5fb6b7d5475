/** How inodes are open, noted where a daemon's death does not reach. */

import { readSync, writeSync } from "node:fs";
import type { OpenedFiles } from "./openings.ts";

/** A slot: inode number (float64), number in the kernel's register (int32), handles (uint32); no handles: it is free. */
const SLOT = 16;
/** Slots that are read at a time. */
const PAGE = 4096;

/**
 * A table in a file that is not this process's alone. Every open and close of a file changes a
 * slot of it, in one write: whoever dies leaves each slot as it was before or after.
 */
export class PassedFiles {
  readonly #fd: number;
  readonly #slot = Buffer.alloc(SLOT);
  readonly #taken = new Map<number, number>();
  readonly #free: number[] = [];
  #slots = 0;

  /** @param fd a file of one's own; what it says stays */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** What the file says. To be called once, before anything is noted. */
  read(): OpenedFiles {
    const found: Record<string, readonly [number, number]> = {};
    const page = Buffer.alloc(PAGE * SLOT);
    for (;;) {
      const length = readSync(this.#fd, page, 0, page.length, this.#slots * SLOT);
      if (length === 0) return found;
      for (let at = 0; at < length; at += SLOT) {
        const ino = page.readDoubleLE(at);
        const handles = page.readUInt32LE(at + 12);
        if (handles === 0) this.#free.push(this.#slots);
        else {
          this.#taken.set(ino, this.#slots);
          found[ino] = [page.readInt32LE(at + 8), handles];
        }
        this.#slots++;
      }
    }
  }

  /** Notes that an inode is open through so many handles; none: it is not any more. */
  note(ino: number, backing: number, handles: number): void {
    const slot = this.#taken.get(ino) ?? this.#free.pop() ?? this.#slots++;
    if (handles > 0) this.#taken.set(ino, slot);
    else {
      this.#taken.delete(ino);
      this.#free.push(slot);
    }
    this.#slot.writeDoubleLE(ino, 0);
    this.#slot.writeInt32LE(backing, 8);
    this.#slot.writeUInt32LE(handles, 12);
    writeSync(this.#fd, this.#slot, 0, SLOT, slot * SLOT);
  }
}
