import type Database from "better-sqlite3";
import { isValidName, MAX_BLOB_SIZE } from "../../cas/index.ts";
import { DirectoryHasher } from "./hashing.ts";
import { type CatalogTotals, isDirectoryMode, ROOT_INO } from "./model.ts";
import type { TreeReader } from "./reader.ts";
import { damaged } from "./schema.ts";

const PAGE = 1000;
/** Inode numbers stay below this, so that other parts can count on from them without losing precision. */
const MAX_INO = 2 ** 48;
/** The longest target of a symbolic link that Linux takes, in bytes. */
const MAX_TARGET = 4095;

/** Rows that must not be there, each with what to say of them. Types are those of the STRICT tables, checked before. */
const REFUSED: { why: string; sql: string }[] = [
  {
    why: "a blob's hash or size is wrong",
    sql: `SELECT 1 FROM blob WHERE length(hash) <> 32 OR size NOT BETWEEN 1 AND ${MAX_BLOB_SIZE}`,
  },
  {
    why: "an inode's attributes are wrong",
    sql: `SELECT 1 FROM inode WHERE
      ino NOT BETWEEN 1 AND ${MAX_INO} OR uid NOT BETWEEN 0 AND 4294967295 OR gid NOT BETWEEN 0 AND 4294967295
      OR nlink < 1 OR size NOT BETWEEN 0 AND ${Number.MAX_SAFE_INTEGER} OR mode NOT BETWEEN 0 AND 65535
      OR CASE mode & 61440
        WHEN 32768 THEN hash IS NULL OR length(hash) <> 32 OR target IS NOT NULL
        WHEN 16384 THEN hash IS NULL OR length(hash) <> 32 OR target IS NOT NULL OR size <> 0
        WHEN 40960 THEN hash IS NOT NULL OR target IS NULL OR length(target) NOT BETWEEN 1 AND ${MAX_TARGET}
          OR size <> length(target) OR instr(target, x'00') > 0
        ELSE 1 END`,
  },
  {
    why: "an inode's parent is wrong",
    sql: `SELECT 1 FROM inode WHERE
      (parent IS NULL) <> (ino = ${ROOT_INO} OR (nlink > 1 AND (mode & 61440) <> 16384))`,
  },
  {
    why: "a name is in another directory than its inode says",
    sql: `SELECT 1 FROM dentry d JOIN inode i ON i.ino = d.ino WHERE i.parent <> d.parent OR d.ino = ${ROOT_INO}`,
  },
  {
    why: "an extent is outside its blob or its file",
    sql: `SELECT 1 FROM extent e LEFT JOIN blob b ON b.id = e.blob LEFT JOIN inode i ON i.ino = e.ino WHERE
      b.id IS NULL OR i.ino IS NULL OR (i.mode & 61440) <> 32768
      OR e.start < 0 OR e.offset < 0 OR e.length < 1 OR e.offset + e.length > b.size OR e.start + e.length > i.size`,
  },
  {
    why: "two extents of a file overlap",
    sql: `SELECT 1 FROM extent e WHERE EXISTS (
      SELECT 1 FROM extent n WHERE n.ino = e.ino AND n.start > e.start AND n.start < e.start + e.length)`,
  },
];

/**
 * Checks everything that readers of a catalog rely on and throws "damaged" at the first thing that
 * is wrong.
 *
 * Every directory but the root has exactly one name and every tree hash is that of the directory's
 * entries, so a walk from the root ends: a directory inside itself would have to hold its own hash.
 */
export function validateCatalog(
  file: string,
  database: Database.Database,
  tree: TreeReader,
  totals: CatalogTotals,
): void {
  const fail = (why: string): never => {
    throw damaged(file, why);
  };
  const quick = database.pragma("quick_check(1)", { simple: true });
  if (quick !== "ok") fail(String(quick));
  // The quick check compares no index with its table, and edits find blobs by the index of their hashes.
  const blobs = database.pragma("integrity_check(blob)", { simple: true });
  if (blobs !== "ok") fail(String(blobs));
  for (const { why, sql } of REFUSED) {
    if (database.prepare(`${sql} LIMIT 1`).get() !== undefined) fail(why);
  }
  const named = checkDirectories(database, tree, totals, fail);
  const linked = checkHardLinks(database, fail);
  if (1 + named + linked !== count(database, "inode")) fail("an inode has no name");
  checkTotals(database, totals, fail);
}

/**
 * Checks names, tree hashes and link counts of all directories.
 *
 * @returns how many inodes with one name (directories and others) the directories hold
 */
function checkDirectories(
  database: Database.Database,
  tree: TreeReader,
  totals: CatalogTotals,
  fail: (why: string) => never,
): number {
  const directories = database
    .prepare<unknown[], [number, string, number]>(
      `SELECT ino, lower(hex(hash)), nlink FROM inode WHERE ino > +? AND (mode & 61440) = 16384 ORDER BY ino LIMIT ${PAGE}`,
    )
    .raw();
  const namedTwice = database.prepare(
    `SELECT d.ino FROM dentry d JOIN inode i ON i.ino = d.ino
     WHERE d.parent = ? AND (i.nlink = 1 OR (i.mode & 61440) = 16384) GROUP BY d.ino HAVING count(*) > 1 LIMIT 1`,
  );
  const hasher = new DirectoryHasher();
  let entries = 0;
  let named = 0;
  for (let after = 0; ; ) {
    const page = directories.all(after);
    for (const [ino, hash, nlink] of page) {
      if (ino === ROOT_INO && hash !== totals.tree) fail("its tree hash is not the root directory's");
      let subdirectories = 0;
      let last = 0;
      let ascending = true;
      let previous = "";
      for (const entry of tree.entries(ino)) {
        const { name, inode } = entry;
        if (!isValidName(name) || name <= previous) fail(`directory ${ino} holds a name that is not allowed`);
        previous = name;
        entries++;
        const directory = isDirectoryMode(inode.mode);
        if (directory) subdirectories++;
        if (directory || inode.nlink === 1) {
          named++;
          ascending &&= inode.ino > last;
          last = inode.ino;
        }
        hasher.add(entry);
      }
      // Fresh catalogs number a directory's children in order, which needs no search for duplicates.
      if (!ascending && namedTwice.get(ino) !== undefined) fail(`directory ${ino} holds two names of one inode`);
      if (hasher.digest() !== hash) fail(`the tree hash of directory ${ino} is wrong`);
      if (nlink !== 2 + subdirectories) fail(`the link count of directory ${ino} is wrong`);
    }
    if (page.length < PAGE) break;
    after = page[PAGE - 1]![0];
  }
  if (entries !== count(database, "dentry")) fail("a name is in no directory or names no inode");
  if (tree.inode(ROOT_INO) === undefined) fail("it has no root directory");
  return named;
}

/** Checks the link counts of what has several names; returns how many such inodes there are. */
function checkHardLinks(database: Database.Database, fail: (why: string) => never): number {
  const several = "SELECT ino FROM inode WHERE nlink > 1 AND (mode & 61440) <> 16384";
  const [found, right] = database
    .prepare<[], [number, number]>(
      `SELECT count(*), ifnull(sum(i.nlink = c.names), 0) FROM
        (SELECT ino, count(*) AS names FROM dentry WHERE ino IN (${several}) GROUP BY ino) c
        JOIN inode i ON i.ino = c.ino`,
    )
    .raw()
    .get()!;
  if (found !== right || found !== count(database, `(${several})`)) fail("a link count is wrong");
  return found;
}

function checkTotals(database: Database.Database, totals: CatalogTotals, fail: (why: string) => never): void {
  const [files, directories, symlinks, bytes] = database
    .prepare<[], [number, number, number, number]>(
      `SELECT sum((mode & 61440) = 32768), sum((mode & 61440) = 16384), sum((mode & 61440) = 40960),
        sum(iif((mode & 61440) = 32768, size, 0)) FROM inode`,
    )
    .raw()
    .get()!;
  const right =
    files === totals.files &&
    directories === totals.directories &&
    symlinks === totals.symlinks &&
    bytes === totals.bytes;
  if (!right) fail("its totals are wrong");
}

function count(database: Database.Database, table: string): number {
  return database.prepare<[], number>(`SELECT count(*) FROM ${table}`).pluck().get()!;
}
