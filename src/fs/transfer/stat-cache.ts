/**
 * What uploads and comparisons learned of local files, so that a file that has not changed is not
 * read again. One SQLite file for all trees of a user; it may be deleted at any time, and a damaged
 * one is replaced without a word.
 *
 * A file counts as unchanged while size, mtime, ctime and inode number stay. An entry is noted only
 * where the ctime was older than the moment of reading by more than the clock's grain: a change in
 * the same tick would leave no trace. Device numbers are no part of it, since they change with
 * every start of some systems.
 */
import { mkdirSync, rmSync } from "node:fs";
import { dirname } from "node:path";
import Database from "better-sqlite3";
import { type ByteString, toBuffer } from "../../cas/index.ts";
import { encodePage, type KnownEntry, PageReader } from "./pages.ts";

/** Raised with every change of the tables or of a page's layout; another version's file is replaced. */
const VERSION = 1;
/** Trees that were not used for so long are forgotten. */
const FORGET_AFTER_DAYS = 90;
/** Pages held back, in bytes, until they are written in one transaction. */
const BATCH_BYTES = 1024 * 1024;
/** How long to wait for another upload's transaction before giving up on writing. */
const BUSY_MS = 2000;

const MILLISECOND = 1_000_000n;
const SECOND = 1_000_000_000n;

/** Ticks of Linux's file clock are 10 ms at the most. */
const FINE_MARGIN = 20n * MILLISECOND;
/** Where a timestamp has no fraction, the file system may keep whole seconds or, as FAT, every second one. */
const COARSE_MARGIN = 2n * SECOND;

/** The moment now, in the unit of file times. */
export function nowNs(): bigint {
  return BigInt(Date.now()) * MILLISECOND;
}

/** Whether a file with this ctime, read at `readNs` or later, would show a later change in its times. */
export function isSettled(ctimeNs: bigint, readNs: bigint): boolean {
  return ctimeNs + (ctimeNs % SECOND === 0n ? COARSE_MARGIN : FINE_MARGIN) < readNs;
}

interface Page {
  path: ByteString;
  end: ByteString;
  encoded: Buffer;
}

/** The part of the cache that is about one tree. Failures make it forget, never fail. */
export class StatCache {
  readonly #file: string;
  readonly #root: number;
  #database: Database.Database | undefined;
  #select: Database.Statement | undefined;
  #waiting: Page[] = [];
  #waitingBytes = 0;
  readonly #seen = new Set<number>();

  /** @param file the SQLite file, created where it is missing; @param root absolute path of the tree */
  static open(file: string, root: ByteString): StatCache {
    for (const attempt of ["first", "second"] as const) {
      let database: Database.Database | undefined;
      try {
        mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
        database = new Database(file, { timeout: BUSY_MS });
        return new StatCache(file, database, prepare(database, root));
      } catch (error) {
        database?.close();
        if (attempt === "second" || !isReplaceable(error)) break;
        remove(file);
      }
    }
    return new StatCache(file, undefined, 0);
  }

  private constructor(file: string, database: Database.Database | undefined, root: number) {
    this.#file = file;
    this.#root = root;
    this.#database = database;
    this.#select = database?.prepare("SELECT id, entries FROM page WHERE root = ? AND path = ? AND end = ?").raw();
  }

  /** What is known of a page of a directory; see `pagesOf`. */
  page(path: ByteString, end: ByteString): PageReader | undefined {
    try {
      const row = this.#select?.get(this.#root, toBuffer(path), toBuffer(end)) as [number, Buffer] | undefined;
      if (row === undefined) return undefined;
      this.#seen.add(row[0]);
      return PageReader.open(row[1]);
    } catch (error) {
      this.#giveUp(error);
      return undefined;
    }
  }

  /** Notes a page; `entries` in name order. Written with others, or at `close`. */
  store(path: ByteString, end: ByteString, entries: KnownEntry[]): void {
    if (this.#database === undefined) return;
    const encoded = encodePage(entries);
    this.#waiting.push({ path, end, encoded });
    this.#waitingBytes += encoded.length;
    if (this.#waitingBytes >= BATCH_BYTES) this.#flush();
  }

  /** Removes pages of this tree that were neither read nor written since `open`: their directories are gone. */
  prune(): void {
    this.#flush();
    this.#attempt((database) => {
      const count = database.prepare("SELECT count(*) FROM page WHERE root = ?").pluck().get(this.#root);
      if (count === this.#seen.size) return;
      const stale = (database.prepare("SELECT id FROM page WHERE root = ?").pluck().all(this.#root) as number[]).filter(
        (id) => !this.#seen.has(id),
      );
      const remove = database.prepare("DELETE FROM page WHERE id = ?");
      database
        .transaction(() => {
          for (const id of stale) remove.run(id);
        })
        .immediate();
    });
  }

  /** Writes what is held back and closes the file. */
  close(): void {
    this.#flush();
    this.#database?.close();
    this.#database = undefined;
    this.#select = undefined;
  }

  #flush(): void {
    const pages = this.#waiting;
    this.#waiting = [];
    this.#waitingBytes = 0;
    if (pages.length === 0) return;
    this.#attempt((database) => {
      const insert = database
        .prepare(
          `INSERT INTO page (root, path, end, entries) VALUES (?, ?, ?, ?)
           ON CONFLICT (root, path, end) DO UPDATE SET entries = excluded.entries RETURNING id`,
        )
        .pluck();
      database
        .transaction(() => {
          for (const page of pages) {
            const id = insert.get(this.#root, toBuffer(page.path), toBuffer(page.end), page.encoded);
            this.#seen.add(id as number);
          }
        })
        .immediate();
    });
  }

  #attempt(work: (database: Database.Database) => void): void {
    if (this.#database === undefined) return;
    try {
      work(this.#database);
    } catch (error) {
      this.#giveUp(error);
    }
  }

  #giveUp(error: unknown): void {
    if (!(error instanceof Database.SqliteError)) throw error;
    // Another process writes for a long time: what this one learned is lost, nothing else.
    if (error.code.startsWith("SQLITE_BUSY")) return;
    this.#database?.close();
    this.#database = undefined;
    this.#select = undefined;
    if (isReplaceable(error)) remove(this.#file);
  }
}

/** Checks or makes the tables and answers the tree's number. */
function prepare(database: Database.Database, root: ByteString): number {
  const version = () => database.pragma("user_version", { simple: true });
  if (version() !== VERSION) {
    database.pragma("journal_mode = WAL");
    database
      .transaction(() => {
        if (version() === VERSION) return;
        if (database.prepare("SELECT count(*) FROM sqlite_master").pluck().get() !== 0) throw new ForeignFileError();
        database.exec(`
          CREATE TABLE root (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, day INTEGER NOT NULL);
          CREATE TABLE page (id INTEGER PRIMARY KEY, root INTEGER NOT NULL, path BLOB NOT NULL, end BLOB NOT NULL,
            entries BLOB NOT NULL, UNIQUE (root, path, end));
          PRAGMA user_version = ${VERSION};`);
      })
      .immediate();
  }
  database.pragma("synchronous = NORMAL");
  const day = Math.floor(Date.now() / 86_400_000);
  const path = toBuffer(root);
  const known = database.prepare("SELECT id, day FROM root WHERE path = ?").get(path) as
    | { id: number; day: number }
    | undefined;
  if (known?.day === day) return known.id;
  return database
    .transaction(() => {
      const oldest = day - FORGET_AFTER_DAYS;
      database.prepare("DELETE FROM page WHERE root IN (SELECT id FROM root WHERE day < ?)").run(oldest);
      database.prepare("DELETE FROM root WHERE day < ?").run(oldest);
      return database
        .prepare(
          "INSERT INTO root (path, day) VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET day = excluded.day RETURNING id",
        )
        .pluck()
        .get(path, day) as number;
    })
    .immediate();
}

class ForeignFileError extends Error {}

function isReplaceable(error: unknown): boolean {
  if (error instanceof ForeignFileError) return true;
  return error instanceof Database.SqliteError && /^SQLITE_(CORRUPT|NOTADB|ERROR)/.test(error.code);
}

function remove(file: string): void {
  for (const suffix of ["", "-wal", "-shm"]) {
    try {
      rmSync(file + suffix, { force: true });
    } catch {
      // A file that cannot be removed is met again by the next upload; this one goes on without.
    }
  }
}
