/**
 * Making files, directories and links below one destination directory, and nowhere else: every
 * name is checked, nothing is ever opened through a symbolic link, and every directory above a new
 * entry is one that this process made or found to be a real directory.
 */
import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  ftruncateSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  rmdirSync,
  symlinkSync,
  unlinkSync,
} from "node:fs";
import { type ByteString, DatamonError, display, ioError, isErrno, toBuffer, toFsPath } from "../../cas/index.ts";
import type { Inode } from "../../meta/index.ts";
import { setPathTimes, setTimes } from "./times.ts";
import type { LocalStat, LocalTree } from "./walk.ts";
import { readXattrs, replaceXattrs, sameXattrs, writeXattrs } from "./xattr.ts";

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY } = constants;
const PERMISSIONS = 0o7777;

/** Restores entries of a catalog below `tree`'s root. Failures are `DatamonError`s that name the path. */
export class Restorer {
  readonly tree: LocalTree;
  /** Whether an entry that stands where a new one goes is removed; a directory only where it is empty. */
  readonly replaces: boolean;
  readonly #asRoot = process.geteuid?.() === 0;
  readonly #warn: (message: string) => void;
  readonly #warned = new Set<string>();

  constructor(tree: LocalTree, replaces: boolean, onWarning?: (message: string) => void) {
    this.tree = tree;
    this.replaces = replaces;
    this.#warn = onWarning ?? (() => {});
  }

  /** Makes a directory that only this user may use for now, or takes one that is there where that is allowed. */
  directory(path: ByteString): void {
    this.#directory(path, 0o700, this.replaces);
  }

  /** Makes an ordinary directory, or takes one that is there as it is. */
  plainDirectory(path: ByteString): void {
    this.#directory(path, 0o777, true);
  }

  #directory(path: ByteString, mode: number, takesExisting: boolean): void {
    this.#do("make the directory", path, (native) => {
      try {
        mkdirSync(native, mode);
        return;
      } catch (error) {
        if (!isErrno(error, "EEXIST")) throw error;
      }
      const stat = lstatSync(native);
      if (stat.isDirectory() && takesExisting) {
        if (mode === 0o700 && (stat.mode & 0o700) !== 0o700) chmodSync(native, stat.mode | 0o700);
        return;
      }
      this.#makeWay(path, native);
      mkdirSync(native, mode);
    });
  }

  /** A new, empty file, open for writing. */
  create(path: ByteString): number {
    return this.#do("create", path, (native) => {
      const flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
      try {
        return openSync(native, flags, 0o600);
      } catch (error) {
        if (!isErrno(error, "EEXIST")) throw error;
        this.#makeWay(path, native);
        return openSync(native, flags, 0o600);
      }
    });
  }

  /** Opens a file that `create` made, to write more of it. */
  reopen(path: ByteString): number {
    return this.#do("open", path, (native) => openSync(native, O_WRONLY | O_NOFOLLOW));
  }

  /** Gives an open file its length; what is not written reads as zeros and takes no room. */
  extend(fd: number, path: ByteString, size: number): void {
    this.#do("write", path, () => ftruncateSync(fd, size));
  }

  /** Sets an open file's owner, mode, attributes and times, and closes it. */
  finishFile(fd: number, path: ByteString, inode: Inode): void {
    try {
      this.#do("set the attributes of", path, () => {
        if (this.#asRoot) this.#own(() => fchownSync(fd, inode.uid, inode.gid), path);
        if (inode.xattrs !== undefined) this.#reportXattrs(writeXattrs(fd, inode.xattrs), path);
        fchmodSync(fd, inode.mode & PERMISSIONS);
      });
      setTimes(fd, inode.mtimeNs, this.tree.absolute(path));
    } finally {
      closeSync(fd);
    }
  }

  /** Another name for a file that was restored. */
  link(from: ByteString, path: ByteString): void {
    const source = toFsPath(this.tree.absolute(from));
    this.#new("make the link", path, (native) => linkSync(source, native));
  }

  symlink(path: ByteString, inode: Inode): void {
    const { target } = inode;
    if (target === undefined || target === "" || target.includes("\0")) {
      throw new DatamonError("damaged", `the catalog has no target for the symbolic link ${display(path)}`);
    }
    this.#new("make the link", path, (native) => symlinkSync(toBuffer(target), native));
    if (this.#asRoot) this.#own(() => lchownSync(toFsPath(this.tree.absolute(path)), inode.uid, inode.gid), path);
    setPathTimes(this.tree.absolute(path), inode.mtimeNs);
  }

  /** Brings what differs in a path's owner, mode, attributes and times to those of `inode`, which is of its kind. */
  fix(path: ByteString, inode: Inode, stat: LocalStat | undefined): void {
    if (stat === undefined) return;
    const absolute = this.tree.absolute(path);
    const isLink = stat.kind === "symlink";
    let touched = false;
    this.#do("set the attributes of", path, (native) => {
      if (this.#asRoot && (stat.uid !== inode.uid || stat.gid !== inode.gid)) {
        this.#own(() => lchownSync(native, inode.uid, inode.gid), path);
        touched = true;
      }
      if (isLink) return;
      if (!sameXattrs(readXattrs(absolute), inode.xattrs)) {
        this.#reportXattrs(replaceXattrs(absolute, inode.xattrs), path);
      }
      // A change of owner takes the set-user-id bits away.
      if (touched || ((stat.mode ^ inode.mode) & PERMISSIONS) !== 0) chmodSync(native, inode.mode & PERMISSIONS);
    });
    if (stat.mtimeNs !== inode.mtimeNs) setPathTimes(absolute, inode.mtimeNs);
  }

  /** Removes a file or link; a directory only where it is empty. False where it is not empty. */
  remove(path: ByteString, isDirectory: boolean): boolean {
    return this.#do("remove", path, (native) => {
      try {
        if (isDirectory) rmdirSync(native);
        else unlinkSync(native);
      } catch (error) {
        if (isErrno(error, "ENOTEMPTY", "EEXIST")) return false;
        if (!isErrno(error, "ENOENT")) throw error;
      }
      return true;
    });
  }

  #new(doing: string, path: ByteString, make: (native: string | Buffer) => void): void {
    this.#do(doing, path, (native) => {
      try {
        make(native);
      } catch (error) {
        if (!isErrno(error, "EEXIST")) throw error;
        this.#makeWay(path, native);
        make(native);
      }
    });
  }

  #makeWay(path: ByteString, native: string | Buffer): void {
    if (!this.replaces) {
      throw new DatamonError("exists", `${this.tree.show(path)} is there already`);
    }
    if (lstatSync(native).isDirectory()) {
      if (this.remove(path, true)) return;
      throw new DatamonError(
        "exists",
        `${this.tree.show(path)} is a directory that is not empty where a file or link belongs`,
        {
          hint: "Move it away and run the command again.",
        },
      );
    }
    unlinkSync(native);
  }

  #do<T>(doing: string, path: ByteString, action: (native: string | Buffer) => T): T {
    try {
      return action(toFsPath(this.tree.absolute(path)));
    } catch (error) {
      throw ioError(`${doing} ${this.tree.show(path)}`, error);
    }
  }

  /** Inside a container root may be unable to give files away; the file is then as good as it gets. */
  #own(change: () => void, path: ByteString): void {
    try {
      change();
    } catch (error) {
      if (!isErrno(error, "EPERM", "EINVAL", "ENOTSUP", "EROFS")) throw error;
      this.#warnOnce("owner", `the owner of ${this.tree.show(path)} cannot be set here (and perhaps of others)`);
    }
  }

  #reportXattrs(failure: string | undefined, path: ByteString): void {
    if (failure === undefined) return;
    this.#warnOnce(
      `xattr ${failure}`,
      `the extended attributes of ${this.tree.show(path)} cannot be set here (${failure}; perhaps of others too)`,
    );
  }

  #warnOnce(subject: string, message: string): void {
    if (this.#warned.has(subject)) return;
    this.#warned.add(subject);
    this.#warn(message);
  }
}
