import type { Database, Statement, Transaction } from "better-sqlite3";
import { type Hash, isHash } from "../cas/index.ts";
import type { FoundContainer } from "./containers.ts";

/** The statements that make an empty index. */
export const SCHEMA: readonly string[] = [
  "CREATE TABLE container(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, last_use INTEGER NOT NULL, complete INTEGER NOT NULL) STRICT",
  "CREATE TABLE resident(blob BLOB PRIMARY KEY, container INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL) STRICT, WITHOUT ROWID",
  "CREATE TABLE total(id INTEGER PRIMARY KEY CHECK (id = 1), bytes INTEGER NOT NULL) STRICT",
  "CREATE INDEX container_use ON container(last_use)",
  "CREATE INDEX resident_container ON resident(container)",
  "CREATE TRIGGER container_added AFTER INSERT ON container BEGIN UPDATE total SET bytes = bytes + new.size; END",
  "CREATE TRIGGER container_removed AFTER DELETE ON container BEGIN UPDATE total SET bytes = bytes - old.size; END",
];

/** Where a blob lies, as the index says. */
export interface ResidentRow {
  readonly name: Hash;
  readonly offset: number;
  readonly length: number;
  readonly lastUse: number;
  /** 0 while the file is being written. */
  readonly complete: number;
}

/** A container's row as it was seen; it is removed only while `lastUse` says that nobody used it since. */
export interface Seen {
  readonly name: Hash;
  readonly lastUse: number;
}

/** A container that is counted and not yet there. */
export type Reservation = Seen;

interface Sized extends Seen {
  readonly size: number;
}

/** The index says something that no index of ours says; it is to be built anew. */
export class IndexDamage extends Error {}

/**
 * The rows of a cache directory's index: which blobs lie in which containers, how large these are
 * and when they were last used. Nothing it says is believed without looking at the containers.
 *
 * A container's row is written before its file and removed after it, so that the sum of the rows is
 * never below what lies on disk, whoever is killed where.
 */
export class ResidencyIndex {
  readonly #database: Database;
  readonly #find: Statement<[Buffer], ResidentRow>;
  readonly #bytes: Statement<[], number>;
  readonly #count: Statement<[], number>;
  readonly #oldest: Statement<[Hash], Sized>;
  readonly #reserve: Transaction<(name: Hash, length: number, size: number, now: number, complete: 0 | 1) => number>;
  readonly #remove: Transaction<(seen: Iterable<Seen>) => void>;
  readonly #touch: Transaction<(uses: Iterable<[Hash, number]>) => void>;

  /** The rows of an open database that has the schema. */
  constructor(database: Database) {
    this.#database = database;
    this.#find = database.prepare(
      `SELECT name, offset, length, last_use AS lastUse, complete
       FROM resident JOIN container ON container.id = resident.container WHERE blob = ?`,
    );
    this.#bytes = database.prepare<[], number>("SELECT bytes FROM total").pluck();
    this.#count = database.prepare<[], number>("SELECT count(*) FROM container WHERE complete = 1").pluck();
    this.#oldest = database.prepare(
      "SELECT name, size, last_use AS lastUse FROM container WHERE name <> ? ORDER BY last_use",
    );

    const addContainer = database.prepare<[Hash, number, number, 0 | 1], { id: number; lastUse: number }>(
      `INSERT INTO container(name, size, last_use, complete) VALUES (?, ?, ?, ?)
       ON CONFLICT(name) DO UPDATE SET last_use = max(excluded.last_use, last_use + 1), complete = excluded.complete
       RETURNING id, last_use AS lastUse`,
    );
    const addResident = database.prepare<[Buffer, number, number]>(
      `INSERT INTO resident(blob, container, offset, length) VALUES (?, ?, 0, ?)
       ON CONFLICT(blob) DO UPDATE SET container = excluded.container, offset = 0, length = excluded.length`,
    );
    this.#reserve = database.transaction((name, length, size, now, complete) => {
      const { id, lastUse } = addContainer.get(name, size, now, complete)!;
      addResident.run(Buffer.from(name, "hex"), id, length);
      return lastUse;
    });

    const removeContainer = database
      .prepare<[Hash, number], number>("DELETE FROM container WHERE name = ? AND last_use = ? RETURNING id")
      .pluck();
    const removeResidents = database.prepare<[number]>("DELETE FROM resident WHERE container = ?");
    this.#remove = database.transaction((seen) => {
      for (const { name, lastUse } of seen) {
        const id = removeContainer.get(name, lastUse);
        if (id !== undefined) removeResidents.run(id);
      }
    });

    const use = database.prepare<[number, Hash, number]>(
      "UPDATE container SET last_use = ? WHERE name = ? AND last_use < ?",
    );
    this.#touch = database.transaction((uses) => {
      for (const [name, now] of uses) use.run(now, name, now);
    });
  }

  find(blob: Hash): ResidentRow | undefined {
    const row = this.#find.get(Buffer.from(blob, "hex"));
    if (row !== undefined && !isHash(row.name)) throw new IndexDamage("a container's name is not a hash");
    return row;
  }

  /** Bytes of all containers, and of those being written. */
  bytes(): number {
    return this.#bytes.get() ?? 0;
  }

  /** How many containers are whole. */
  containers(): number {
    return this.#count.get() ?? 0;
  }

  /** Counts a blob's container (`length` bytes, `size` of them on disk) before its file is written. */
  reserve(name: Hash, length: number, size: number, now: number): Reservation {
    return { name, lastUse: this.#reserve.immediate(name, length, size, now, 0) };
  }

  /** Says that a blob's container is in place, whether or not its reservation is still there. */
  publish(name: Hash, length: number, size: number, now: number): void {
    this.#reserve.immediate(name, length, size, now, 1);
  }

  /** The least recently used containers other than `except` that together hold `bytes`. */
  oldest(bytes: number, except: Hash): Seen[] {
    const found: Seen[] = [];
    let sum = 0;
    for (const container of this.#oldest.iterate(except)) {
      if (sum >= bytes) break;
      if (!isHash(container.name)) throw new IndexDamage("a container's name is not a hash");
      found.push(container);
      sum += container.size;
    }
    return found;
  }

  /** Every container. */
  all(): Seen[] {
    return this.#oldest.all("");
  }

  /** Removes the rows of containers whose files are gone, except those that were used meanwhile. */
  remove(seen: Iterable<Seen>): void {
    this.#remove.immediate(seen);
  }

  /** Records last uses, in milliseconds since the epoch. */
  touch(uses: Iterable<[Hash, number]>): void {
    this.#touch.immediate(uses);
  }

  /** Adds the containers that the index does not know, as last used when they were written. */
  addMissing(found: readonly FoundContainer[]): void {
    const known = this.#database.prepare("SELECT 1 FROM container WHERE name = ?");
    this.#database
      .transaction(() => {
        for (const { name, length, allocated, modified } of found)
          if (known.get(name) === undefined) this.#reserve(name, length, allocated, modified, 1);
      })
      .immediate();
  }
}
