/** From the paths that libfuse's path interface speaks to the inode numbers that namespaces speak. */

import { LRUCache } from "lru-cache";
import { type ByteString, bytesOf } from "../../../cas/index.ts";
import { FsError } from "../../errno.ts";
import { type Attr, type Namespace, ROOT_INO } from "../../namespace.ts";

/** Directories whose inode numbers are remembered. */
const REMEMBERED = 4096;

/** What libfuse renames a file to that is removed while it is open: the kernel's node number and a counter. */
const HIDDEN_NAME = /^\.fuse_hidden[0-9a-f]{16}$/;

/** A name and the directory it stands in. */
export interface Place {
  readonly parent: number;
  readonly name: ByteString;
}

/**
 * Resolves paths such as `/a/b` against a namespace, without following symbolic links.
 *
 * It also keeps the names that libfuse invents for files removed while open: libfuse sends
 * `rename(path, .fuse_hidden…)` instead of an unlink, uses that name for everything that comes
 * through the open descriptors, and unlinks it after the last one. Such a name belongs to no
 * directory of the namespace; here it stands for an inode, wherever its directory has gone.
 */
export class Paths {
  readonly #namespace: Namespace;
  readonly #directories = new LRUCache<string, number>({ max: REMEMBERED });
  readonly #hidden = new Map<string, number>();

  constructor(namespace: Namespace) {
    this.#namespace = namespace;
  }

  /** What stands at `path`. Throws `FsError` ENOENT, ENOTDIR. */
  attr(path: string): Attr {
    if (path === "/") return this.#namespace.getattr(ROOT_INO);
    const hidden = this.#hidden.get(lastName(path));
    if (hidden !== undefined) return this.#namespace.getattr(hidden);
    const { parent, name } = this.place(path);
    return this.#namespace.lookup(parent, name);
  }

  ino(path: string): number {
    return path === "/" ? ROOT_INO : (this.#hidden.get(lastName(path)) ?? this.attr(path).ino);
  }

  /** The directory and the name of what stands, or is to stand, at `path`. */
  place(path: string): Place {
    const slash = path.lastIndexOf("/");
    return { parent: this.#directory(path.slice(0, slash)), name: bytesOf(path.slice(slash + 1)) };
  }

  /**
   * The place of something new. EILSEQ where the name was not UTF-8: the package decodes names and
   * leaves U+FFFD for every byte that it cannot, so that the file would get another name.
   */
  newPlace(path: string): Place {
    if (lastName(path).includes("\ufffd")) throw new FsError("EILSEQ");
    return this.place(path);
  }

  /** To be called when the directory at `path`, and with it all below it, got another path or none. */
  moved(): void {
    this.#directories.clear();
  }

  /** True where a rename to `newPath` is libfuse's way to say that an open file was removed. */
  isHiding(newPath: string): boolean {
    return HIDDEN_NAME.test(lastName(newPath));
  }

  /** Lets the hidden name stand for an inode that has lost its own. */
  hide(path: string, ino: number): void {
    this.#hidden.set(lastName(path), ino);
  }

  /** Forgets a hidden name; false where `path` is none. */
  unhide(path: string): boolean {
    return this.#hidden.delete(lastName(path));
  }

  /** @param path without the slash at its end; the root is the empty string */
  #directory(path: string): number {
    if (path === "") return ROOT_INO;
    const known = this.#directories.get(path);
    if (known !== undefined) return known;
    const { parent, name } = this.place(path);
    const { ino } = this.#namespace.lookup(parent, name);
    this.#directories.set(path, ino);
    return ino;
  }
}

function lastName(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
