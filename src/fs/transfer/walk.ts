/** Reading local trees: directories in the byte order of their names, entries without following links. */
import { lstatSync, readdirSync, readlinkSync, statSync } from "node:fs";
import { resolve } from "node:path";
import {
  type ByteString,
  bytesOf,
  DatamonError,
  display,
  ioError,
  isErrno,
  type Source,
  toFsPath,
} from "../../cas/index.ts";
import { type Attributes, type Kind, kindOf } from "../../meta/index.ts";
import { readXattrs } from "./xattr.ts";

/** The name at the top of a tree that belongs to Datamon: it is neither uploaded nor downloaded nor compared. */
export const OWN_NAME = ".datamon" as ByteString;

/** What a local name stands for. Sockets, fifos and devices are `other`. */
export type LocalKind = Kind | "other";

/** A local entry as `lstat` shows it. */
export interface LocalStat {
  kind: LocalKind;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  mtimeNs: bigint;
  ctimeNs: bigint;
  ino: bigint;
  dev: bigint;
  nlink: number;
}

/** A tree that a bundle can be made of: paths are relative to its root, which is "". */
export interface SourceTree {
  /** What the root is known by. */
  readonly root: ByteString;
  /** How much there is in all, where that is known beforehand. */
  readonly totals?: { readonly totalFiles: number; readonly totalBytes: number };
  /** The names in a directory, in byte order, `.datamon` at the top left out. */
  names(path: ByteString): ByteString[];
  /** The entry at `path`, undefined where there is none. */
  stat(path: ByteString): LocalStat | undefined;
  /** Where a symbolic link points. */
  target(path: ByteString): ByteString;
  /** The extended attributes of a file or directory, undefined where it has none. */
  xattrs(path: ByteString): Map<ByteString, Buffer> | undefined;
  /** Where a file's content is read, which `stat` was told of. */
  source(path: ByteString, stat: LocalStat): Source;
  /** An entry's path for a message. */
  show(path: ByteString): string;
}

/** A directory of the local file system whose content is a tree. */
export class LocalTree implements SourceTree {
  /** Absolute path of the root, links in it resolved by the system only. */
  readonly root: ByteString;
  /** What messages call it. */
  readonly shown: string;

  constructor(root: ByteString) {
    this.root = root;
    this.shown = display(root);
  }

  /** The tree at `path`, which may be a link to a directory. Throws "usage" where it is not a directory. */
  static open(path: string): LocalTree {
    const root = bytesOf(resolve(path));
    let isDirectory: boolean;
    try {
      isDirectory = statSync(toFsPath(root)).isDirectory();
    } catch (error) {
      throw ioError(`open ${display(root)}`, error);
    }
    if (!isDirectory) {
      throw new DatamonError("usage", `${display(root)} is not a directory`, {
        hint: "Give the folder that holds it; a name filter or a file list picks single files.",
      });
    }
    return new LocalTree(root);
  }

  /** Absolute path of an entry; "" is the root. */
  absolute(path: ByteString): ByteString {
    if (path === "") return this.root;
    return (this.root === "/" ? `/${path}` : `${this.root}/${path}`) as ByteString;
  }

  /** The names in a directory, in byte order, `.datamon` at the top left out. */
  names(path: ByteString): ByteString[] {
    let names: ByteString[];
    try {
      names = readdirSync(toFsPath(this.absolute(path)), "latin1") as ByteString[];
    } catch (error) {
      throw ioError(`list ${this.show(path)}`, error);
    }
    if (path === "") names = names.filter((name) => name !== OWN_NAME);
    return names.sort();
  }

  /** The entry at `path`, undefined where there is none. The root itself is followed where it is a link. */
  stat(path: ByteString): LocalStat | undefined {
    const native = toFsPath(this.absolute(path));
    try {
      const stat =
        path === ""
          ? statSync(native, { bigint: true, throwIfNoEntry: false })
          : lstatSync(native, { bigint: true, throwIfNoEntry: false });
      if (stat === undefined) return undefined;
      const mode = Number(stat.mode);
      return {
        kind: kindOf(mode) ?? "other",
        mode,
        uid: Number(stat.uid),
        gid: Number(stat.gid),
        size: Number(stat.size),
        mtimeNs: stat.mtimeNs,
        ctimeNs: stat.ctimeNs,
        ino: stat.ino,
        dev: stat.dev,
        nlink: Number(stat.nlink),
      };
    } catch (error) {
      if (isErrno(error, "ENOTDIR")) return undefined;
      throw ioError(`read ${this.show(path)}`, error);
    }
  }

  /** Where a symbolic link points. */
  target(path: ByteString): ByteString {
    try {
      return readlinkSync(toFsPath(this.absolute(path)), "latin1") as ByteString;
    } catch (error) {
      throw ioError(`read the link ${this.show(path)}`, error);
    }
  }

  xattrs(path: ByteString): Map<ByteString, Buffer> | undefined {
    return readXattrs(this.absolute(path));
  }

  source(path: ByteString, { size }: LocalStat): Source {
    return { kind: "path", path: this.absolute(path), size };
  }

  /** An entry's path for a message. */
  show(path: ByteString): string {
    return display(this.absolute(path));
  }
}

/** The attributes that a catalog keeps of an entry. */
export function attributesOf(
  { mode, uid, gid, mtimeNs }: Pick<LocalStat, "mode" | "uid" | "gid" | "mtimeNs">,
  xattrs: Map<ByteString, Buffer> | undefined,
): Attributes {
  return xattrs === undefined ? { mode, uid, gid, mtimeNs } : { mode, uid, gid, mtimeNs, xattrs };
}
