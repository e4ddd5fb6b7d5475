import type Database from "better-sqlite3";
import type { Hash } from "../../cas/index.ts";

/** Blobs remembered at once; files next to each other share blobs, so few are needed. */
const REMEMBERED = 4096;

interface Entry {
  readonly id: number;
  /** Where the last use of the blob ends. */
  end: number;
  /** What the table says. */
  stored: number;
}

/** The blobs of a catalog that is being written: finds or adds them by hash, in bounded memory. */
export class BlobTable {
  readonly #entries = new Map<Hash, Entry>();
  readonly #find: Database.Statement<[Buffer], { id: number; size: number }>;
  readonly #add: Database.Statement;
  readonly #resize: Database.Statement;

  constructor(database: Database.Database) {
    this.#find = database.prepare<[Buffer], { id: number; size: number }>("SELECT id, size FROM blob WHERE hash = ?");
    this.#add = database.prepare("INSERT INTO blob(hash, size) VALUES (?, ?)");
    this.#resize = database.prepare("UPDATE blob SET size = ? WHERE id = ?");
  }

  /** The id of the blob `hash`, of which the bytes up to `end` are used. */
  id(hash: Hash, end: number): number {
    const entry = this.#entries.get(hash) ?? this.#load(hash, end);
    if (end > entry.end) entry.end = end;
    return entry.id;
  }

  /** Writes down how far blobs are used. */
  flush(): void {
    for (const entry of this.#entries.values()) {
      if (entry.end > entry.stored) this.#resize.run(entry.end, entry.id);
      entry.stored = entry.end;
    }
  }

  #load(hash: Hash, end: number): Entry {
    if (this.#entries.size >= REMEMBERED) {
      this.flush();
      this.#entries.clear();
    }
    const bytes = Buffer.from(hash, "hex");
    const row = this.#find.get(bytes);
    const entry =
      row === undefined
        ? { id: Number(this.#add.run(bytes, end).lastInsertRowid), end, stored: end }
        : { id: row.id, end: row.size, stored: row.size };
    this.#entries.set(hash, entry);
    return entry;
  }
}
