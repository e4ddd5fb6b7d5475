/**
 * The SQLite side of catalogs: schema, identification, and how a file is opened for reading.
 *
 * Every number in here is part of the stored format.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { resolve } from "node:path";
import Database from "better-sqlite3";
import { DatamonError, ioError, isErrno } from "../../cas/index.ts";

/** Version of the format: `user_version` of the file and `format` in its meta table. */
export const FORMAT_VERSION = 1;
/** `DMCT`. */
export const APPLICATION_ID = 0x444d4354;
/** Bytes of a page of the file. */
export const PAGE_SIZE = 4096;

/**
 * The tables, as SQLite keeps their text.
 *
 * - inode: what a name names. `nlink` counts names (directories: 2 + subdirectories). `parent` is the
 *   directory that holds the only name of a directory or of an inode with one name, NULL for the root
 *   and where there are several names. `size` in bytes, 0 for directories; `mtime_ns` signed
 *   nanoseconds since 1970; `hash` 32 bytes: content hash of a file, tree hash of a directory;
 *   `target` of a symbolic link; `xattrs` as in xattrs.ts.
 * - dentry: names, compared as bytes.
 * - extent: `length` bytes from `offset` of a blob are the file's bytes from `start`. Bytes that no
 *   extent covers are zeros.
 * - blob: `size` is where the last use of the blob known to this catalog ends, at most its length.
 * - meta: `format`, `tree` (the root's hash), `files`, `directories`, `symlinks`, `bytes`.
 */
export const TABLES = [
  "CREATE TABLE inode(ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, nlink INTEGER NOT NULL, parent INTEGER, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, hash BLOB, target BLOB, xattrs BLOB) STRICT",
  "CREATE TABLE dentry(parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, PRIMARY KEY(parent, name)) STRICT, WITHOUT ROWID",
  "CREATE TABLE extent(ino INTEGER NOT NULL, start INTEGER NOT NULL, blob INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, PRIMARY KEY(ino, start)) STRICT, WITHOUT ROWID",
  "CREATE TABLE blob(id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, size INTEGER NOT NULL) STRICT",
  "CREATE TABLE meta(key TEXT NOT NULL PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID",
];

/** What `sqlite_schema` of a catalog holds, whole and in this order: type, name, table, text. */
const SCHEMA: [string, string, string, string | null][] = [
  ["table", "inode", "inode", TABLES[0]!],
  ["table", "dentry", "dentry", TABLES[1]!],
  ["table", "extent", "extent", TABLES[2]!],
  ["table", "blob", "blob", TABLES[3]!],
  ["index", "sqlite_autoindex_blob_1", "blob", null],
  ["table", "meta", "meta", TABLES[4]!],
];

/**
 * Memory for pages of an open catalog, in KiB. A memory map is no faster here, doubles the resident
 * memory of a process that reads a million entries, and turns a file that is cut short or a failing
 * disk into a fatal signal instead of an error.
 */
const CACHE_KIB = 8 * 1024;

/** The error for a catalog that is not what it must be. */
export function damaged(file: string, why: string, cause?: unknown): DatamonError {
  return new DatamonError("damaged", `catalog ${file} is damaged: ${why}`, { cause });
}

/**
 * A failure while reading or writing a catalog as the error to show: what SQLite or the decoding of
 * a row refuses is damage, a full disk is named so. Anything else is returned as it is: a name added
 * twice, for example, is a mistake of the caller's.
 */
export function catalogError(file: string, error: unknown): unknown {
  if (error instanceof Database.SqliteError && !error.code.startsWith("SQLITE_CONSTRAINT")) {
    if (error.code === "SQLITE_FULL") {
      return new DatamonError("no-space", `cannot write catalog ${file}: the disk is full`, { cause: error });
    }
    if (error.code.startsWith("SQLITE_IOERR") && error.code !== "SQLITE_IOERR_SHORT_READ") {
      return new DatamonError("io", `cannot use catalog ${file}: ${error.message}`, { cause: error });
    }
    return damaged(file, error.message, error);
  }
  return error instanceof RangeError ? damaged(file, error.message, error) : error;
}

/**
 * Opens a catalog's file for reading, as untrusted input: header, identification and schema are
 * exactly as expected or the file is refused, and nothing that the file says is executed. A read
 * transaction stays open, which saves every statement its locking and is free of cost for a file
 * that never changes.
 */
export function openDatabase(file: string): Database.Database {
  checkHeader(file);
  let database: Database.Database | undefined;
  try {
    database = new Database(resolve(file), { readonly: true, fileMustExist: true });
    database.pragma("trusted_schema = OFF");
    database.pragma("cell_size_check = ON");
    database.pragma("query_only = ON");
    database.pragma(`cache_size = -${CACHE_KIB}`);
    database.exec("BEGIN");
    checkSchema(file, database);
    return database;
  } catch (error) {
    database?.close();
    throw catalogError(file, error);
  }
}

/** Refuses a database whose schema is not exactly a catalog's. */
export function checkSchema(file: string, database: Database.Database): void {
  const schema = database.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid").raw().all();
  if (JSON.stringify(schema) !== JSON.stringify(SCHEMA)) throw damaged(file, "its schema is not a catalog's");
}

/**
 * Checks what SQLite would act on before a statement can be run: a file that says it has a
 * write-ahead log, for example, would make SQLite look for one.
 */
function checkHeader(file: string): void {
  const header = Buffer.alloc(100);
  let size: number;
  try {
    const descriptor = openSync(file, "r");
    try {
      size = fstatSync(descriptor).size;
      readSync(descriptor, header, 0, header.length, 0);
    } finally {
      closeSync(descriptor);
    }
  } catch (error) {
    if (isErrno(error, "EISDIR")) throw damaged(file, "it is a directory", error);
    throw ioError(`open catalog ${file}`, error);
  }
  if (header.toString("latin1", 0, 16) !== "SQLite format 3\0") throw damaged(file, "it is not an SQLite file");
  if (header.readUInt32BE(68) !== APPLICATION_ID) throw damaged(file, "it is not a catalog");
  const version = header.readUInt32BE(60);
  if (version !== FORMAT_VERSION) {
    throw new DatamonError("unsupported", `catalog ${file} has format version ${version}, which is not known here`, {
      hint: "A newer version of Datamon can read it.",
    });
  }
  const expected = header.readUInt16BE(16) === PAGE_SIZE && header[18] === 1 && header[19] === 1 && header[20] === 0;
  if (!expected) throw damaged(file, "its header is not a catalog's");
  if (size !== header.readUInt32BE(28) * PAGE_SIZE)
    throw damaged(file, `it has ${size} bytes, not those its header says`);
}
