/** The limit that a scratch was given, and how much of it is taken. */

import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { FsError } from "../errno.ts";
import { seekFile } from "./libc.ts";

const SEEK_HOLE = 4;

/** Bytes in which disks are given out: a write that does not fit whole ends at a multiple of them. */
const BLOCK = 4096;

/** What a scratch may take of the disk: its data files, by their disk blocks, and its journal. In bytes. */
export class Space {
  readonly limit: number;
  readonly #journal: string;
  #data = 0;

  /** Counts what the data files in `directory` take. */
  constructor(limit: number, directory: string, journal: string) {
    this.limit = limit;
    this.#journal = journal;
    for (const name of readdirSync(directory)) this.#data += diskBytes(statSync(join(directory, name)).blocks);
  }

  /** Bytes that are left, 0 at least. */
  get left(): number {
    const journal = statSync(this.#journal, { throwIfNoEntry: false })?.size ?? 0;
    return Math.max(this.limit - this.#data - journal, 0);
  }

  /** Disk blocks, of 512 bytes, that data files took more, or gave back. */
  add(blocks: number): void {
    this.#data += diskBytes(blocks);
  }

  /** Throws ENOSPC where nothing is left. */
  check(): void {
    if (this.left === 0) throw new FsError("ENOSPC", "the limit of the scratch");
  }

  /** How many of `length` bytes can be written at `offset` of the file open at `fd`, 1 at least; ENOSPC. */
  fitting(fd: number, offset: number, length: number): number {
    const { left } = this;
    if (length <= left) return length;
    const allocated = (seekFile(fd, offset, SEEK_HOLE) ?? offset) - offset;
    const end = offset + allocated + left;
    const fitting = Math.max(end - (end % BLOCK) - offset, allocated);
    if (fitting <= 0) throw new FsError("ENOSPC", "the limit of the scratch");
    return Math.min(fitting, length);
  }
}

function diskBytes(blocks: number): number {
  return blocks * 512;
}
