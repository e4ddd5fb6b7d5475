import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import Database from "better-sqlite3";
import fc from "fast-check";
import { bytesOf, DatamonError } from "../../src/cas/index.ts";
import { Catalog, CatalogWriter } from "../../src/meta/index.ts";
import { build, directory, factsOfCatalog, file, symlink, temporaryDirectory } from "./catalog-trees.ts";

/** Builds a catalog of some pages in `path`. */
async function sample(path: string): Promise<void> {
  const linked = file("linked", { xattrs: new Map([[bytesOf("user.x"), Buffer.from("value")]]) });
  const tree = directory({
    a: file("content of a"),
    b: symlink(bytesOf("a")),
    d: directory({ e: directory({ f: linked }) }),
    l: linked,
  });
  for (let index = 0; index < 300; index++) tree.children.set(bytesOf(`file ${index}`), file(`content ${index}`));
  await build(path, tree);
}

/** Without its file's hash a catalog cannot tell one sound extent from another, so these are read but not compared. */
function withoutExtents(catalog: Catalog): ReturnType<typeof factsOfCatalog> {
  return factsOfCatalog(catalog).map(({ extents: _, ...fact }) => fact);
}

/** Opens, validates and walks; what is thrown must be a `DatamonError`. */
function read(path: string, validate: boolean): ReturnType<typeof factsOfCatalog> | DatamonError {
  let catalog: Catalog | undefined;
  try {
    catalog = Catalog.open(path);
    if (validate) catalog.validate();
    return withoutExtents(catalog);
  } catch (error) {
    assert.ok(error instanceof DatamonError, `not a DatamonError: ${(error as Error).stack}`);
    assert.ok(error.message.includes(path), error.message);
    return error;
  } finally {
    catalog?.close();
  }
}

function assertDamaged(path: string, expected: RegExp): void {
  const error = read(path, true);
  assert.ok(error instanceof DatamonError, "no error");
  assert.equal(error.code, "damaged");
  assert.match(error.message, expected);
}

/** Header bytes that tell the version: a change there makes a catalog of a newer format, not a damaged one. */
const VERSION_FIELD = [60, 64] as const;

test("whatever bytes change, a validated catalog reads as before or is refused", async () => {
  using temporary = temporaryDirectory();
  const [good, bad] = ["good.sqlite", "bad.sqlite"].map((name) => join(temporary.path, name)) as [string, string];
  await sample(good);
  const bytes = readFileSync(good);
  const facts = read(good, true);
  let refused = 0;
  const offset = fc.oneof(fc.nat(bytes.length - 1), fc.nat(99), fc.nat(4095));
  const flip = fc.record({ offset, mask: fc.integer({ min: 1, max: 255 }) });
  fc.assert(
    fc.property(fc.array(flip, { minLength: 1, maxLength: 4 }), fc.boolean(), (flips, validate) => {
      const copy = Buffer.from(bytes);
      for (const { offset, mask } of flips) copy[offset]! ^= mask;
      writeFileSync(bad, copy);
      const result = read(bad, validate);
      if (result instanceof DatamonError) {
        const [start, end] = VERSION_FIELD;
        const otherVersion = !copy.subarray(start, end).equals(bytes.subarray(start, end));
        assert.equal(result.code, otherVersion && result.code === "unsupported" ? "unsupported" : "damaged");
        refused++;
      } else if (validate) {
        assert.deepEqual(result, facts);
      }
    }),
    { numRuns: 400 },
  );
  assert.ok(refused > 100);
});

test("a catalog cut short or continued is refused at any length", async () => {
  using temporary = temporaryDirectory();
  const [good, bad] = ["good.sqlite", "bad.sqlite"].map((name) => join(temporary.path, name)) as [string, string];
  await sample(good);
  const bytes = readFileSync(good);
  for (const length of [0, 1, 99, 100, 4095, 4096, 8192, bytes.length - 4096, bytes.length - 1]) {
    writeFileSync(bad, bytes.subarray(0, length));
    assertDamaged(bad, /damaged/);
  }
  writeFileSync(bad, Buffer.concat([bytes, Buffer.alloc(4096)]));
  assertDamaged(bad, /not those its header says/);
});

test("what is no catalog is refused, and so is one that does not have the hash expected", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  assert.throws(() => Catalog.open(path), { code: "not-found" });
  mkdirSync(path);
  assert.throws(() => Catalog.open(path), { code: "damaged" });
  const text = join(temporary.path, "text");
  writeFileSync(text, "not a database".repeat(1000));
  assertDamaged(text, /not an SQLite file/);
  const other = join(temporary.path, "other.sqlite");
  const database = new Database(other);
  database.exec("CREATE TABLE t(x)");
  database.close();
  assertDamaged(other, /not a catalog/);
  const good = join(temporary.path, "good.sqlite");
  await sample(good);
  assert.throws(() => Catalog.open(good, { expectedHash: "0".repeat(64) }), {
    code: "damaged",
    message: /its hash is/,
  });
  assert.throws(() => CatalogWriter.edit(other, join(temporary.path, "edited")), { code: "damaged" });
});

/** Changes that leave a sound SQLite file which is no sound catalog. Root is inode 1. */
const TAMPERED: [why: RegExp, sql: string][] = [
  [/schema/, "CREATE TABLE more(x)"],
  [/schema/, "CREATE INDEX i ON dentry(ino)"],
  [/schema/, "CREATE VIEW v AS SELECT 1"],
  [/schema/, "CREATE TRIGGER t AFTER INSERT ON inode BEGIN SELECT 1; END"],
  [/schema/, "ALTER TABLE inode ADD COLUMN x ANY"],
  [/schema/, "DROP TABLE extent"],
  [/not a catalog/, "PRAGMA application_id = 1"],
  [/header/, "PRAGMA journal_mode = WAL"],
  [/meta table/, "DELETE FROM meta WHERE key = 'files'"],
  [/meta table/, "INSERT INTO meta VALUES ('more', 1)"],
  [/meta table/, "UPDATE meta SET value = 2 WHERE key = 'format'"],
  [/number of bytes/, "UPDATE meta SET value = -1 WHERE key = 'bytes'"],
  [/number of files/, "UPDATE meta SET value = 'x' WHERE key = 'files'"],
  [/tree hash/, "UPDATE meta SET value = x'00' WHERE key = 'tree'"],
  [/tree hash/, "UPDATE meta SET value = zeroblob(32) WHERE key = 'tree'"],
  [/totals/, "UPDATE meta SET value = value + 1 WHERE key = 'symlinks'"],
  [/name that is not allowed/, "UPDATE dentry SET name = CAST('x/y' AS BLOB) WHERE name = CAST('a' AS BLOB)"],
  [/name that is not allowed/, "UPDATE dentry SET name = x'6100' WHERE name = CAST('a' AS BLOB)"],
  [/name that is not allowed/, "UPDATE dentry SET name = CAST('.' AS BLOB) WHERE name = CAST('a' AS BLOB)"],
  [/name that is not allowed/, "UPDATE dentry SET name = CAST('..' AS BLOB) WHERE name = CAST('a' AS BLOB)"],
  [/tree hash of directory 1/, "UPDATE dentry SET name = zeroblob(0) WHERE name = CAST('a' AS BLOB)"],
  [
    /name that is not allowed/,
    "UPDATE dentry SET name = CAST(printf('%.256c', 'n') AS BLOB) WHERE name = CAST('a' AS BLOB)",
  ],
  [/tree hash of directory 1/, "UPDATE dentry SET name = CAST('aa' AS BLOB) WHERE name = CAST('a' AS BLOB)"],
  [/tree hash of directory/, "UPDATE inode SET mtime_ns = mtime_ns + 1 WHERE ino = 5"],
  [/damaged/, "UPDATE dentry SET ino = 99999 WHERE name = CAST('f' AS BLOB)"],
  [/in no directory|in another directory/, "INSERT INTO dentry VALUES (77777, CAST('x' AS BLOB), 2)"],
  [/no directory/, "INSERT INTO dentry VALUES (1, zeroblob(0), 9)"],
  [/in another directory/, "INSERT INTO dentry VALUES (1, CAST('loop' AS BLOB), 1)"],
  [/damaged/, "DELETE FROM inode WHERE ino = 3"],
  [/damaged/, "DELETE FROM inode WHERE ino = 1"],
  [
    /has no name/,
    "INSERT INTO inode SELECT 5000, mode, uid, gid, nlink, parent, size, mtime_ns, hash, target, xattrs FROM inode WHERE ino = 2",
  ],
  [/attributes are wrong/, "UPDATE inode SET mode = 8630 WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET mode = mode + 65536 WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET hash = NULL WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET hash = x'01' WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET size = -1 WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET size = 9007199254740993 WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET uid = -1 WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET gid = 4294967296 WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET nlink = 0 WHERE ino = 2"],
  [/attributes are wrong/, "UPDATE inode SET target = zeroblob(0), size = 0 WHERE target IS NOT NULL"],
  [/attributes are wrong/, "UPDATE inode SET target = x'6100', size = 2 WHERE target IS NOT NULL"],
  [/attributes are wrong/, "UPDATE inode SET size = 7 WHERE target IS NOT NULL"],
  [/attributes are wrong/, "UPDATE inode SET ino = 1 << 50 WHERE ino = 2"],
  [/parent is wrong/, "UPDATE inode SET parent = NULL WHERE ino = 2"],
  [/parent is wrong/, "UPDATE inode SET parent = 1 WHERE ino = 1"],
  [/in another directory/, "UPDATE inode SET parent = 2 WHERE ino = 3"],
  [/link count of directory/, "UPDATE inode SET nlink = nlink + 1 WHERE (mode & 61440) = 16384"],
  [/link count is wrong/, "UPDATE inode SET nlink = 3 WHERE nlink = 2 AND (mode & 61440) <> 16384"],
  [/damaged/, "UPDATE inode SET xattrs = x'0161000000' WHERE xattrs IS NOT NULL"],
  [/damaged/, "UPDATE inode SET xattrs = zeroblob(0) WHERE xattrs IS NOT NULL"],
  [/extent is outside/, "UPDATE extent SET length = length + 1 WHERE ino = 2"],
  [/extent is outside/, "UPDATE extent SET offset = offset + 1 WHERE ino = 2"],
  [/extent is outside/, "UPDATE extent SET offset = 9223372036854775807 WHERE ino = 2"],
  [/extent is outside/, "UPDATE extent SET start = -1 WHERE ino = 2"],
  [/extent is outside/, "UPDATE extent SET start = start + 1 WHERE ino = 2"],
  [/extent is outside/, "UPDATE extent SET length = 0 WHERE ino = 2"],
  [/extent is outside/, "UPDATE extent SET blob = 99999 WHERE ino = 2"],
  [/extent is outside/, "INSERT INTO extent VALUES (1, 0, 1, 0, 1)"],
  [/extents of a file overlap/, "INSERT INTO extent VALUES (2, 1, 1, 0, 1)"],
  [/blob's hash or size/, "UPDATE blob SET hash = x'00' WHERE id = 1"],
  [/blob's hash or size/, "UPDATE blob SET size = 8388609 WHERE id = 1"],
];

test("a sound SQLite file that is no sound catalog is refused", async () => {
  using temporary = temporaryDirectory();
  const [good, bad] = ["good.sqlite", "bad.sqlite"].map((name) => join(temporary.path, name)) as [string, string];
  await sample(good);
  for (const [why, sql] of TAMPERED) {
    copyFileSync(good, bad);
    const database = new Database(bad);
    database.exec(sql);
    database.close();
    const error = read(bad, true);
    assert.ok(error instanceof DatamonError, sql);
    assert.equal(error.code, "damaged", sql);
    assert.match(error.message, why, sql);
  }
});

test("a catalog of a newer format is told from a damaged one", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  await sample(path);
  const database = new Database(path);
  database.pragma("user_version = 2");
  database.close();
  assert.throws(() => Catalog.open(path), { code: "unsupported", message: /format version 2/ });
});

test("a walk ends where a directory is inside itself, also without validation", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  await sample(path);
  const database = new Database(path);
  const directories = database.prepare("SELECT ino FROM inode WHERE (mode & 61440) = 16384 ORDER BY ino").pluck().all();
  database.prepare("INSERT INTO dentry VALUES (?, CAST('up' AS BLOB), ?)").run(directories[2], directories[1]);
  database.close();
  const error = read(path, false);
  assert.ok(error instanceof DatamonError && error.code === "damaged");
  assert.match(error.message, /inside itself/);
});
