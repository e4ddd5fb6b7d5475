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
  readFileSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { isErrno } from "../../cas/index.ts";
import { FsError } from "../errno.ts";
import { FALLOC_PUNCH_HOLE } from "../namespace.ts";
import { fallocate, setModified, syncfs } from "./libc.ts";
import type { Space } from "./space.ts";

/** Descriptors that stay open although nobody has the inode open, and what share of all they may be. */
const IDLE_DESCRIPTORS = 256;
const IDLE_SHARE = 1 / 8;

/** Descriptors that are left to the rest of the daemon: for stores, the cache and what asks about the mount. */
const OTHER_DESCRIPTORS = 128;

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
  /** How many files this process may have open. */
  readonly #descriptors = descriptorLimit();
  readonly #dirty = new Set<number>();
  /** Those that others write to. */
  readonly #shared = new Set<number>();
  #namesDirty = false;
  #allDirty = false;

  /** @param space what they may take of the disk, where that has a limit */
  constructor(directory: string, space?: Space) {
    this.directory = directory;
    this.space = space;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  /**
   * The data files of a layer above, in `directory`. Those of `carried` are its own from here on, and
   * this one is to have others of their names; what is open stays open in both.
   */
  above(directory: string, carried: Iterable<number>): DataFiles {
    const above = new DataFiles(directory, this.space);
    for (const [ino, pins] of this.#pins) above.#pins.set(ino, pins);
    for (const ino of carried) {
      const fd = this.#known(ino);
      if (fd !== undefined) (this.#held.delete(ino) ? above.#held : above.#idle).set(ino, fd);
      this.#idle.delete(ino);
      if (this.#shared.delete(ino)) above.#shared.add(ino);
      above.#dirty.add(ino);
    }
    return above;
  }

  /** The inodes whose files others write to. */
  shared(): ReadonlySet<number> {
    return this.#shared;
  }

  /** False where this process has as many files open for programs as it may. */
  get hasRoom(): boolean {
    return this.#held.size < Math.max(this.#descriptors - OTHER_DESCRIPTORS, this.#descriptors / 4);
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

  /**
   * Removes the files of inodes from `first` on, numbers that no inode has yet: they are of changes
   * that a journal whose end was torn away does not know.
   */
  removeFrom(first: number): void {
    for (const name of readdirSync(this.directory)) if (Number(name) >= first) this.remove(Number(name));
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
    if (!this.hasRoom) throw tooManyFiles(this.#descriptors);
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
    if (this.#idle.size < Math.min(IDLE_DESCRIPTORS, this.#descriptors * IDLE_SHARE)) return;
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

function descriptorLimit(): number {
  try {
    const limits = readFileSync("/proc/self/limits", "latin1");
    return Number(/^Max open files +(\d+)/m.exec(limits)?.[1] ?? Number.POSITIVE_INFINITY);
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

/** The program has done nothing wrong: ENFILE, and the log says what to do. */
function tooManyFiles(limit: number): Error {
  const message = `this process may have ${limit} files open: too few for those that programs have open for writing; raise ulimit -n`;
  return Object.assign(new Error(message), { code: "ENFILE" });
}
