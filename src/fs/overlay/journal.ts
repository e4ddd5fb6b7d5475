/**
 * The scratch journal: what of an overlay's tree differs from its base, in one SQLite database.
 *
 * It is in WAL mode with synchronous=NORMAL: a change is in the WAL file before its call returns, so
 * that it outlives the process; `sync` makes it outlive the machine. A tail of the WAL that was not
 * written whole fails SQLite's checksums and is dropped, transaction by transaction.
 */

import { closeSync, fdatasyncSync, openSync } from "node:fs";
import Database from "better-sqlite3";
import { type ByteString, DatamonError, isErrno } from "../../cas/index.ts";
import { SCHEMA, SQL } from "./journal-sql.ts";
import { Leftovers } from "./leftovers.ts";

/** Version of the journal's schema; a journal of another version is refused. */
const FORMAT = 1;

/** Inode numbers are taken from the journal in runs, so that one that was given out is never given out again. */
const INO_RUN = 1024;

/** An inode that is new or differs from the base. Names and targets are kept as text with one character a byte. */
export interface InodeRow {
  readonly ino: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly rdev: number;
  /** 0: unlinked, kept only because it is open. */
  readonly nlink: number;
  /** Bytes; means something only where `baseSize` is not 0, for otherwise the data file has the size. */
  readonly size: number;
  /** How many bytes of the base's content still show where no range covers them; 0: the data file is the content. */
  readonly baseSize: number;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
  /** undefined: the modification time. */
  readonly atimeNs: bigint | undefined;
  /** The modification time was set and holds whatever the data file's is. */
  readonly mtimeSet: boolean;
  /** Of a symbolic link. */
  readonly target: ByteString | undefined;
  /** Of a directory that is new or was moved: where it is; 0 otherwise. */
  readonly parent: number;
  /** The data file may have bytes past `size` from before a truncation. */
  readonly trim: boolean;
  /** The attributes are those of table xattr, not the base's. */
  readonly ownXattrs: boolean;
  /** False where only names below a directory changed its times and link count, or names the link count. */
  readonly changed: boolean;
}

/** A name that differs from the base. */
export interface DentryRow {
  readonly name: ByteString;
  /** undefined: the base's entry is gone. */
  readonly ino: number | undefined;
}

/** A run of bytes that was written: they are in the data file at the same offsets. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

type Statement = Database.Statement<unknown[], unknown>;

/** An open journal. One at a time writes; any number of others may read the file meanwhile. */
export class Journal {
  readonly file: string;
  readonly #database: Database.Database;
  readonly #statements: Record<keyof typeof SQL, Statement>;
  #wal: number | undefined;
  #nextIno: number;
  #inoLimit: number;
  /** The request whose change the next transaction makes. */
  #request: string | undefined;
  /** Undefined where they are to be looked for. */
  #knownLeftovers: Leftovers | undefined;

  private constructor(file: string, database: Database.Database) {
    this.file = file;
    this.#database = database;
    this.#statements = Object.fromEntries(
      Object.entries(SQL).map(([name, sql]) => [name, database.prepare(sql)]),
    ) as Record<keyof typeof SQL, Statement>;
    this.#statements.getInode.safeIntegers(true);
    this.#statements.inodes.safeIntegers(true);
    this.#nextIno = Number(this.#meta("next_ino"));
    this.#inoLimit = this.#nextIno;
  }

  /**
   * Opens the journal `file`, making it where it is not there.
   *
   * @param base id of the bundle that it stands on, or name of the layer; a journal over another is refused with "conflict"
   * @param lastBaseIno the highest inode number of the base: inodes of a new journal come after it
   */
  static open(file: string, base = "", lastBaseIno = 0): Journal {
    const database = connect(file, false);
    try {
      database.pragma("journal_mode = WAL");
      database.pragma("synchronous = NORMAL");
      // 32 MiB of WAL between checkpoints: each costs two waits for the disk.
      database.pragma("wal_autocheckpoint = 8192");
      database.pragma("cache_size = -16384");
      if (database.pragma("user_version", { simple: true }) === 0) {
        database.transaction(() => {
          database.exec(SCHEMA);
          const insert = database.prepare("INSERT INTO meta (key, value) VALUES (?, ?)");
          insert.run("base", base);
          insert.run("last_base_ino", lastBaseIno);
          insert.run("next_ino", lastBaseIno + 1);
          database.pragma(`user_version = ${FORMAT}`);
        })();
      }
      checkFormat(database, file);
      const journal = new Journal(file, database);
      if (journal.#meta("base") !== base || journal.lastBaseIno < lastBaseIno) {
        throw new DatamonError("conflict", `the scratch journal ${file} belongs to another base`, {
          hint: "Open it with the bundle that it was made for.",
        });
      }
      return journal;
    } catch (error) {
      database.close();
      throw error;
    }
  }

  /** Numbers up to this one are not this journal's to give out. */
  get lastBaseIno(): number {
    return Number(this.#meta("last_base_ino"));
  }

  /** Makes it stand on another base, which has the same inodes by the same numbers; on the disk when this returns. */
  rebase(base: string): void {
    this.#statements.setBase.run(base);
    this.sync();
  }

  /** Runs `change` as one transaction: all of it is in the journal, or nothing. */
  transaction<T>(change: () => T): T {
    this.#statements.begin.run();
    try {
      const result = change();
      if (this.#request !== undefined) this.#statements.setRequest.run(this.#request);
      this.#statements.commit.run();
      this.#request = undefined;
      return result;
    } catch (error) {
      if (this.#database.inTransaction) this.#statements.rollback.run();
      this.#knownLeftovers = undefined;
      throw error;
    }
  }

  /** The next transaction is what the request of this id asks for. */
  begin(request: string): void {
    this.#request = request;
  }

  /** The last request that `begin` was told of and whose transaction was made. */
  lastRequest(): string | undefined {
    return this.#meta("request") as string | undefined;
  }

  /** Ids of requests begin anew: the one that is kept has nothing to do with those to come. */
  forgetRequest(): void {
    this.#statements.forgetRequest.run();
  }

  /** No inode has this number yet, nor a higher one. */
  get firstFreeIno(): number {
    return this.#nextIno;
  }

  /** The highest number that was ever set aside for inodes of this journal. */
  get lastIno(): number {
    return this.#inoLimit - 1;
  }

  /** A number that no inode has had. Call it within a transaction. */
  allocateIno(): number {
    if (this.#nextIno === this.#inoLimit) {
      this.#statements.setNextIno.run(this.#inoLimit + INO_RUN);
      this.#inoLimit += INO_RUN;
    }
    return this.#nextIno++;
  }

  inode(ino: number): InodeRow | undefined {
    return rowOf(this.#statements.getInode.get(ino));
  }

  /** Inodes with a name that are neither files nor directories nor symbolic links. */
  specials(): InodeRow[] {
    const rows = [...this.#leftovers.specials].map((ino) => this.inode(ino));
    return rows.filter((row) => row !== undefined && row.nlink > 0) as InodeRow[];
  }

  /** The names that lead to these inodes; looks through all names. */
  namesOf(inos: readonly number[]): { parent: number; name: ByteString; ino: number }[] {
    if (inos.length === 0) return [];
    return this.#statements.namesOf.all(JSON.stringify(inos)) as { parent: number; name: ByteString; ino: number }[];
  }

  /** Every inode in the order of numbers, from `first` to `last`, read page by page: the journal may change meanwhile. */
  *inodes(first: number, last: number): Generator<InodeRow> {
    for (let next = first; ; ) {
      const page = this.#statements.inodes.all(next, last, 1000).map((raw) => rowOf(raw)!);
      yield* page;
      if (page.length < 1000) return;
      next = page[page.length - 1]!.ino + 1;
    }
  }

  putInode(row: InodeRow): void {
    this.#knownLeftovers?.put(row);
    this.#statements.putInode.run(
      row.ino,
      row.mode,
      row.uid,
      row.gid,
      row.rdev,
      row.nlink,
      row.size,
      row.baseSize,
      row.mtimeNs,
      row.ctimeNs,
      row.atimeNs ?? null,
      row.mtimeSet ? 1 : 0,
      row.target ?? null,
      row.parent,
      row.trim ? 1 : 0,
      row.ownXattrs ? 1 : 0,
      row.changed ? 1 : 0,
    );
  }

  /** Removes an inode with all that belongs to it; names that lead to it, and whiteouts in it, stay. */
  removeInode({ ino, baseSize, ownXattrs }: InodeRow): void {
    this.#knownLeftovers?.remove(ino);
    this.#statements.removeInode.run(ino);
    if (baseSize > 0) this.#statements.removeRanges.run(ino);
    if (ownXattrs) this.#statements.removeXattrs.run(ino);
  }

  /** Numbers of the inodes from 1 to `last` that have a row. */
  changedInos(last: number): number[] {
    return this.#statements.changedInos.pluck().all(last) as number[];
  }

  /** Inodes that were unlinked while open. */
  orphans(): number[] {
    return [...this.#leftovers.orphans].sort((one, other) => one - other);
  }

  /** The entry, undefined where the journal says nothing of the name. */
  dentry(parent: number, name: ByteString): DentryRow | undefined {
    const raw = this.#statements.getDentry.get(parent, name) as { ino: number | null } | undefined;
    return raw && { name, ino: raw.ino ?? undefined };
  }

  /** At most `limit` entries, whiteouts too, in byte order of names after `after`. */
  dentries(parent: number, after: ByteString | undefined, limit: number): DentryRow[] {
    return (
      this.#statements.dentries.all(parent, after ?? "", limit) as { name: ByteString; ino: number | null }[]
    ).map(({ name, ino }) => ({ name, ino: ino ?? undefined }));
  }

  /** Directories that have entries here, in the order of numbers, from `after` on, at most `limit`. */
  directories(after: number, limit: number): number[] {
    return this.#statements.directories.pluck().all(after, limit) as number[];
  }

  /** Sets an entry; `ino` undefined makes a whiteout. */
  putDentry(parent: number, name: ByteString, ino: number | undefined): void {
    this.#statements.putDentry.run(parent, name, ino ?? null);
  }

  removeDentry(parent: number, name: ByteString): void {
    this.#statements.removeDentry.run(parent, name);
  }

  /** The ranges that overlap or touch [start, end], in order. */
  ranges(ino: number, start: number, end: number): Range[] {
    const found = this.#statements.ranges.all(ino, end, ino, start) as Range[];
    return found.length > 0 && found[0]!.end < start ? found.slice(1) : found;
  }

  hasRanges(ino: number): boolean {
    return this.#statements.hasRanges.get(ino) !== undefined;
  }

  /** Adds [start, end) and returns the range that it is part of now; ranges never overlap or touch. */
  addRange(ino: number, start: number, end: number): Range {
    const touching = this.ranges(ino, start, end);
    const first = touching[0];
    const last = touching[touching.length - 1];
    const merged = { start: Math.min(first?.start ?? start, start), end: Math.max(last?.end ?? end, end) };
    for (const range of touching.slice(1)) this.#statements.removeRange.run(ino, range.start);
    if (first !== undefined && first.start !== merged.start) this.#statements.removeRange.run(ino, first.start);
    this.#statements.putRange.run(ino, merged.start, merged.end);
    return merged;
  }

  /** Removes what lies at `size` and after it. */
  cutRanges(ino: number, size: number): void {
    this.#statements.removeRangesFrom.run(ino, size);
    const last = this.ranges(ino, size, size)[0];
    if (last !== undefined && last.end > size) this.#statements.putRange.run(ino, last.start, size);
  }

  xattr(ino: number, name: ByteString): Buffer | undefined {
    return this.#statements.getXattr.pluck().get(ino, name) as Buffer | undefined;
  }

  xattrs(ino: number): Map<ByteString, Buffer> {
    const rows = this.#statements.xattrs.all(ino) as { name: ByteString; value: Buffer }[];
    return new Map(rows.map(({ name, value }) => [name, value]));
  }

  putXattr(ino: number, name: ByteString, value: Buffer): void {
    this.#statements.putXattr.run(ino, name, value);
  }

  removeXattr(ino: number, name: ByteString): void {
    this.#statements.removeXattr.run(ino, name);
  }

  /** True where `countChanges` is not 0. */
  hasChanges(): boolean {
    return this.#statements.hasChanges.pluck().get() === 1;
  }

  /** Names that differ, and inodes of the base that do. */
  countChanges(): number {
    return this.#statements.countChanges.pluck().get() as number;
  }

  /** How many names of a directory lead to inodes after `ino`. */
  countDentries(parent: number, ino: number): number {
    return this.#statements.countDentries.pluck().get(parent, ino) as number;
  }

  /** All that was changed is on the disk when this returns. */
  sync(): void {
    if (this.#wal === undefined) {
      try {
        this.#wal = openSync(`${this.file}-wal`, "r+");
      } catch (error) {
        // Nothing was written since it was opened.
        if (isErrno(error, "ENOENT")) return;
        throw error;
      }
    }
    fdatasyncSync(this.#wal);
  }

  close(): void {
    if (this.#wal !== undefined) closeSync(this.#wal);
    this.#wal = undefined;
    this.#database.close();
  }

  get #leftovers(): Leftovers {
    if (this.#knownLeftovers === undefined) {
      this.#knownLeftovers = new Leftovers();
      for (const row of this.#statements.leftovers.iterate()) this.#knownLeftovers.put(row as InodeRow);
    }
    return this.#knownLeftovers;
  }

  #meta(key: string): string | number | undefined {
    return this.#statements.getMeta.pluck().get(key) as string | number | undefined;
  }
}

/** How many names and inodes a journal changes; reads only, also while a mount writes it. */
export function countJournalChanges(file: string): number {
  const database = connect(file, true);
  try {
    checkFormat(database, file);
    return database.prepare(SQL.countChanges).pluck().get() as number;
  } finally {
    database.close();
  }
}

/** What a journal stands on: the id of a bundle, empty for none, or the name of a layer. */
export function journalBase(file: string): string {
  const database = connect(file, true);
  try {
    checkFormat(database, file);
    return database.prepare(SQL.getMeta).pluck().get("base") as string;
  } finally {
    database.close();
  }
}

function connect(file: string, readonly: boolean): Database.Database {
  try {
    return new Database(file, { readonly, fileMustExist: readonly });
  } catch (cause) {
    throw new DatamonError("io", `cannot open the scratch journal ${file}: ${(cause as Error).message}`, { cause });
  }
}

function checkFormat(database: Database.Database, file: string): void {
  const format = database.pragma("user_version", { simple: true });
  if (format !== FORMAT) {
    throw new DatamonError(
      "unsupported",
      `the scratch journal ${file} has format ${format}, this Datamon knows ${FORMAT}`,
    );
  }
}

interface RawInode {
  ino: bigint;
  mode: bigint;
  uid: bigint;
  gid: bigint;
  rdev: bigint;
  nlink: bigint;
  size: bigint;
  base_size: bigint;
  mtime_ns: bigint;
  ctime_ns: bigint;
  atime_ns: bigint | null;
  mtime_set: bigint;
  target: ByteString | null;
  parent: bigint;
  trim: bigint;
  own_xattrs: bigint;
  changed: bigint;
}

function rowOf(raw: unknown): InodeRow | undefined {
  if (raw === undefined) return undefined;
  const row = raw as RawInode;
  return {
    ino: Number(row.ino),
    mode: Number(row.mode),
    uid: Number(row.uid),
    gid: Number(row.gid),
    rdev: Number(row.rdev),
    nlink: Number(row.nlink),
    size: Number(row.size),
    baseSize: Number(row.base_size),
    mtimeNs: row.mtime_ns,
    ctimeNs: row.ctime_ns,
    atimeNs: row.atime_ns ?? undefined,
    mtimeSet: row.mtime_set === 1n,
    target: row.target ?? undefined,
    parent: Number(row.parent),
    trim: row.trim === 1n,
    ownXattrs: row.own_xattrs === 1n,
    changed: row.changed === 1n,
  };
}
