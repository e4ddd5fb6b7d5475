/** What a scratch journal asks of SQLite. */

/** The tables of a new journal. */
export const SCHEMA = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE inode (
  ino INTEGER PRIMARY KEY,
  mode INTEGER NOT NULL,
  uid INTEGER NOT NULL,
  gid INTEGER NOT NULL,
  rdev INTEGER NOT NULL,
  nlink INTEGER NOT NULL,
  size INTEGER NOT NULL,
  base_size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL,
  atime_ns INTEGER,
  mtime_set INTEGER NOT NULL,
  target TEXT,
  parent INTEGER NOT NULL,
  trim INTEGER NOT NULL,
  own_xattrs INTEGER NOT NULL,
  changed INTEGER NOT NULL
);
CREATE TABLE dentry (parent INTEGER NOT NULL, name TEXT NOT NULL, ino INTEGER, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE TABLE range (ino INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, PRIMARY KEY (ino, start)) WITHOUT ROWID;
CREATE TABLE xattr (ino INTEGER NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (ino, name)) WITHOUT ROWID;
`;

/** Its statements. */
export const SQL = {
  begin: "BEGIN IMMEDIATE",
  commit: "COMMIT",
  rollback: "ROLLBACK",
  getMeta: "SELECT value FROM meta WHERE key = ?",
  setNextIno: "UPDATE meta SET value = ? WHERE key = 'next_ino'",
  setRequest: "INSERT INTO meta VALUES ('request', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
  forgetRequest: "DELETE FROM meta WHERE key = 'request'",
  getInode: "SELECT * FROM inode WHERE ino = ?",
  inodes: "SELECT * FROM inode WHERE ino BETWEEN ? AND ? ORDER BY ino LIMIT ?",
  putInode: "INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
  removeInode: "DELETE FROM inode WHERE ino = ?",
  changedInos: "SELECT ino FROM inode WHERE ino <= ?",
  setBase: "UPDATE meta SET value = ? WHERE key = 'base'",
  leftovers: "SELECT ino, mode, nlink FROM inode WHERE nlink = 0 OR (mode & 61440) NOT IN (32768, 16384, 40960)",
  hasChanges: `SELECT EXISTS (SELECT 1 FROM dentry) OR EXISTS (SELECT 1 FROM inode WHERE changed = 1 AND nlink > 0
    AND ino BETWEEN 1 AND (SELECT value FROM meta WHERE key = 'last_base_ino'))`,
  namesOf: "SELECT parent, name, ino FROM dentry WHERE ino IN (SELECT value FROM json_each(?))",
  getDentry: "SELECT ino FROM dentry WHERE parent = ? AND name = ?",
  dentries: "SELECT name, ino FROM dentry WHERE parent = ? AND name > ? ORDER BY name LIMIT ?",
  directories: "SELECT DISTINCT parent FROM dentry WHERE parent > ? ORDER BY parent LIMIT ?",
  putDentry: "INSERT INTO dentry VALUES (?, ?, ?) ON CONFLICT (parent, name) DO UPDATE SET ino = excluded.ino",
  removeDentry: "DELETE FROM dentry WHERE parent = ? AND name = ?",
  // From the last range that starts at or before the start to the last one that starts at or before the end.
  ranges: `SELECT start, end FROM range WHERE ino = ? AND start <= ? AND start >= ifnull(
    (SELECT max(start) FROM range WHERE ino = ? AND start <= ?), 0) ORDER BY start`,
  hasRanges: "SELECT 1 FROM range WHERE ino = ? LIMIT 1",
  putRange: "INSERT INTO range VALUES (?, ?, ?) ON CONFLICT (ino, start) DO UPDATE SET end = excluded.end",
  removeRange: "DELETE FROM range WHERE ino = ? AND start = ?",
  removeRanges: "DELETE FROM range WHERE ino = ?",
  removeRangesFrom: "DELETE FROM range WHERE ino = ? AND start >= ?",
  getXattr: "SELECT value FROM xattr WHERE ino = ? AND name = ?",
  xattrs: "SELECT name, value FROM xattr WHERE ino = ? ORDER BY name",
  putXattr: "INSERT INTO xattr VALUES (?, ?, ?) ON CONFLICT (ino, name) DO UPDATE SET value = excluded.value",
  removeXattr: "DELETE FROM xattr WHERE ino = ? AND name = ?",
  removeXattrs: "DELETE FROM xattr WHERE ino = ?",
  countChanges: `SELECT (SELECT count(*) FROM dentry) + (SELECT count(*) FROM inode WHERE changed = 1 AND nlink > 0
    AND ino BETWEEN 1 AND (SELECT value FROM meta WHERE key = 'last_base_ino'))`,
  countDentries: "SELECT count(*) FROM dentry WHERE parent = ? AND ino > ?",
} as const;
