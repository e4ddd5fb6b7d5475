/** The data files of a scratch: what was written into an inode, at the offsets it was written to. */

import {
  closeSync,
  constants,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { isErrno } from "../../cas/index.ts";
import { FsError } from "../errno.ts";
import { FALLOC_PUNCH_HOLE } from "../namespace.ts";
import { fallocate, setModified, syncfs } from "./libc.ts";
import { Space } from "./space.ts";

/** Descriptors that stay open although nobody has the inode open. */
const IDLE_DESCRIPTORS = 256;

/** Files that `syncAll` syncs one by one; beyond, it syncs the whole file system. */
const SYNC_ONE_BY_ONE = 256;

/** What a data file is, as of the last look. */
export interface DataStat {
  readonly size: number;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
  readonly blocks: number;
}

/** The data files of one scratch, by inode number. A file appears when it is first written. */
export class DataFiles {
  readonly directory: string;
  /** Where there is a limit. */
  readonly space: Space | undefined;
  readonly #pins = new Map<number, number>();
  /** Open descriptors of pinned inodes. */
  readonly #held = new Map<number, number>();
  /** Open descriptors of the others, the one that was let go first in front. */
  readonly #idle = new Map<number, number>();
  readonly #dirty = new Set<number>();
  /** Those that others write to. */
  readonly #shared = new Set<number>();
  #namesDirty = false;
  #allDirty = false;

  /** @param limit bytes that data and `journal` may take together */
  constructor(directory: string, journal?: string, limit?: number) {
    this.directory = directory;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    if (journal !== undefined && limit !== undefined) this.space = new Space(limit, directory, journal);
  }

  path(ino: number): string {
    return join(this.directory, String(ino));
  }

  /** Keeps the descriptor of `ino` open, once it is, until as many calls of `unpin`: plans may hold it. */
  pin(ino: number): void {
    this.#pins.set(ino, (this.#pins.get(ino) ?? 0) + 1);
    const fd = this.#idle.get(ino);
    if (fd === undefined) return;
    this.#idle.delete(ino);
    this.#held.set(ino, fd);
  }

  unpin(ino: number): void {
    const pins = (this.#pins.get(ino) ?? 0) - 1;
    if (pins > 0) {
      this.#pins.set(ino, pins);
      return;
    }
    this.#pins.delete(ino);
    const fd = this.#held.get(ino);
    if (fd === undefined) return;
    this.#held.delete(ino);
    this.#makeRoom();
    this.#idle.set(ino, fd);
  }

  stat(ino: number): DataStat | undefined {
    const fd = this.#known(ino);
    const found =
      fd === undefined
        ? statSync(this.path(ino), { bigint: true, throwIfNoEntry: false })
        : fstatSync(fd, { bigint: true });
    return (
      found && {
        size: Number(found.size),
        mtimeNs: found.mtimeNs,
        ctimeNs: found.ctimeNs,
        blocks: Number(found.blocks),
      }
    );
  }

  /** A descriptor of a file that is there. It stays open while `ino` is pinned, and otherwise until others are opened. */
  descriptor(ino: number): number {
    return this.#open(ino, constants.O_RDWR);
  }

  /** Writes `data`, making the file where it is not there; returns how many bytes the disk took, 1 at least. */
  write(ino: number, offset: number, data: Buffer): number {
    const fd = this.#create(ino);
    const length = this.space?.fitting(fd, offset, data.length) ?? data.length;
    return this.#counted(fd, () => {
      let done = writeSync(fd, data, 0, length, offset);
      try {
        while (done < length) done += writeSync(fd, data, done, length - done, offset + done);
      } catch {
        // The caller learns how far it got, as from write(2); going on fails with the error itself.
      }
      return done;
    });
  }

  /** Sets the size, making the file where it is not there. */
  truncate(ino: number, size: number): void {
    const fd = this.#create(ino);
    this.#counted(fd, () => ftruncateSync(fd, size));
  }

  /** fallocate(2), making the file where it is not there. */
  allocate(ino: number, mode: number, offset: number, length: number): void {
    const fd = this.#create(ino);
    const frees = (mode & FALLOC_PUNCH_HOLE) !== 0;
    if (!frees && (this.space?.fitting(fd, offset, length) ?? length) < length) throw new FsError("ENOSPC");
    this.#counted(fd, () => fallocate(fd, mode, offset, length));
  }

  /** Sets the modification time, making the file where it is not there. */
  setModified(ino: number, timeNs: bigint): void {
    setModified(this.#create(ino), timeNs);
  }

  /**
   * A descriptor of the file of a pinned inode, which is made where it is not there, for others to
   * read and write through until `unshare`.
   */
  share(ino: number): number {
    const fd = this.#create(ino);
    this.#shared.add(ino);
    return fd;
  }

  /** Nobody else uses the file any more; false where nobody did. */
  unshare(ino: number): boolean {
    if (!this.#shared.delete(ino)) return false;
    this.#create(ino);
    return true;
  }

  isShared(ino: number): boolean {
    return this.#shared.has(ino);
  }

  /** Removes the file; one that is not there is no error. */
  remove(ino: number): void {
    this.#close(ino);
    this.#dirty.delete(ino);
    this.#shared.delete(ino);
    const blocks = this.space && (statSync(this.path(ino), { throwIfNoEntry: false })?.blocks ?? 0);
    try {
      unlinkSync(this.path(ino));
      if (blocks !== undefined) this.space?.add(-blocks);
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw error;
    }
  }

  /** The content of `ino`, and its file's name, are on the disk when this returns. */
  sync(ino: number): void {
    if (this.#dirty.has(ino) || this.#allDirty || this.#shared.has(ino)) {
      if (this.stat(ino) !== undefined) fdatasyncSync(this.descriptor(ino));
      this.#dirty.delete(ino);
    }
    this.#syncNames();
  }

  /** All data files are on the disk when this returns. */
  syncAll(): void {
    if (this.#allDirty) this.#syncFileSystem();
    else for (const ino of new Set([...this.#dirty, ...this.#shared])) this.sync(ino);
    this.#allDirty = false;
    this.#dirty.clear();
    this.#syncNames();
  }

  close(): void {
    for (const fd of [...this.#held.values(), ...this.#idle.values()]) closeSync(fd);
    this.#held.clear();
    this.#idle.clear();
  }

  /** Makes a change to a file and counts what it took of the limit. */
  #counted<T>(fd: number, change: () => T): T {
    if (this.space === undefined) return change();
    const before = fstatSync(fd).blocks;
    try {
      return change();
    } finally {
      this.space.add(fstatSync(fd).blocks - before);
    }
  }

  #create(ino: number): number {
    const fd = this.#open(ino, constants.O_RDWR | constants.O_CREAT);
    if (!this.#allDirty) {
      this.#dirty.add(ino);
      if (this.#dirty.size > SYNC_ONE_BY_ONE) {
        this.#allDirty = true;
        this.#dirty.clear();
      }
    }
    return fd;
  }

  #known(ino: number): number | undefined {
    return this.#held.get(ino) ?? this.#idle.get(ino);
  }

  #open(ino: number, flags: number): number {
    const known = this.#known(ino);
    if (known !== undefined) return known;
    const fd = openSync(this.path(ino), flags, 0o600);
    if ((flags & constants.O_CREAT) !== 0) this.#namesDirty = true;
    if (this.#pins.has(ino)) {
      this.#held.set(ino, fd);
    } else {
      this.#makeRoom();
      this.#idle.set(ino, fd);
    }
    return fd;
  }

  #makeRoom(): void {
    if (this.#idle.size < IDLE_DESCRIPTORS) return;
    for (const ino of this.#idle.keys()) {
      this.#close(ino);
      return;
    }
  }

  #close(ino: number): void {
    const fd = this.#known(ino);
    if (fd === undefined) return;
    this.#held.delete(ino);
    this.#idle.delete(ino);
    closeSync(fd);
  }

  #syncNames(): void {
    if (!this.#namesDirty) return;
    this.#withDirectory(fsyncSync);
    this.#namesDirty = false;
  }

  #syncFileSystem(): void {
    try {
      this.#withDirectory(syncfs);
    } catch {
      for (const name of readdirSync(this.directory)) {
        const fd = openSync(join(this.directory, name), "r+");
        try {
          fdatasyncSync(fd);
        } finally {
          closeSync(fd);
        }
      }
    }
  }

  #withDirectory(use: (fd: number) => void): void {
    const fd = openSync(this.directory, "r");
    try {
      use(fd);
    } finally {
      closeSync(fd);
    }
  }
}
