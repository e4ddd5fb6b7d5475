import type { Database, Statement, Transaction } from "better-sqlite3";
import type { Hash } from "../cas/index.ts";
import { type ContainerName, type FoundContainer, isContainerName } from "./containers.ts";
import type { Piece } from "./piece-map.ts";

/** The statements that make an empty index. */
export const SCHEMA: readonly string[] = [
  "CREATE TABLE container(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, last_use INTEGER NOT NULL, complete INTEGER NOT NULL, stamp TEXT) STRICT",
  "CREATE TABLE resident(blob BLOB NOT NULL, container INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, PRIMARY KEY(blob, container, offset)) STRICT, WITHOUT ROWID",
  "CREATE TABLE total(id INTEGER PRIMARY KEY CHECK (id = 1), bytes INTEGER NOT NULL) STRICT",
  "CREATE INDEX container_use ON container(last_use)",
  "CREATE INDEX resident_container ON resident(container)",
  "CREATE TRIGGER container_added AFTER INSERT ON container BEGIN UPDATE total SET bytes = bytes + new.size; END",
  "CREATE TRIGGER container_removed AFTER DELETE ON container BEGIN UPDATE total SET bytes = bytes - old.size; END",
  "CREATE TRIGGER container_resized AFTER UPDATE OF size ON container BEGIN UPDATE total SET bytes = bytes + new.size - old.size; END",
];

/** Where a blob lies, as the index says. */
export interface ResidentRow {
  readonly name: ContainerName;
  readonly offset: number;
  readonly length: number;
  readonly lastUse: number;
  /** 0 while the container is being written; of a file's container, until it is whole and verified. */
  readonly complete: number;
}

/** A container's row as it was seen; it is removed only while `lastUse` says that nobody used it since. */
export interface Seen {
  readonly name: ContainerName;
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
  readonly #oldest: Statement<[ContainerName], Sized>;
  readonly #pieces: Statement<[ContainerName], { blob: Hash; offset: number; length: number }>;
  readonly #stamp: Statement<[ContainerName], string | null>;
  readonly #setStamp: Statement<[string | null, 0 | 1, ContainerName]>;
  readonly #setSize: Statement<[number, ContainerName]>;
  readonly #reserve: Transaction<(name: Hash, length: number, size: number, now: number, complete: 0 | 1) => number>;
  readonly #grow: Statement<[ContainerName, number, number]>;
  readonly #shrink: Statement<[number, ContainerName]>;
  readonly #addPieces: Transaction<(name: ContainerName, pieces: Iterable<Piece>, size: number) => boolean>;
  readonly #removePiece: Transaction<(name: ContainerName, blob: Hash, offset: number) => void>;
  readonly #remove: Transaction<(seen: Iterable<Seen>) => void>;
  readonly #touch: Transaction<(uses: Iterable<[ContainerName, number]>) => void>;
  readonly #atOnce: Transaction<(work: () => unknown) => unknown>;

  /** The rows of an open database that has the schema. */
  constructor(database: Database) {
    this.#database = database;
    this.#find = database.prepare(
      `SELECT name, offset, length, last_use AS lastUse, complete
       FROM resident JOIN container ON container.id = resident.container WHERE blob = ? ORDER BY complete DESC`,
    );
    this.#pieces = database.prepare(
      `SELECT lower(hex(blob)) AS blob, offset, length
       FROM resident WHERE container = (SELECT id FROM container WHERE name = ?)`,
    );
    this.#stamp = database
      .prepare<[ContainerName], string | null>("SELECT stamp FROM container WHERE name = ?")
      .pluck();
    this.#setStamp = database.prepare("UPDATE container SET stamp = ?, complete = ? WHERE name = ?");
    this.#setSize = database.prepare("UPDATE container SET size = ? WHERE name = ?");
    this.#bytes = database.prepare<[], number>("SELECT bytes FROM total").pluck();
    this.#count = database
      .prepare<[], number>("SELECT count(*) FROM container WHERE complete = 1 OR name LIKE '%.file'")
      .pluck();
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
       ON CONFLICT(blob, container, offset) DO UPDATE SET length = excluded.length`,
    );
    this.#reserve = database.transaction((name, length, size, now, complete) => {
      const { id, lastUse } = addContainer.get(name, size, now, complete)!;
      addResident.run(Buffer.from(name, "hex"), id, length);
      return lastUse;
    });

    this.#grow = database.prepare(
      `INSERT INTO container(name, size, last_use, complete) VALUES (?, ?, ?, 0)
       ON CONFLICT(name) DO UPDATE SET last_use = max(excluded.last_use, last_use + 1), size = size + excluded.size`,
    );
    const idOf = database.prepare<[ContainerName], number>("SELECT id FROM container WHERE name = ?").pluck();
    const addPiece = database.prepare<[Buffer, number, number, number]>(
      `INSERT INTO resident(blob, container, offset, length) VALUES (?, ?, ?, ?)
       ON CONFLICT(blob, container, offset) DO NOTHING`,
    );
    this.#shrink = database.prepare("UPDATE container SET size = max(0, size - ?) WHERE name = ?");
    this.#addPieces = database.transaction((name, pieces, size) => {
      const id = idOf.get(name);
      if (id === undefined) return false;
      for (const { blob, offset, length } of pieces) {
        const { changes } = addPiece.run(Buffer.from(blob, "hex"), id, offset, length);
        // Somebody else has written and counted it meanwhile.
        if (changes === 0) this.#shrink.run(size, name);
      }
      return true;
    });
    const dropPiece = database.prepare<[Buffer, number, number]>(
      "DELETE FROM resident WHERE blob = ? AND container = ? AND offset = ?",
    );
    this.#removePiece = database.transaction((name, blob, offset) => {
      const id = idOf.get(name);
      if (id !== undefined && dropPiece.run(Buffer.from(blob, "hex"), id, offset).changes > 0) {
        this.#setStamp.run(null, 0, name);
      }
    });

    const removeContainer = database
      .prepare<[ContainerName, number], number>("DELETE FROM container WHERE name = ? AND last_use = ? RETURNING id")
      .pluck();
    const removeResidents = database.prepare<[number]>("DELETE FROM resident WHERE container = ?");
    this.#remove = database.transaction((seen) => {
      for (const { name, lastUse } of seen) {
        const id = removeContainer.get(name, lastUse);
        if (id !== undefined) removeResidents.run(id);
      }
    });

    const use = database.prepare<[number, ContainerName, number]>(
      "UPDATE container SET last_use = ? WHERE name = ? AND last_use < ?",
    );
    this.#touch = database.transaction((uses) => {
      for (const [name, now] of uses) use.run(now, name, now);
    });
    this.#atOnce = database.transaction((work) => work());
  }

  /** Runs `work` in one transaction, which costs less than one for each of its calls. */
  atOnce<T>(work: () => T): T {
    return this.#atOnce.immediate(work) as T;
  }

  /** The places where a blob is; a large file's blob may be in several files. */
  find(blob: Hash): ResidentRow[] {
    const rows = this.#find.all(Buffer.from(blob, "hex"));
    for (const { name } of rows) checkName(name);
    return rows;
  }

  /** The blobs in a file's container, in no order. */
  pieces(name: ContainerName): Piece[] {
    return this.#pieces.all(name);
  }

  /**
   * Counts `size` more bytes on disk for a file's container, which is new or not, before they are written.
   * Returns the bytes of all containers.
   */
  grow(name: ContainerName, size: number, now: number): number {
    this.#grow.run(name, size, now);
    return this.bytes();
  }

  /** Takes back what `grow` counted and was not written. */
  shrink(name: ContainerName, size: number): void {
    this.#shrink.run(size, name);
  }

  /**
   * Says that a blob for which `size` bytes were counted is in its place in a file's container. False where the
   * container is not counted any more.
   */
  addPiece(name: ContainerName, piece: Piece, size: number): boolean {
    return this.#addPieces.immediate(name, [piece], size);
  }

  /** Removes a blob that is not in its place in a file's container after all; the file is not whole then. */
  removePiece(name: ContainerName, blob: Hash, offset: number): void {
    this.#removePiece.immediate(name, blob, offset);
  }

  /** By what the file of a whole and verified container is known; undefined where it is not whole, or not there. */
  stamp(name: ContainerName): string | undefined {
    return this.#stamp.get(name) ?? undefined;
  }

  /** Says that a file's container is whole and verified, and takes `size` bytes on disk. */
  setStamp(name: ContainerName, stamp: string, size: number): void {
    this.#setStamp.run(stamp, 1, name);
    this.#setSize.run(size, name);
  }

  /** Bytes of all containers, and of those being written. */
  bytes(): number {
    return this.#bytes.get() ?? 0;
  }

  /** How many containers hold something: those of blobs that are whole, and those of files. */
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
  oldest(bytes: number, except: ContainerName): Seen[] {
    const found: Seen[] = [];
    let sum = 0;
    for (const container of this.#oldest.iterate(except)) {
      if (sum >= bytes) break;
      checkName(container.name);
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
  touch(uses: Iterable<[ContainerName, number]>): void {
    this.#touch.immediate(uses);
  }

  /**
   * Adds the containers that the index does not know, as last used when they were written.
   *
   * @param piecesOf the blobs that are noted to be in a file's container; undefined for a blob's own
   */
  addMissing(found: readonly FoundContainer[], piecesOf: (name: ContainerName) => readonly Piece[] | undefined): void {
    const known = this.#database.prepare("SELECT 1 FROM container WHERE name = ?");
    this.#database
      .transaction(() => {
        for (const { name, length, allocated, modified } of found) {
          if (known.get(name) !== undefined) continue;
          const pieces = piecesOf(name);
          if (pieces === undefined) {
            this.#reserve(name, length, allocated, modified, 1);
          } else {
            this.#grow.run(name, allocated, modified);
            this.#addPieces(
              name,
              pieces.filter((piece) => piece.offset + piece.length <= length),
              0,
            );
          }
        }
      })
      .immediate();
  }
}

function checkName(name: ContainerName): void {
  if (!isContainerName(name)) throw new IndexDamage("a container's name is not one");
}
