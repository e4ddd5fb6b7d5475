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
import { fallocate, syncfs } from "./libc.ts";

/** Descriptors that stay open although nobody has the inode open. */
const IDLE_DESCRIPTORS = 256;

/** Files that `syncAll` syncs one by one; beyond, it syncs the whole file system. */
const SYNC_ONE_BY_ONE = 256;

/** What a data file is, as of the last look. */
export interface DataStat {
  readonly size: number;
  readonly mtimeNs: bigint;
  readonly blocks: number;
}

/** The data files of one scratch, by inode number. A file appears when it is first written. */
export class DataFiles {
  readonly directory: string;
  readonly #pins = new Map<number, number>();
  /** Open descriptors of pinned inodes. */
  readonly #held = new Map<number, number>();
  /** Open descriptors of the others, the one that was let go first in front. */
  readonly #idle = new Map<number, number>();
  readonly #dirty = new Set<number>();
  #namesDirty = false;
  #allDirty = false;

  constructor(directory: string) {
    this.directory = directory;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
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
    return found && { size: Number(found.size), mtimeNs: found.mtimeNs, blocks: Number(found.blocks) };
  }

  /** A descriptor of a file that is there. It stays open while `ino` is pinned, and otherwise until others are opened. */
  descriptor(ino: number): number {
    return this.#open(ino, constants.O_RDWR);
  }

  /** Writes `data`, making the file where it is not there; returns how many bytes the disk took, 1 at least. */
  write(ino: number, offset: number, data: Buffer): number {
    const fd = this.#create(ino);
    let done = writeSync(fd, data, 0, data.length, offset);
    try {
      while (done < data.length) done += writeSync(fd, data, done, data.length - done, offset + done);
    } catch {
      // The caller learns how far it got, as from write(2); going on fails with the error itself.
    }
    return done;
  }

  /** Sets the size, making the file where it is not there. */
  truncate(ino: number, size: number): void {
    ftruncateSync(this.#create(ino), size);
  }

  /** fallocate(2), making the file where it is not there. */
  allocate(ino: number, mode: number, offset: number, length: number): void {
    fallocate(this.#create(ino), mode, offset, length);
  }

  /** Removes the file; one that is not there is no error. */
  remove(ino: number): void {
    this.#close(ino);
    this.#dirty.delete(ino);
    try {
      unlinkSync(this.path(ino));
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw error;
    }
  }

  /** The content of `ino`, and its file's name, are on the disk when this returns. */
  sync(ino: number): void {
    if (this.#dirty.has(ino) || this.#allDirty) {
      if (this.stat(ino) !== undefined) fdatasyncSync(this.descriptor(ino));
      this.#dirty.delete(ino);
    }
    this.#syncNames();
  }

  /** All data files are on the disk when this returns. */
  syncAll(): void {
    if (this.#allDirty) this.#syncFileSystem();
    else for (const ino of this.#dirty) this.sync(ino);
    this.#allDirty = false;
    this.#dirty.clear();
    this.#syncNames();
  }

  close(): void {
    for (const fd of [...this.#held.values(), ...this.#idle.values()]) closeSync(fd);
    this.#held.clear();
    this.#idle.clear();
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
