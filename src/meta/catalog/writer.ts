import { closeSync, constants, copyFileSync, openSync, rmSync } from "node:fs";
import { resolve } from "node:path";
import { setImmediate } from "node:timers/promises";
import Database from "better-sqlite3";
import { type ByteString, type FileContent, type Hash, ioError, isValidName } from "../../cas/index.ts";
import { BlobTable } from "./blob-table.ts";
import { Changes } from "./changes.ts";
import { DirectoryHasher, hashDirectory, hashFile } from "./hashing.ts";
import { type Attributes, type CatalogSummary, type Kind, kindOf, ROOT_INO } from "./model.ts";
import { TreeReader } from "./reader.ts";
import { RowInserter } from "./row-inserter.ts";
import { APPLICATION_ID, catalogError, checkSchema, FORMAT_VERSION, PAGE_SIZE, TABLES } from "./schema.ts";
import { readTotals, writeTotals } from "./totals.ts";
import { encodeXattrs } from "./xattrs.ts";

/** Memory that SQLite may use for pages, in KiB. */
const CACHE_KIB = 16 * 1024;
/** Directories fetched at once, and entries after which other work of the process gets its turn. */
const PAGE = 1000;
const TURN = 20_000;

const MIN_INT64 = -(2n ** 63n);
const MAX_INT64 = 2n ** 63n - 1n;

const NO_HASH = Buffer.alloc(32);

/** The root directory of a new catalog until `setAttributes` says otherwise. */
const ROOT_ATTRIBUTES: Attributes = { mode: 0o040755, uid: 0, gid: 0, mtimeNs: 0n };

/** What an existing inode is asked before it is changed. */
interface Existing {
  mode: number;
  nlink: number;
  size: number;
}

/**
 * Writes a catalog: a new one, or a changed copy of another. The same calls in the same order make
 * the same bytes. Memory does not grow with the number of entries; in an edit it grows with the
 * number of changes.
 *
 * Calls are synchronous and must respect the tree: parents are added before their children, names
 * are new in their directory. A call that fails (a full disk, a name that is there already) leaves
 * the writer unusable but for `abort`; while a new catalog is written, it may be a later one that fails. Nothing is durable before the file is put into a store: after
 * a crash what is left is to be thrown away.
 */
export class CatalogWriter {
  /** Path of the SQLite file. */
  readonly file: string;
  readonly #database: Database.Database;
  readonly #tree: TreeReader;
  readonly #blobs: BlobTable;
  /** What is tracked of an edit; undefined while a new catalog is written. */
  readonly #changes: Changes | undefined;
  readonly #count: Record<Kind, number> & { bytes: number };
  readonly #inodes: RowInserter;
  readonly #dentries: RowInserter;
  readonly #extents: RowInserter;
  readonly #existing: Database.Statement<[number], Existing>;
  readonly #statements = new Map<string, Database.Statement>();
  readonly #hashBytes = Buffer.alloc(32);
  #nextIno: number;
  #finished = false;

  private constructor(file: string, database: Database.Database, fresh: boolean) {
    this.file = file;
    this.#database = database;
    this.#tree = new TreeReader(database);
    this.#blobs = new BlobTable(database);
    // An edit looks at what it has written all the time.
    this.#inodes = new RowInserter(database, "inode", 11, !fresh);
    this.#dentries = new RowInserter(database, "dentry", 3, !fresh);
    this.#extents = new RowInserter(database, "extent", 5, !fresh);
    this.#existing = database.prepare<[number], Existing>("SELECT mode, nlink, size FROM inode WHERE ino = ?");
    if (fresh) {
      this.#changes = undefined;
      this.#count = { file: 0, directory: 0, symlink: 0, bytes: 0 };
      this.#insert(ROOT_INO, null, ROOT_ATTRIBUTES, "directory", 0, undefined, undefined);
      this.#nextIno = ROOT_INO + 1;
    } else {
      const { files, directories, symlinks, bytes } = readTotals(database);
      this.#count = { file: files, directory: directories, symlink: symlinks, bytes };
      this.#changes = new Changes(database, this.#tree, (removed) => this.#discount(removed));
      this.#nextIno = database.prepare<[], number>("SELECT max(ino) FROM inode").pluck().get()! + 1;
    }
  }

  /** Begins a new catalog, which holds an empty root directory, in a file that is not there yet. */
  static create(file: string): CatalogWriter {
    const database = open(file, () => closeSync(openSync(file, "wx")));
    return start(file, database, () => {
      database.pragma(`page_size = ${PAGE_SIZE}`);
      database.pragma(`application_id = ${APPLICATION_ID}`);
      database.pragma(`user_version = ${FORMAT_VERSION}`);
      database.exec("BEGIN");
      for (const table of TABLES) database.exec(table);
      return new CatalogWriter(file, database, true);
    });
  }

  /**
   * Begins a changed copy of the catalog in the file `base`, which must be a valid one, in a file
   * that is not there yet. Costs a copy of the file (none where the file system shares blocks);
   * changes cost by their number, and `finish` reads whole tables at most a few times.
   *
   * An inode number is not used again for another inode in the same edit.
   */
  static edit(base: string, file: string): CatalogWriter {
    const database = open(file, () => copyFileSync(base, file, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE));
    return start(file, database, () => {
      checkSchema(file, database);
      database.exec("BEGIN");
      return new CatalogWriter(file, database, false);
    });
  }

  /** Replaces the attributes of an inode; its type stays. */
  setAttributes(ino: number, attributes: Attributes): void {
    this.#guard(() => {
      const { mode } = this.#get(ino);
      if (kindOf(mode) !== kindOf(attributes.mode)) throw new Error(`inode ${ino} cannot change its type`);
      this.#prepare("UPDATE inode SET mode = ?, uid = ?, gid = ?, mtime_ns = ?, xattrs = ? WHERE ino = ?").run(
        attributes.mode,
        attributes.uid,
        attributes.gid,
        clamp(attributes.mtimeNs),
        encodeXattrs(attributes.xattrs),
        ino,
      );
      this.#changes?.inode(ino);
    });
  }

  /** Sets `count` adjacent inode numbers aside, for one directory's children, and returns the first. */
  reserve(count: number): number {
    const first = this.#nextIno;
    this.#nextIno += count;
    return first;
  }

  /** Adds an empty directory. In a new catalog `ino` must be larger than `parent`. */
  addDirectory(parent: number, name: ByteString, ino: number, attributes: Attributes): void {
    this.#guard(() => {
      if (this.#changes === undefined && ino <= parent) throw new Error("a directory is numbered before its parent");
      this.#add(parent, name, ino, attributes, "directory", 0, undefined, undefined);
      this.#changes?.directory(ino);
    });
  }

  /** Adds a file with its content. */
  addFile(parent: number, name: ByteString, ino: number, attributes: Attributes, content: FileContent): void {
    this.#guard(() => {
      this.#add(parent, name, ino, attributes, "file", content.size, content.hash, undefined);
      this.#addExtents(ino, content);
    });
  }

  /** Adds a symbolic link. */
  addSymlink(parent: number, name: ByteString, ino: number, attributes: Attributes, target: ByteString): void {
    this.#guard(() => this.#add(parent, name, ino, attributes, "symlink", target.length, undefined, target));
  }

  /**
   * Gives an inode that is there another name. Directories, which have one name only, are moved by
   * this and `unlink`, in any order; only in an edit.
   */
  link(parent: number, name: ByteString, ino: number): void {
    this.#guard(() => {
      const { mode, nlink } = this.#get(ino);
      this.#name(parent, name, ino);
      if (kindOf(mode) !== "directory") {
        const only = nlink === 0 ? parent : null;
        this.#prepare("UPDATE inode SET nlink = nlink + 1, parent = ? WHERE ino = ?").run(only, ino);
      } else if (this.#changes === undefined) {
        throw new Error("a directory gets a second name");
      } else {
        this.#prepare("UPDATE inode SET parent = ? WHERE ino = ?").run(parent, ino);
        this.#changes.directoryLinked(ino);
      }
    });
  }

  /**
   * Removes a name; only in an edit. An inode that is left without names goes at `finish`, a
   * directory with everything that is still below it.
   */
  unlink(parent: number, name: ByteString): void {
    this.#guard(() => {
      if (this.#changes === undefined) throw new Error("names are removed in an edit only");
      const inode = this.#tree.lookup(parent, name);
      if (inode === undefined) throw new Error(`inode ${parent} has no entry of that name to remove`);
      this.#prepare("DELETE FROM dentry WHERE parent = ? AND name = ?").run(parent, Buffer.from(name, "latin1"));
      this.#changes.unlinked(parent, inode);
    });
  }

  /** Replaces the content of a file. */
  setContent(ino: number, content: FileContent): void {
    this.#guard(() => {
      const { mode, size } = this.#get(ino);
      if (kindOf(mode) !== "file") throw new Error(`inode ${ino} is not a file`);
      this.#changes?.inode(ino);
      if (this.#changes !== undefined) this.#changes.removeExtents(ino);
      else this.#prepare("DELETE FROM extent WHERE ino = ?").run(ino);
      this.#hashBytes.write(content.hash, "hex");
      this.#prepare("UPDATE inode SET size = ?, hash = ? WHERE ino = ?").run(content.size, this.#hashBytes, ino);
      this.#count.bytes += content.size - size;
      this.#addExtents(ino, content);
    });
  }

  /** Completes the catalog: tree hashes, link counts of directories, totals. The writer is closed, also where this fails. */
  async finish(): Promise<CatalogSummary> {
    try {
      this.#flush();
      this.#blobs.flush();
      const hasher = new DirectoryHasher();
      const write = this.#database.prepare("UPDATE inode SET hash = ?, nlink = ? WHERE ino = ?");
      let entries = 0;
      let turn = TURN;
      for (const ino of this.#changes?.apply() ?? this.#allDirectories()) {
        const { hash, nlink, count } = hashDirectory(hasher, this.#tree.entries(ino));
        this.#hashBytes.write(hash, "hex");
        write.run(this.#hashBytes, nlink, ino);
        entries += count;
        if (entries >= turn) {
          turn = entries + TURN;
          await setImmediate();
        }
      }
      if (this.#changes === undefined) this.#checkNames(entries);
      const tree = this.#tree.inode(ROOT_INO)!.hash!;
      const { file: files, directory: directories, symlink: symlinks, bytes } = this.#count;
      const totals = { tree, files, directories, symlinks, bytes };
      writeTotals(this.#database, totals);
      this.#database.exec("COMMIT");
      this.#compact();
      this.#database.close();
      const hash = hashFile(this.file);
      this.#finished = true;
      return { file: this.file, hash, ...totals };
    } catch (error) {
      this.abort();
      throw catalogError(this.file, error);
    }
  }

  /** Gives up: closes and removes the file. Does nothing after `finish` has succeeded. */
  abort(): void {
    if (this.#finished) return;
    this.#database.close();
    rmSync(this.file, { force: true });
  }

  #add(
    parent: number,
    name: ByteString,
    ino: number,
    attributes: Attributes,
    kind: Kind,
    size: number,
    hash: Hash | undefined,
    target: ByteString | undefined,
  ): void {
    this.#name(parent, name, ino);
    this.#insert(ino, parent, attributes, kind, size, hash, target);
    if (ino >= this.#nextIno) this.#nextIno = ino + 1;
  }

  #name(parent: number, name: ByteString, ino: number): void {
    if (!isValidName(name)) throw new Error("a name that no directory can hold");
    this.#dentries.add(parent, Buffer.from(name, "latin1"), ino);
    this.#changes?.directory(parent);
  }

  #insert(
    ino: number,
    parent: number | null,
    attributes: Attributes,
    kind: Kind,
    size: number,
    hash: Hash | undefined,
    target: ByteString | undefined,
  ): void {
    if (kindOf(attributes.mode) !== kind)
      throw new Error(`inode ${ino} is added as a ${kind} with another type's mode`);
    this.#inodes.add(
      ino,
      attributes.mode,
      attributes.uid,
      attributes.gid,
      kind === "directory" ? 2 : 1,
      parent,
      size,
      clamp(attributes.mtimeNs),
      // A directory's hash gets its room now, so that writing it at the end moves nothing.
      hash !== undefined ? Buffer.from(hash, "hex") : kind === "directory" ? NO_HASH : null,
      target === undefined ? null : Buffer.from(target, "latin1"),
      encodeXattrs(attributes.xattrs),
    );
    this.#count[kind]++;
    if (kind === "file") this.#count.bytes += size;
  }

  #addExtents(ino: number, content: FileContent): void {
    for (const { start, blob, offset, length } of content.extents) {
      this.#extents.add(ino, start, this.#blobs.id(blob, offset + length), offset, length);
    }
  }

  /** Has everything in the tables that was added. */
  #flush(): void {
    this.#inodes.flush();
    this.#dentries.flush();
    this.#extents.flush();
  }

  #get(ino: number): Existing {
    this.#flush();
    const existing = this.#existing.get(ino);
    if (existing === undefined) throw new Error(`there is no inode ${ino}`);
    return existing;
  }

  #discount({ mode, size }: { mode: number; size: number }): void {
    const kind = kindOf(mode)!;
    this.#count[kind]--;
    if (kind === "file") this.#count.bytes -= size;
  }

  /** All directories of a new catalog, children before their parents: a child's number is the larger one. */
  *#allDirectories(): Generator<number> {
    const page = this.#database
      .prepare<unknown[], number>(
        `SELECT ino FROM inode WHERE ino < +? AND (mode & 61440) = 16384 ORDER BY ino DESC LIMIT ${PAGE}`,
      )
      .pluck();
    for (let before = this.#nextIno; ; ) {
      const inos = page.all(before);
      yield* inos;
      if (inos.length < PAGE) return;
      before = inos[PAGE - 1]!;
    }
  }

  #checkNames(entries: number): void {
    const names = this.#database.prepare("SELECT count(*) FROM dentry").pluck().get();
    if (names !== entries) throw new Error("an entry was added to what is not a directory");
  }

  /** Gives back the room of what was removed where that is most of the file. */
  #compact(): void {
    const free = this.#database.pragma("freelist_count", { simple: true }) as number;
    const pages = this.#database.pragma("page_count", { simple: true }) as number;
    if (free > pages / 2) this.#database.exec("VACUUM");
  }

  /** A statement that not every writer needs; compiled when first asked for. */
  #prepare(sql: string): Database.Statement {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#database.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }

  #guard(write: () => void): void {
    try {
      write();
    } catch (error) {
      throw catalogError(this.file, error);
    }
  }
}

/** Opens the file that `make` makes; it must not be there before. */
function open(file: string, make: () => void): Database.Database {
  try {
    make();
  } catch (error) {
    throw ioError(`create catalog ${file}`, error);
  }
  return new Database(resolve(file), { fileMustExist: true });
}

/**
 * Sets the database up and begins. Nothing is worth an fsync in a file that is thrown away after a
 * crash. Removed content is overwritten, so that nothing of it stays in a bundle made without it.
 */
function start(file: string, database: Database.Database, begin: () => CatalogWriter): CatalogWriter {
  try {
    database.pragma("trusted_schema = OFF");
    database.pragma("cell_size_check = ON");
    database.pragma("locking_mode = EXCLUSIVE");
    database.pragma("synchronous = OFF");
    database.pragma("secure_delete = ON");
    database.pragma(`cache_size = -${CACHE_KIB}`);
    return begin();
  } catch (error) {
    database.close();
    rmSync(file, { force: true });
    throw catalogError(file, error);
  }
}

function clamp(mtimeNs: bigint): bigint {
  return mtimeNs < MIN_INT64 ? MIN_INT64 : mtimeNs > MAX_INT64 ? MAX_INT64 : mtimeNs;
}
