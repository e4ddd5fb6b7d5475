import assert from "node:assert/strict";
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { zstdCompressSync } from "node:zlib";
import Database from "better-sqlite3";
import { bytesOf, type Hash, hashOf, type ObjectStore, openStore, setFault } from "../../src/cas/index.ts";
import { CatalogWriter, fetchCatalog, putCatalog, ROOT_INO } from "../../src/meta/index.ts";
import {
  attributes,
  build,
  content,
  directory,
  factsOfCatalog,
  factsOfTree,
  file,
  temporaryDirectory,
  withCatalog,
} from "./catalog-trees.ts";

interface Place {
  context: { metadata: ObjectStore };
  /** Where the objects lie. */
  store: string;
  /** For catalogs that are built, and for fetched ones. */
  built: string;
  fetched: string;
}

async function place(temporary: string): Promise<Place> {
  const [store, built, fetched] = ["store", "built", "fetched"].map((name) => join(temporary, name)) as [
    string,
    string,
    string,
  ];
  mkdirSync(store);
  mkdirSync(built);
  return { context: { metadata: await openStore(pathToFileURL(store).href) }, store, built, fetched };
}

const keyOf = (hash: Hash) => `catalogs/${hash.slice(0, 2)}/${hash}`;

function tree(files = 200) {
  const names = Array.from({ length: files }, (_, index) => [`file ${index}`, file(`content ${index}`)] as const);
  return directory({ ...Object.fromEntries(names), sub: directory({ x: file("x") }) });
}

/** Puts bytes of our own under the key of the catalog `hash`. */
function forge(store: string, hash: Hash, stored: Uint8Array): void {
  const path = join(store, keyOf(hash));
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, stored);
}

async function assertRefused({ context, fetched }: Place, hash: Hash, why: RegExp): Promise<void> {
  await assert.rejects(fetchCatalog(context, hash, fetched), (error: Error & { code?: string; key?: string }) => {
    assert.equal(error.code, "damaged", error.stack);
    assert.equal(error.key, keyOf(hash));
    assert.match(error.message, why);
    return true;
  });
  assert.deepEqual(readdirSync(fetched), []);
}

test("a catalog goes into the store and comes back the same", async () => {
  using temporary = temporaryDirectory();
  const { context, store, built, fetched } = await place(temporary.path);
  const { hash } = await build(join(built, "c.sqlite"), tree());
  await putCatalog(context, join(built, "c.sqlite"), hash);
  const stored = join(store, keyOf(hash));
  assert.ok(statSync(stored).size < statSync(join(built, "c.sqlite")).size / 2);
  const before = readFileSync(stored);
  await putCatalog(context, join(built, "c.sqlite"), hash);
  assert.deepEqual(readFileSync(stored), before);
  assert.deepEqual(readdirSync(built), ["c.sqlite"]);

  const path = await fetchCatalog(context, hash, fetched);
  assert.equal(path, join(fetched, `${hash}.sqlite`));
  assert.equal(hashOf(readFileSync(path)), hash);
  assert.deepEqual(readdirSync(fetched), [`${hash}.sqlite`]);
  withCatalog(path, (catalog) => assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree())));
});

test("a catalog that is here already needs no store, and one damaged here is fetched anew", async () => {
  using temporary = temporaryDirectory();
  const { context, store, built, fetched } = await place(temporary.path);
  const { hash } = await build(join(built, "c.sqlite"), tree());
  await putCatalog(context, join(built, "c.sqlite"), hash);
  const path = await fetchCatalog(context, hash, fetched);
  const bytes = readFileSync(path);
  bytes[5000]! ^= 1;
  writeFileSync(path, bytes);
  await fetchCatalog(context, hash, fetched);
  assert.equal(hashOf(readFileSync(path)), hash);
  writeFileSync(join(store, keyOf(hash)), "gone");
  assert.equal(await fetchCatalog(context, hash, fetched), path);
});

test("several fetches of one catalog at once all succeed", async () => {
  using temporary = temporaryDirectory();
  const { context, built, fetched } = await place(temporary.path);
  const { hash } = await build(join(built, "c.sqlite"), tree());
  await putCatalog(context, join(built, "c.sqlite"), hash);
  const paths = await Promise.all(Array.from({ length: 5 }, () => fetchCatalog(context, hash, fetched)));
  assert.equal(new Set(paths).size, 1);
  assert.deepEqual(readdirSync(fetched), [`${hash}.sqlite`]);
});

test("a catalog that is not in the store is named", async () => {
  using temporary = temporaryDirectory();
  const { context, fetched } = await place(temporary.path);
  const hash = "ab".repeat(32);
  await assert.rejects(fetchCatalog(context, hash, fetched), { code: "not-found", message: new RegExp(keyOf(hash)) });
  assert.deepEqual(readdirSync(fetched), []);
});

test("stored bytes that are changed, cut short or those of something else are refused by the object's name", async () => {
  using temporary = temporaryDirectory();
  const here = await place(temporary.path);
  const { context, store, built } = here;
  const path = join(built, "c.sqlite");
  const { hash } = await build(path, tree(2000));
  await putCatalog(context, path, hash);
  const stored = readFileSync(join(store, keyOf(hash)));
  for (let at = 0; at < stored.length; at += Math.ceil(stored.length / 20)) {
    const changed = Buffer.from(stored);
    changed[at]! ^= 0x55;
    forge(store, hash, changed);
    await assertRefused(here, hash, /./);
  }
  for (const length of [0, 1, 10, stored.length >> 1, stored.length - 1]) {
    forge(store, hash, stored.subarray(0, length));
    await assertRefused(here, hash, /./);
  }
  forge(store, hash, zstdCompressSync(Buffer.from("another content")));
  await assertRefused(here, hash, /its content has the hash/);
});

test("content of the right hash that is no valid catalog is refused", async () => {
  using temporary = temporaryDirectory();
  const here = await place(temporary.path);
  const text = Buffer.from("no catalog".repeat(500));
  forge(here.store, hashOf(text), zstdCompressSync(text));
  await assertRefused(here, hashOf(text), /not an SQLite file/);

  const path = join(here.built, "c.sqlite");
  await build(path, tree());
  const database = new Database(path);
  database.exec("UPDATE dentry SET name = CAST('../up' AS BLOB) WHERE name = CAST('sub' AS BLOB)");
  database.close();
  const evil = readFileSync(path);
  forge(here.store, hashOf(evil), zstdCompressSync(evil));
  await assertRefused(here, hashOf(evil), /name that is not allowed/);
});

test("a stored catalog that would fill the disk is given up", async () => {
  using temporary = temporaryDirectory();
  const here = await place(temporary.path);
  const zeros = Buffer.alloc(100 * 1024 * 1024);
  const hash = hashOf(zeros);
  const stored = zstdCompressSync(zeros);
  assert.ok(stored.length < 64 * 1024);
  forge(here.store, hash, stored);
  await assertRefused(here, hash, /decode to more than/);
});

test("a file that does not have its hash is not stored", async () => {
  using temporary = temporaryDirectory();
  const { context, store, built } = await place(temporary.path);
  await build(join(built, "c.sqlite"), tree());
  await assert.rejects(putCatalog(context, join(built, "c.sqlite"), "0".repeat(64)), { code: "damaged" });
  assert.deepEqual(readdirSync(store), []);
});

test("a failing or full disk leaves no temporary files, and the next try succeeds", async () => {
  using temporary = temporaryDirectory();
  const { context, built, fetched } = await place(temporary.path);
  const path = join(built, "c.sqlite");
  const { hash } = await build(path, tree());
  setFault("put.catalogs:1:nospace");
  try {
    await assert.rejects(putCatalog(context, path, hash), { code: "no-space" });
  } finally {
    setFault(undefined);
  }
  assert.deepEqual(readdirSync(built), ["c.sqlite"]);
  await putCatalog(context, path, hash);
  writeFileSync(fetched, "in the way of the directory");
  await assert.rejects(fetchCatalog(context, hash, fetched), { code: "io", message: /fetched/ });
});

test("a catalog edited from a fetched one leaves that untouched", async () => {
  using temporary = temporaryDirectory();
  const { context, built, fetched } = await place(temporary.path);
  const path = join(built, "c.sqlite");
  const { hash } = await build(path, tree());
  await putCatalog(context, path, hash);
  const base = await fetchCatalog(context, hash, fetched);
  chmodSync(base, 0o444);
  const writer = CatalogWriter.edit(base, join(built, "e.sqlite"));
  writer.addFile(ROOT_INO, bytesOf("new"), writer.reserve(1), attributes("file"), content("new"));
  const edited = await writer.finish();
  assert.equal(hashOf(readFileSync(base)), hash);
  await putCatalog(context, edited.file, edited.hash);
  const again = await fetchCatalog(context, edited.hash, fetched);
  withCatalog(again, (catalog) => assert.ok(catalog.resolve(bytesOf("new"))));
});
