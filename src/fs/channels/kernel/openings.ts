/** The open files of a mount: which of them the kernel reads and writes by itself. */

import { closeSync, constants } from "node:fs";
import type { DiskCache } from "../../../cache/index.ts";
import { isErrno } from "../../../cas/index.ts";
import { FsError } from "../../errno.ts";
import type { Namespace } from "../../namespace.ts";
import { withoutSetId } from "../../overlay/contents.ts";

/** The answer to an open whose file may have been changed without the kernel's pages of it. */
export const UNCACHED = -1;

/** The kernel's register of files that it may use in the place of a mount's. */
export interface Register {
  /** Registers the file behind a descriptor, which may be closed afterwards. Throws an error with an errno's name in `code`. */
  add(fd: number): number;
  remove(backing: number): void;
  /** Has the kernel ask again for the attributes of an inode whose file was changed. */
  changed(ino: number): void;
}

/** What is open and how, by inode number: number in the kernel's register, 0 or `UNCACHED` where there is none, and handles. */
export type OpenedFiles = Readonly<Record<string, readonly [backing: number, handles: number]>>;

/** What has to be known of openings elsewhere. */
export interface OpeningsOutlet {
  want(ino: number): void;
  opened(ino: number, backing: number, handles: number): void;
}

/** The bits of open(2)'s flags that say whether to read, to write, or both. */
const ACCESS_MODE = 3;

interface Opening {
  handles: number;
  /** Number in the kernel's register; 0 where reads and writes come as requests. */
  readonly backing: number;
  /** Of a handle through which a memory map can be written, or may be. */
  mappable: boolean;
}

/**
 * Decides for each inode that is opened whether the kernel is given the file behind it. The decision
 * holds as long as any handle is open, since the kernel takes no two ways for one inode at a time.
 */
export class Openings {
  readonly #namespace: Namespace;
  readonly #cache: DiskCache;
  readonly #register: Register | undefined;
  readonly #outlet: OpeningsOutlet;
  readonly #open = new Map<number, Opening>();
  #permitted = true;
  /** While it is set, nothing more is handed over. */
  paused = false;

  /** @param register without it nothing is handed over */
  constructor(namespace: Namespace, cache: DiskCache, register: Register | undefined, outlet: OpeningsOutlet) {
    this.#namespace = namespace;
    this.#cache = cache;
    this.#register = register;
    this.#outlet = outlet;
  }

  /** Goes on with what a daemon before this one handed over; the namespace is told of these handles, too. */
  adopt(passed: OpenedFiles): void {
    for (const [key, [backing, handles]] of Object.entries(passed)) {
      const ino = Number(key);
      this.#open.set(ino, { handles, backing, mappable: true });
      try {
        for (let count = 0; count < handles; count++) this.#namespace.open(ino, 0);
        if (backing > 0) this.#namespace.backing(ino);
      } catch (error) {
        // It is gone: the daemon before died while it ended the last handle.
        if (!(error instanceof FsError)) throw error;
        this.forget(ino);
      }
    }
  }

  /** The inodes that the kernel reads and writes by itself. */
  passed(): number[] {
    return [...this.#open].filter(([, { backing }]) => backing > 0).map(([ino]) => ino);
  }

  /** The kernel has forgotten the inode, so that no handle is left, whatever was counted over the deaths of daemons. */
  forget(ino: number): void {
    const known = this.#open.get(ino);
    if (known === undefined) return;
    this.#open.delete(ino);
    this.#note(ino, known.backing, 0);
    if (known.backing > 0) this.#register?.remove(known.backing);
  }

  /**
   * Opens a file for a handle of flags `flags`; returns its number in the kernel's register, 0 where
   * the kernel is to ask for its bytes, `UNCACHED` where it must not use those that it has.
   */
  open(ino: number, flags: number): number {
    this.#namespace.open(ino, flags);
    const known = this.#open.get(ino);
    if (known !== undefined) {
      known.handles++;
      known.mappable ||= isMappable(flags);
      this.#note(ino, known.backing, known.handles);
      return known.backing;
    }
    const backing = this.#back(ino);
    this.#open.set(ino, { handles: 1, backing, mappable: isMappable(flags) });
    this.#note(ino, backing, 1);
    return backing;
  }

  /** Ends a handle. */
  release(ino: number): void {
    const known = this.#open.get(ino);
    if (known !== undefined) {
      known.handles--;
      if (known.handles === 0) this.#open.delete(ino);
      this.#note(ino, known.backing, known.handles);
      if (known.backing > 0 && known.handles === 0) this.#register?.remove(known.backing);
    }
    this.#namespace.release(ino);
    // The kernel notices writes, but not what is written through a memory map.
    if (known?.mappable && known.backing > 0 && known.handles === 0 && this.#namespace.writable) {
      this.#register?.changed(ino);
    }
  }

  /** Where some files are handed over, the next daemon has to know of all how they are open. */
  #note(ino: number, backing: number, handles: number): void {
    if (this.#register !== undefined) this.#outlet.opened(ino, backing, handles);
  }

  #back(ino: number): number {
    const register = this.#register;
    if (register === undefined || !this.#permitted) return 0;
    if (this.paused) return UNCACHED;
    // A write by somebody else takes these bits away, and is to be heard of for that.
    const { mode } = this.#namespace.getattr(ino);
    if (this.#namespace.writable && withoutSetId(mode) !== mode) return UNCACHED;
    const backing = this.#namespace.backing(ino);
    if (backing === undefined) return 0;
    // What was written while the file was handed over is not among the pages that the kernel has of it.
    if (backing.kind === "file") return this.#add(register, backing.fd) || UNCACHED;
    const fd = this.#cache.openWhole(backing.hash);
    if (fd === undefined) {
      this.#outlet.want(ino);
      return 0;
    }
    try {
      return this.#add(register, fd);
    } finally {
      closeSync(fd);
    }
  }

  #add(register: Register, fd: number): number {
    try {
      return register.add(fd);
    } catch (error) {
      // What this process may not do once it may never do; anything else is this file's.
      if (isErrno(error, "EPERM", "EOPNOTSUPP", "ENOTTY", "ENOSYS")) this.#permitted = false;
      return 0;
    }
  }
}

/** True where a memory map of a handle with these flags can be written to and seen by others. */
function isMappable(flags: number): boolean {
  return (flags & ACCESS_MODE) === constants.O_RDWR;
}
