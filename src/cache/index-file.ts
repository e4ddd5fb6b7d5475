import { randomBytes } from "node:crypto";
import { closeSync, readdirSync, readlinkSync, renameSync, rmSync, statSync, symlinkSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import Database from "better-sqlite3";
import { isErrno } from "../cas/index.ts";
import { type ContainerFiles, isFileContainer } from "./containers.ts";
import { IndexDamage, ResidencyIndex, SCHEMA } from "./residency.ts";

/** "dmci" */
const APPLICATION_ID = 0x646d6369;
const VERSION = 2;
/** How long a write waits for another process's, in milliseconds; each holds the lock for microseconds. */
const BUSY_MS = 5000;
/** Index files older than this that nothing points to belong to no rebuild under way. */
const LEFTOVER_AGE_MS = 10 * 60 * 1000;

/**
 * The SQLite file behind a cache directory's index, shared by processes and threads. It is
 * disposable: everything in it can be found again from the containers.
 *
 * `index.sqlite` is a symbolic link to `index/<random>.sqlite`. A missing or damaged index is
 * replaced by building a file of a new name and moving the link. Names are never used twice, so a
 * process that still has the old file open cannot meet (or, when it closes, delete) the new one's
 * write-ahead log; it notices by `isCurrent` and opens the new one. What was renamed into place
 * while the containers were being listed is found by a second listing after the link has moved, and
 * by the row that every writer publishes after its rename, on an index that is current by then.
 *
 * No descriptor of these files may be opened and closed in this process by other means than SQLite:
 * closing one drops the process's POSIX locks on the file.
 */
export class IndexFile {
  readonly rows: ResidencyIndex;
  readonly writable: boolean;
  readonly #database: Database.Database;
  readonly #pointer: string;
  readonly #target: string | undefined;
  readonly #identity: string | undefined;

  /** @param target undefined for an index in memory */
  private constructor(
    database: Database.Database,
    files: ContainerFiles,
    target: string | undefined,
    writable: boolean,
  ) {
    this.#database = database;
    this.#pointer = pointerOf(files);
    this.writable = writable;
    this.#target = target;
    this.#identity = target === undefined ? undefined : identityOf(join(files.directory, "index", target));
    this.rows = new ResidencyIndex(database);
  }

  /** Opens the directory's index for reading and writing, after building it where it is missing or damaged. */
  static open(files: ContainerFiles): IndexFile {
    const pointer = pointerOf(files);
    for (;;) {
      const target = targetOf(pointer);
      if (target === undefined) return IndexFile.build(files);
      try {
        const index = IndexFile.#attach(files, target, true);
        removeOld(files, target);
        return index;
      } catch (error) {
        if (targetOf(pointer) !== target) continue; // somebody else has just replaced it
        if (!isIndexDamage(error) && !isMissing(error)) throw error;
        return IndexFile.build(files);
      }
    }
  }

  /**
   * Opens the index for reading; where that is not possible without writing anything, as where nobody
   * else has it open, builds one in memory. Undefined where not even the containers can be listed.
   */
  static openReadOnly(files: ContainerFiles): IndexFile | undefined {
    try {
      const target = targetOf(pointerOf(files));
      if (target !== undefined) return IndexFile.#attach(files, target, false);
    } catch {
      // What is there cannot be used.
    }
    const database = new Database(":memory:");
    try {
      createTables(database);
      const index = new IndexFile(database, files, undefined, false);
      index.#addMissing(files);
      return index;
    } catch {
      database.close();
      return undefined;
    }
  }

  /** Builds the index from the containers and puts it in the place of the one that is there. */
  static build(files: ContainerFiles): IndexFile {
    files.prepare();
    const pointer = pointerOf(files);
    const previous = targetOf(pointer);
    const target = `${randomBytes(8).toString("hex")}.sqlite`;
    const file = join(files.directory, "index", target);
    // Its log and shared memory get the mode that it has.
    closeSync(files.create(file));
    const database = new Database(file, { timeout: BUSY_MS });
    try {
      database.pragma("journal_mode = WAL");
      setUp(database);
      createTables(database);
      const index = new IndexFile(database, files, target, true);
      index.#addMissing(files);
      const link = join(files.directory, "tmp", randomBytes(16).toString("hex"));
      symlinkSync(join("index", target), link);
      renameSync(link, pointer);
      index.#addMissing(files);
      if (previous !== undefined) removeIndexFile(files, previous);
      removeOld(files, target);
      return index;
    } catch (error) {
      database.close();
      removeIndexFile(files, target);
      throw error;
    }
  }

  static #attach(files: ContainerFiles, target: string, writable: boolean): IndexFile {
    const file = join(files.directory, "index", target);
    const database = new Database(file, { fileMustExist: true, readonly: !writable, timeout: BUSY_MS });
    try {
      setUp(database);
      check(database);
      return new IndexFile(database, files, target, writable);
    } catch (error) {
      database.close();
      throw error;
    }
  }

  /** False where the index was deleted or replaced since it was opened. */
  isCurrent(): boolean {
    // Links of others are read, not followed: in a directory that all may write to, the system may forbid it.
    if (this.#target === undefined || targetOf(this.#pointer) !== this.#target) return false;
    return identityOf(join(dirname(this.#pointer), "index", this.#target)) === this.#identity;
  }

  #addMissing(files: ContainerFiles): void {
    const piecesOf = (name: string) => (isFileContainer(name) ? files.piecesOf(name) : undefined);
    this.rows.addMissing([...files.list()], piecesOf);
  }

  close(): void {
    this.#database.close();
  }
}

/** True for an error that says that the index's bytes are not an index's; it is to be built anew. */
export function isIndexDamage(error: unknown): boolean {
  if (error instanceof IndexDamage) return true;
  if (!(error instanceof Database.SqliteError)) return false;
  return (
    /^SQLITE_(CORRUPT|NOTADB|MISMATCH|CONSTRAINT|FORMAT)/.test(error.code) ||
    ["SQLITE_ERROR", "SQLITE_IOERR_SHORT_READ", "SQLITE_READONLY_DBMOVED"].includes(error.code)
  );
}

function isMissing(error: unknown): boolean {
  return (error instanceof Database.SqliteError && error.code === "SQLITE_CANTOPEN") || isErrno(error, "ENOENT");
}

function pointerOf(files: ContainerFiles): string {
  return join(files.directory, "index.sqlite");
}

/** The file name that the link points to; undefined where there is no link. */
function targetOf(pointer: string): string | undefined {
  try {
    return basename(readlinkSync(pointer));
  } catch (error) {
    if (isErrno(error, "ENOENT", "EINVAL")) return undefined;
    throw error;
  }
}

function identityOf(file: string): string | undefined {
  const info = statSync(file, { bigint: true, throwIfNoEntry: false });
  return info && `${info.dev}:${info.ino}`;
}

function createTables(database: Database.Database): void {
  database.pragma(`application_id = ${APPLICATION_ID}`);
  database.pragma(`user_version = ${VERSION}`);
  for (const statement of SCHEMA) database.exec(statement);
  database.exec("INSERT INTO total VALUES (1, 0)");
}

function setUp(database: Database.Database): void {
  database.pragma("trusted_schema = OFF");
  database.pragma("cell_size_check = ON");
  // What a power failure does to the index is found by `check` or by the containers' hashes; syncing would stall readers.
  database.pragma("synchronous = OFF");
}

/** Throws where the database is not an index in good order. About 2 ms for 13,000 containers. */
function check(database: Database.Database): void {
  if (
    database.pragma("application_id", { simple: true }) !== APPLICATION_ID ||
    database.pragma("user_version", { simple: true }) !== VERSION ||
    database.pragma("journal_mode", { simple: true }) !== "wal"
  ) {
    throw new IndexDamage("not an index of this version");
  }
  const schema = database.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL").pluck().all() as string[];
  if (schema.toSorted().join("\n") !== SCHEMA.toSorted().join("\n")) throw new IndexDamage("unknown schema");
  if (database.pragma("quick_check(1)", { simple: true }) !== "ok") throw new IndexDamage("failed its check");
  const sums = "SELECT (SELECT bytes FROM total) = (SELECT coalesce(sum(size), 0) FROM container)";
  if (database.prepare(sums).pluck().get() !== 1) throw new IndexDamage("sizes do not add up");
}

/** Removes what killed rebuilds and lost links left behind; a process that has one open goes on with it. */
function removeOld(files: ContainerFiles, current: string): void {
  const oldest = Date.now() - LEFTOVER_AGE_MS;
  try {
    for (const name of readdirSync(join(files.directory, "index"))) {
      const target = name.replace(/-(wal|shm)$/, "");
      const info = statSync(join(files.directory, "index", name), { throwIfNoEntry: false });
      if (target !== current && info !== undefined && info.mtimeMs < oldest) removeIndexFile(files, target);
    }
  } catch {
    // They take a little space; another opener may be allowed to remove them.
  }
}

function removeIndexFile(files: ContainerFiles, target: string): void {
  for (const suffix of ["", "-wal", "-shm"]) rmSync(join(files.directory, "index", target + suffix), { force: true });
}
