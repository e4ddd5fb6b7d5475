import type Database from "better-sqlite3";
import {
  type ByteString,
  bytesFrom,
  DatamonError,
  type Extent,
  type FileContent,
  type Hash,
  joinPath,
  MAX_BLOB_SIZE,
} from "../../cas/index.ts";
import { hashFile } from "./hashing.ts";
import { type CatalogTotals, type Dentry, type Inode, isDirectoryMode, kindOf, ROOT_INO } from "./model.ts";
import { TreeReader } from "./reader.ts";
import { catalogError, damaged, openDatabase } from "./schema.ts";
import { readTotals } from "./totals.ts";
import { validateCatalog } from "./validate.ts";

/** Rows fetched at once by what goes through a whole table. */
const PAGE = 1000;
/** Subdirectories that a walk remembers for each directory it is in. */
const SUBDIRECTORIES = 256;

/** An entry met by a walk. */
export interface WalkEntry {
  /** Path from the root, without a leading slash. */
  readonly path: ByteString;
  readonly inode: Inode;
  /** Inode number of the directory that holds it. */
  readonly parent: number;
  readonly name: ByteString;
}

/** A directory whose subdirectories a walk is going through. */
interface Level {
  readonly ino: number;
  readonly path: ByteString;
  pending: { name: ByteString; ino: number }[];
  after: ByteString | undefined;
}

/**
 * A bundle's file tree, open for reading. Synchronous; any number may be open on one file, in any
 * thread. The file must not be changed while it is open.
 *
 * Bytes that cannot be those of a catalog make every method throw a `DatamonError` "damaged" that
 * names the file. Only a matching `expectedHash` together with `validate` (once, when the catalog
 * first comes to this machine) makes sure that nothing wrong is ever read.
 */
export class Catalog {
  /** Path of the SQLite file. */
  readonly file: string;
  readonly #database: Database.Database;
  readonly #tree: TreeReader;
  readonly #totals: CatalogTotals;
  readonly #parent: Database.Statement<unknown[], [number | null]>;
  readonly #extents: Database.Statement<unknown[], [number, string, number, number]>;
  readonly #subdirectories: Database.Statement<unknown[], [Buffer, number]>;
  /** For those who look ahead. */
  #following: Database.Statement<unknown[], [number, number, number, number, number]> | undefined;
  #blobHash: Database.Statement<[number], string> | undefined;

  private constructor(file: string, database: Database.Database) {
    this.file = file;
    this.#database = database;
    this.#tree = new TreeReader(database);
    this.#totals = readTotals(database);
    this.#parent = database.prepare<unknown[], [number | null]>("SELECT parent FROM inode WHERE ino = +?").raw();
    this.#extents = database
      .prepare<unknown[], [number, string, number, number]>(
        `SELECT e.start, (SELECT lower(hex(b.hash)) FROM blob b WHERE b.id = e.blob), e.offset, e.length
         FROM extent e WHERE e.ino = +? AND e.start > +? AND e.start < +? ORDER BY e.start`,
      )
      .raw();
    this.#subdirectories = database
      .prepare<unknown[], [Buffer, number]>(
        `SELECT d.name, d.ino FROM dentry d JOIN inode i ON i.ino = d.ino
         WHERE d.parent = +? AND d.name > +? AND (i.mode & 61440) = 16384 ORDER BY d.name LIMIT ${SUBDIRECTORIES}`,
      )
      .raw();
  }

  /**
   * Opens a catalog's file.
   *
   * @param options.expectedHash what the file must hash to; it is read whole to find out
   * @throws DatamonError "damaged", "not-found", "unsupported" (a newer format), "denied", "io"
   */
  static open(file: string, options: { expectedHash?: Hash } = {}): Catalog {
    if (options.expectedHash !== undefined) {
      const actual = hashFile(file);
      if (actual !== options.expectedHash) throw damaged(file, `its hash is ${actual}, not ${options.expectedHash}`);
    }
    const database = openDatabase(file);
    try {
      return new Catalog(file, database);
    } catch (error) {
      database.close();
      throw catalogError(file, error);
    }
  }

  /** The inode with this number. */
  inode(ino: number): Inode | undefined {
    return this.#guard(() => this.#tree.inode(ino));
  }

  /** What `name` names in the directory `parent`. */
  lookup(parent: number, name: ByteString): Inode | undefined {
    return this.#guard(() => this.#tree.lookup(parent, name));
  }

  /** At most `limit` entries of a directory after the name `after`, in byte order of names. */
  readdir(parent: number, after: ByteString | undefined, limit: number): Dentry[] {
    return this.#guard(() => this.#tree.readdir(parent, after, limit));
  }

  /** The directory that holds a directory or a file with one name; undefined for the root and for what has several names. */
  parent(ino: number): number | undefined {
    return this.#guard(() => this.#parent.get(ino)?.[0] ?? undefined);
  }

  /** The extents of a file that overlap the bytes [start, end), in order. */
  extents(ino: number, start = 0, end = Number.MAX_SAFE_INTEGER): Extent[] {
    return this.#guard(() => {
      const extents: Extent[] = [];
      // No extent is longer than a blob, which bounds how far before `start` one that overlaps can begin.
      for (const [from, blob, offset, length] of this.#extents.all(ino, start - MAX_BLOB_SIZE, end)) {
        if (typeof blob !== "string") throw damaged(this.file, `inode ${ino} has an extent in no blob`);
        if (from + length > start) extents.push({ start: from, blob, offset, length });
      }
      return extents;
    });
  }

  /**
   * The extents of this file from `start` on and of those after it, in the order of inode numbers,
   * which is path order as far as a catalog was built at once; of extents next to each other in one
   * blob only the first.
   */
  *following(ino: number, start: number): Generator<{ ino: number; extent: Extent }> {
    this.#following ??= this.#database
      .prepare<unknown[], [number, number, number, number, number]>(
        `SELECT ino, start, blob, offset, length FROM extent
         WHERE (ino, start) > (+?, +?) ORDER BY ino, start LIMIT ${PAGE}`,
      )
      .raw();
    this.#blobHash ??= this.#database
      .prepare<[number], string>("SELECT lower(hex(hash)) FROM blob WHERE id = +?")
      .pluck();
    let after: [number, number] = [ino, start - 1];
    let last: number | undefined;
    for (;;) {
      const rows = this.#guard(() => this.#following!.all(...after));
      for (const [file, from, id, offset, length] of rows) {
        if (id === last) continue;
        last = id;
        const blob = this.#guard(() => this.#blobHash!.get(id));
        if (blob === undefined) throw damaged(this.file, `inode ${file} has an extent in no blob`);
        yield { ino: file, extent: { start: from, blob, offset, length } };
      }
      if (rows.length < PAGE) return;
      after = [rows[PAGE - 1]![0], rows[PAGE - 1]![1]];
    }
  }

  /** Number and total size of the files of at least `size` bytes; reads every inode. */
  filesFrom(size: number): { files: number; bytes: number } {
    return this.#guard(
      () =>
        this.#database
          .prepare<[number], { files: number; bytes: number }>(
            `SELECT count(*) AS files, coalesce(sum(size), 0) AS bytes FROM inode
             WHERE size >= ? AND (mode & 61440) = 32768`,
          )
          .get(size)!,
    );
  }

  /** The whole content of the file `ino`. Throws "not-found" where there is no such file. */
  content(ino: number): FileContent {
    const inode = this.inode(ino);
    if (inode?.hash === undefined || kindOf(inode.mode) !== "file") {
      throw new DatamonError("not-found", `catalog ${this.file} has no file with inode number ${ino}`);
    }
    return { hash: inode.hash, size: inode.size, extents: this.extents(ino) };
  }

  /** What is at `path` (no leading slash; the empty path is the root). Symbolic links are not followed. */
  resolve(path: ByteString): Inode | undefined {
    let inode = this.inode(ROOT_INO);
    for (const name of path.split("/")) {
      if (name === "") continue;
      if (inode === undefined || !isDirectoryMode(inode.mode)) return undefined;
      inode = this.lookup(inode.ino, name as ByteString);
    }
    return inode;
  }

  /**
   * Every entry in path order: a directory's entries in byte order of names, then the contents of
   * its subdirectories one after the other. The root is not included. Memory is bounded by the
   * depth of the tree.
   */
  *walk(): Generator<WalkEntry> {
    const levels: Level[] = [];
    const open = new Set<number>();
    let next: { ino: number; path: ByteString } | undefined = { ino: ROOT_INO, path: "" as ByteString };
    while (next !== undefined) {
      const { ino, path }: { ino: number; path: ByteString } = next;
      if (open.has(ino)) throw damaged(this.file, `directory ${ino} is inside itself`);
      let subdirectories = false;
      let after: ByteString | undefined;
      for (;;) {
        const page = this.readdir(ino, after, PAGE);
        for (const { name, inode } of page) {
          const kind = kindOf(inode.mode);
          if (kind === undefined) throw damaged(this.file, `inode ${inode.ino} is of no known type`);
          if (kind === "directory") subdirectories = true;
          yield { path: joinPath(path, name), inode, parent: ino, name };
        }
        if (page.length < PAGE) break;
        after = page[PAGE - 1]!.name;
      }
      if (subdirectories) {
        levels.push({ ino, path, pending: [], after: undefined });
        open.add(ino);
      }
      next = this.#nextDirectory(levels, open);
    }
  }

  #nextDirectory(levels: Level[], open: Set<number>): { ino: number; path: ByteString } | undefined {
    for (;;) {
      const level = levels[levels.length - 1];
      if (level === undefined) return undefined;
      if (level.pending.length === 0) {
        const after = Buffer.from(level.after ?? "", "latin1");
        const rows = this.#guard(() => this.#subdirectories.all(level.ino, after));
        level.pending = rows.map(([name, ino]) => ({ name: bytesFrom(name), ino })).reverse();
      }
      const child = level.pending.pop();
      if (child !== undefined) {
        level.after = child.name;
        return { ino: child.ino, path: joinPath(level.path, child.name) };
      }
      levels.pop();
      open.delete(level.ino);
    }
  }

  /** Content hashes of all files, by inode number. */
  *contentHashes(): Generator<{ ino: number; hash: Hash }> {
    const page = this.#database
      .prepare<unknown[], [number, string]>(
        `SELECT ino, lower(hex(hash)) FROM inode WHERE ino > +? AND (mode & 61440) = 32768 ORDER BY ino LIMIT ${PAGE}`,
      )
      .raw();
    for (let after = 0; ; ) {
      const rows = this.#guard(() => page.all(after));
      for (const [ino, hash] of rows) yield { ino, hash };
      if (rows.length < PAGE) return;
      after = rows[PAGE - 1]![0];
    }
  }

  /** The blobs that the files are made of. `size` is where the last use known to this catalog ends, in bytes. */
  *blobs(): Generator<{ hash: Hash; size: number }> {
    const page = this.#database
      .prepare<unknown[], [number, string, number]>(
        `SELECT id, lower(hex(hash)), size FROM blob WHERE id > +? ORDER BY id LIMIT ${PAGE}`,
      )
      .raw();
    for (let after = 0; ; ) {
      const rows = this.#guard(() => page.all(after));
      for (const [, hash, size] of rows) yield { hash, size };
      if (rows.length < PAGE) return;
      after = rows[PAGE - 1]![0];
    }
  }

  /** The largest inode number in use. */
  maxIno(): number {
    return this.#guard(() => this.#database.prepare<[], number>("SELECT max(ino) FROM inode").pluck().get()!);
  }

  /** What the catalog says about the whole of its tree. */
  summary(): CatalogTotals {
    return this.#totals;
  }

  /**
   * Checks everything that readers rely on, hashes of directories included, in time that grows with
   * the tree (some seconds for a million files) and bounded memory. Throws "damaged".
   */
  validate(): void {
    this.#guard(() => validateCatalog(this.file, this.#database, this.#tree, this.#totals));
  }

  /** Closes the file. The catalog cannot be used any more. */
  close(): void {
    this.#database.close();
  }

  #guard<T>(read: () => T): T {
    try {
      return read();
    } catch (error) {
      throw catalogError(this.file, error);
    }
  }
}
