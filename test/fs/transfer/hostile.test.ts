import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import Database from "better-sqlite3";
import { type ByteString, bytesOf, type FileContent, hashOf } from "../../../src/cas/index.ts";
import { Breath } from "../../../src/fs/transfer/breath.ts";
import { ContentWriter } from "../../../src/fs/transfer/content-writer.ts";
import { restoreTree } from "../../../src/fs/transfer/restore-tree.ts";
import { Restorer } from "../../../src/fs/transfer/restorer.ts";
import { select } from "../../../src/fs/transfer/selection.ts";
import { LocalTree } from "../../../src/fs/transfer/walk.ts";
import { Catalog, CatalogWriter, ROOT_INO } from "../../../src/meta/index.ts";
import { snapshot, Workplace } from "./support.ts";

const evil = Buffer.from("evil");
const evilContent: FileContent = {
  hash: hashOf(evil),
  size: evil.length,
  extents: [{ start: 0, blob: hashOf(evil), offset: 0, length: evil.length }],
};
const fileAttributes = { mode: 0o100644, uid: 0, gid: 0, mtimeNs: 0n };
const linkAttributes = { ...fileAttributes, mode: 0o120777 };
const directoryAttributes = { ...fileAttributes, mode: 0o040755 };

/** A catalog with a directory `d` (2) with a file `f` (4), a link `l` (3) that leads out, and what `edit` makes of its rows. */
async function hostileCatalog(place: Workplace, edit: string): Promise<Catalog> {
  const file = place.path(`catalog-${Math.random()}`);
  const writer = CatalogWriter.create(file);
  const d = writer.reserve(2);
  writer.addDirectory(ROOT_INO, bytesOf("d"), d, directoryAttributes);
  writer.addSymlink(ROOT_INO, bytesOf("l"), d + 1, linkAttributes, bytesOf(place.path("outside")));
  writer.addFile(d, bytesOf("f"), writer.reserve(1), fileAttributes, evilContent);
  await writer.finish();
  const database = new Database(file);
  database.unsafeMode(true);
  database.exec(edit);
  database.close();
  return Catalog.open(file);
}

/** Restores whatever the catalog says, as far as it goes. */
async function restore(catalog: Catalog, destination: string, fetched: Buffer = evil, replaces = true): Promise<void> {
  const restorer = new Restorer(new LocalTree(bytesOf(destination)), replaces);
  const breath = new Breath("the test", undefined);
  const fetch = async () => fetched;
  const writer = new ContentWriter({ catalog, restorer, breath, fetch, onWritten: () => {} });
  try {
    await restoreTree({
      catalog,
      restorer,
      writer,
      breath,
      selection: select({}),
      restoresRoot: false,
      onOwnName: () => {},
    });
  } catch (error) {
    await writer.abandon();
    throw error;
  } finally {
    catalog.close();
  }
}

test("a catalog cannot place anything outside the destination", async () => {
  using place = await Workplace.make();
  const edits: Record<string, string> = {
    "parent directory": "UPDATE dentry SET name = x'2e2e' WHERE ino = 4",
    "name with a slash": "UPDATE dentry SET name = CAST('../../outside/f' AS BLOB) WHERE ino = 4",
    "absolute name": `UPDATE dentry SET name = CAST('${place.path("outside")}/f' AS BLOB) WHERE ino = 4`,
    "name with NUL": "UPDATE dentry SET name = x'6100' WHERE ino = 4",
    "file below a link": "UPDATE dentry SET parent = 3 WHERE ino = 4",
    "directory below itself": "INSERT INTO dentry VALUES (2, x'6c6f6f70', 2)",
    "link and directory are one":
      "UPDATE inode SET mode = 16877, target = NULL WHERE ino = 3; UPDATE dentry SET ino = 3 WHERE ino = 2",
    "extent beyond the blob": "UPDATE extent SET offset = 1000",
    "extent beyond the file": "UPDATE extent SET start = 1000",
    "negative extent": "UPDATE extent SET start = -1",
    "empty target": "UPDATE inode SET target = x'' WHERE ino = 3",
    device: "UPDATE inode SET mode = 8612 WHERE ino = 4",
  };
  for (const [name, edit] of Object.entries(edits)) {
    const outside = place.path("outside");
    mkdirSync(outside, { recursive: true });
    const destination = place.path(name);
    mkdirSync(destination);
    const before = readdirSync(place.root).sort();
    let catalog: Catalog;
    try {
      catalog = await hostileCatalog(place, edit);
    } catch {
      // Refused before anything could be read.
      continue;
    }
    await restore(catalog, destination).catch((error) => assert.equal(error.code, "damaged", `${name}: ${error}`));
    assert.deepEqual(readdirSync(outside), [], name);
    const made = readdirSync(place.root)
      .filter((entry) => !entry.startsWith("catalog-"))
      .sort();
    assert.deepEqual(
      made,
      before.filter((entry) => !entry.startsWith("catalog-")),
      name,
    );
  }
});

test("two entries of one name, a directory and a link that leads out, are refused", async () => {
  using place = await Workplace.make();
  mkdirSync(place.path("outside"));
  mkdirSync(place.path("target"));
  // Such rows cannot be inserted, only written into the file: `l` becomes another `d` there.
  const whole = await hostileCatalog(place, "");
  const { file } = whole;
  whole.close();
  const bytes = readFileSync(file);
  const database = new Database(file, { readonly: true });
  const page = database.prepare("SELECT rootpage FROM sqlite_master WHERE name = 'dentry'").pluck().get() as number;
  database.close();
  const start = (page - 1) * 4096;
  const root = bytes.subarray(start, start + bytes.readUInt16BE(16));
  // Record of (1, "l", 3): the name's one byte, then the inode number.
  const at = root.lastIndexOf(Buffer.from([0x6c, 0x03]));
  assert.ok(at > 0);
  root[at] = 0x64;
  const copy = `${file}-twice`;
  writeFileSync(copy, bytes);
  const catalog = Catalog.open(copy);
  assert.deepEqual(
    catalog.readdir(ROOT_INO, undefined, 9).map((entry) => entry.name),
    ["d", "d"],
  );
  await assert.rejects(restore(catalog, place.path("target")), { code: "damaged" });
  assert.deepEqual(readdirSync(place.path("outside")), []);
});

test("links that stand in the destination are replaced, not followed", async () => {
  using place = await Workplace.make();
  const outside = place.path("outside");
  const target = place.path("target");
  mkdirSync(outside);
  mkdirSync(target);
  writeFileSync(join(outside, "f"), "precious");
  symlinkSync(outside, join(target, "d"));
  symlinkSync(join(outside, "f"), join(target, "l"));
  await restore(await hostileCatalog(place, ""), target);
  assert.deepEqual(readdirSync(outside), ["f"]);
  assert.equal(readFileSync(join(outside, "f"), "utf8"), "precious");
  assert.equal(readFileSync(join(target, "d", "f"), "utf8"), "evil");
});

test("a damaged blob is named and nothing of it is written", async () => {
  using place = await Workplace.make();
  place.write("a", "a".repeat(100));
  const { bundle } = await place.upload();
  const [blob] = [...place.blobs().keys()].filter((name) => name.startsWith("blobs/"));
  const file = place.path("blob", blob as string);
  const bytes = readFileSync(file);
  bytes[bytes.length - 1] = (bytes[bytes.length - 1] as number) ^ 1;
  renameSync(file, `${file}.good`);
  writeFileSync(file, bytes);
  await assert.rejects(place.download(bundle, "copy"), { code: "damaged", message: /blobs\/.*0 of 1 files/s });
  assert.equal(existsSync(place.path("copy", "a")), false);
  renameSync(`${file}.good`, file);
  await place.download(bundle, "copy", { forceDest: true });
  assert.equal(readFileSync(place.path("copy", "a"), "utf8"), "a".repeat(100));
});

test("an entry .datamon at the top of a bundle is not restored", async () => {
  using place = await Workplace.make();
  place.write("a", "a");
  place.write(".datamon/mine", "mine");
  const { bundle } = await place.upload();
  assert.match(place.warnings.join(), /left out: .*\.datamon/);
  const copy = await place.download(bundle, "copy");
  assert.deepEqual([...snapshot(copy).keys()], ["", "a"] as ByteString[]);
});
