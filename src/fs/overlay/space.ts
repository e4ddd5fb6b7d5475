/** The limit that a scratch was given, and how much of it is taken. */

import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { FsError } from "../errno.ts";
import { seekFile } from "./libc.ts";

const SEEK_HOLE = 4;

/** Bytes in which disks are given out: a write that does not fit whole ends at a multiple of them. */
const BLOCK = 4096;

/** What of the disk one layer takes. */
interface Taken {
  readonly journal: string;
  data: number;
}

/** What a scratch may take of the disk: its data files, by their disk blocks, and its journals. In bytes. */
export class Space {
  readonly limit: number;
  readonly #layers: Taken[] = [];

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Counts a layer on top of those that are counted, with what its data files take already. */
  begin(journal: string, directory: string): void {
    let data = 0;
    for (const name of readdirSync(directory)) data += diskBytes(statSync(join(directory, name)).blocks);
    this.#layers.push({ journal, data });
  }

  /** Counts none but the topmost layer any more. */
  drop(): void {
    this.#layers.splice(0, this.#layers.length - 1);
  }

  /** Bytes that are left, 0 at least. */
  get left(): number {
    let taken = 0;
    for (const { journal, data } of this.#layers) {
      taken += data + (statSync(journal, { throwIfNoEntry: false })?.size ?? 0);
    }
    return Math.max(this.limit - taken, 0);
  }

  /** Disk blocks, of 512 bytes, that data files of the topmost layer took more, or gave back. */
  add(blocks: number): void {
    const top = this.#layers.at(-1);
    if (top !== undefined) top.data += diskBytes(blocks);
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
