import type { ByteString, Hash } from "../../cas/index.ts";

/** What an entry of a tree is. */
export type Kind = "file" | "directory" | "symlink";

/** Inode number of a tree's root directory. */
export const ROOT_INO = 1;

/** What a catalog keeps of every inode besides its content. */
export interface Attributes {
  /** `st_mode` with the type bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Modification time in nanoseconds since 1970; what does not fit 64 signed bits is stored as the nearest that does. */
  readonly mtimeNs: bigint;
  /** Extended attributes by name; absent where there are none. */
  readonly xattrs?: Map<ByteString, Buffer>;
}

/** A file, directory or symbolic link of a catalog. */
export interface Inode extends Attributes {
  readonly ino: number;
  /** Files: bytes of content. Symbolic links: length of the target. Directories: 0. */
  readonly size: number;
  /** Names; of a directory 2 and one for each subdirectory. */
  readonly nlink: number;
  /** Content hash of a file, tree hash of a directory, undefined for a symbolic link. */
  readonly hash: Hash | undefined;
  /** Target of a symbolic link. */
  readonly target: ByteString | undefined;
}

/** A name in a directory, and what it names. */
export interface Dentry {
  readonly name: ByteString;
  readonly inode: Inode;
}

/** What a catalog says about the whole of its tree. An inode with several names counts once. */
export interface CatalogTotals {
  /** Tree hash of the root directory; the root's own attributes are no part of it. */
  readonly tree: Hash;
  readonly files: number;
  /** Directories, the root included. */
  readonly directories: number;
  readonly symlinks: number;
  /** Content bytes of all files. */
  readonly bytes: number;
}

/** A finished catalog. */
export interface CatalogSummary extends CatalogTotals {
  /** Path of the SQLite file. */
  readonly file: string;
  /** BLAKE3-256 of the SQLite file. */
  readonly hash: Hash;
}

const S_IFMT = 0o170000;

/** The type bits of each kind. */
export const TYPE_BITS: Readonly<Record<Kind, number>> = { file: 0o100000, directory: 0o040000, symlink: 0o120000 };

/** The kind that a mode's type bits tell, or undefined for a type that catalogs do not hold. */
export function kindOf(mode: number): Kind | undefined {
  switch (mode & S_IFMT) {
    case TYPE_BITS.file:
      return "file";
    case TYPE_BITS.directory:
      return "directory";
    case TYPE_BITS.symlink:
      return "symlink";
    default:
      return undefined;
  }
}

/** True where `mode` is a directory's. */
export function isDirectoryMode(mode: number): boolean {
  return (mode & S_IFMT) === TYPE_BITS.directory;
}
