import type Database from "better-sqlite3";
import { type ByteString, bytesFrom, type Hash } from "../../cas/index.ts";
import type { Dentry, Inode } from "./model.ts";
import { decodeXattrs } from "./xattrs.ts";

/**
 * Columns of an inode. mtime_ns goes in two parts because a JavaScript number does not hold 64 bits
 * and a statement that returns bigints returns nothing else. Hashes come as text because making a
 * string is several times cheaper than making a buffer.
 */
const INODE = `i.ino, i.mode, i.uid, i.gid, i.nlink, i.size, i.mtime_ns / 1000000000, i.mtime_ns % 1000000000,
  lower(hex(i.hash)), i.target, i.xattrs`;
const COLUMNS = 11;

type Row = [
  ino: number,
  mode: number,
  uid: number,
  gid: number,
  nlink: number,
  size: number,
  seconds: number,
  nanoseconds: number,
  hash: string,
  target: Buffer | null,
  xattrs: Buffer | null,
  name: string | Buffer,
];

const NO_NAME = Buffer.alloc(0);
/** Entries read at once where a directory is read as a whole. */
const PAGE = 1000;

/**
 * Reads inodes and directories from a catalog's tables. What SQLite cannot read is thrown as it
 * comes, and a row of a wrong form is a RangeError; callers name the file.
 *
 * Parameters are written `+?` where SQLite would otherwise plan the statement anew for every value.
 */
export class TreeReader {
  readonly #inode: Database.Statement<unknown[], Row>;
  readonly #lookup: Database.Statement<unknown[], Row>;
  readonly #entries: Database.Statement<unknown[], Row>;
  readonly #entriesAsBytes: Database.Statement<unknown[], Row>;

  constructor(database: Database.Database) {
    const prepare = (sql: string) => database.prepare<unknown[], Row>(sql).raw();
    this.#inode = prepare(`SELECT ${INODE} FROM inode i WHERE i.ino = +?`);
    this.#lookup = prepare(
      `SELECT ${INODE} FROM inode i WHERE i.ino = (SELECT d.ino FROM dentry d WHERE d.parent = +? AND d.name = +?)`,
    );
    const entries = (name: string) =>
      prepare(
        `SELECT ${INODE}, ${name} FROM dentry d JOIN inode i ON i.ino = d.ino
         WHERE d.parent = +? AND d.name > +? ORDER BY d.name LIMIT +?`,
      );
    this.#entries = entries("CAST(d.name AS TEXT)");
    this.#entriesAsBytes = entries("d.name");
  }

  inode(ino: number): Inode | undefined {
    const row = this.#inode.get(ino);
    return row && inodeOf(row);
  }

  lookup(parent: number, name: ByteString): Inode | undefined {
    const row = this.#lookup.get(parent, Buffer.from(name, "latin1"));
    return row && inodeOf(row);
  }

  /** At most `limit` entries that come after the name `after`, in byte order of names. */
  readdir(parent: number, after: ByteString | undefined, limit: number): Dentry[] {
    const start = after === undefined ? NO_NAME : Buffer.from(after, "latin1");
    const rows = this.#entries.all(parent, start, limit);
    const entries: Dentry[] = [];
    for (const row of rows) {
      const name = row[COLUMNS];
      // SQLite decodes text as UTF-8: what is ASCII afterwards was ASCII before.
      if (!isAscii(name)) return this.#entriesAsBytes.all(parent, start, limit).map(entryOf);
      entries.push({ name: name as ByteString, inode: inodeOf(row) });
    }
    return entries;
  }

  /** All entries of a directory in byte order of names. The catalog may be used in between. */
  *entries(parent: number): Generator<Dentry> {
    let after: ByteString | undefined;
    for (;;) {
      const page = this.readdir(parent, after, PAGE);
      yield* page;
      if (page.length < PAGE) return;
      after = page[PAGE - 1]!.name;
    }
  }
}

function entryOf(row: Row): Dentry {
  const name = row[COLUMNS];
  if (!Buffer.isBuffer(name)) throw new RangeError("a name is not of bytes");
  return { name: bytesFrom(name), inode: inodeOf(row) };
}

function inodeOf(row: Row): Inode {
  const [ino, mode, uid, gid, nlink, size, seconds, nanoseconds, hash, target, xattrs] = row;
  for (let column = 0; column < 8; column++) {
    if (typeof row[column] !== "number") throw new RangeError("a column of an inode is not a number");
  }
  const inode = {
    ino,
    mode,
    uid,
    gid,
    mtimeNs: BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds),
    size,
    nlink,
    hash: hash === "" ? undefined : (hash as Hash),
    target: target === null ? undefined : bytesOfColumn(target),
  };
  return xattrs === null ? inode : { ...inode, xattrs: decodeXattrs(bufferOfColumn(xattrs)) };
}

function bytesOfColumn(value: unknown): ByteString {
  return bytesFrom(bufferOfColumn(value));
}

function bufferOfColumn(value: unknown): Buffer {
  if (!Buffer.isBuffer(value)) throw new RangeError("a column is not of bytes");
  return value;
}

function isAscii(text: unknown): text is string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the whole of ASCII is meant
  return typeof text === "string" && /^[\x00-\x7f]*$/.test(text);
}
