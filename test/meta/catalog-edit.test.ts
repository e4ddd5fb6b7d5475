import assert from "node:assert/strict";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { bytesOf, DatamonError, hashOf } from "../../src/cas/index.ts";
import { CatalogWriter, ROOT_INO } from "../../src/meta/index.ts";
import {
  add,
  attributes,
  build,
  content,
  directory,
  factsOfCatalog,
  factsOfTree,
  file,
  type Node,
  sample,
  temporaryDirectory,
  withCatalog,
} from "./catalog-trees.ts";

const b = bytesOf;

test("an edit costs no other inode its number, and one that restores everything restores the tree hash", async () => {
  using temporary = temporaryDirectory();
  const [base, changed, restored] = ["base", "changed", "restored"].map((name) => join(temporary.path, name)) as [
    string,
    string,
    string,
  ];
  const inos = new Map<Node, number>();
  const tree = sample();
  const summary = await build(base, tree, inos);
  const at = (path: string) => withCatalog(base, (catalog) => catalog.resolve(b(path))!);
  const [sub, deep, a] = [at("sub").ino, at("sub/deep").ino, at("a.txt").ino];

  const edit = CatalogWriter.edit(base, changed);
  edit.unlink(sub, b("deep"));
  edit.link(ROOT_INO, b("moved"), deep);
  edit.setContent(a, content("other"));
  const added = edit.reserve(1);
  edit.addFile(deep, b("new"), added, attributes("file"), content("new"));
  const between = await edit.finish();
  assert.notEqual(between.tree, summary.tree);
  withCatalog(changed, (catalog) => {
    assert.equal(catalog.resolve(b("moved"))?.ino, deep);
    assert.equal(catalog.parent(deep), ROOT_INO);
    assert.equal(catalog.resolve(b("moved/new"))?.ino, added);
    assert.equal(catalog.inode(ROOT_INO)?.nlink, 5);
    assert.equal(catalog.inode(sub)?.nlink, 2);
  });

  const back = CatalogWriter.edit(changed, restored);
  back.link(sub, b("deep"), deep);
  back.unlink(ROOT_INO, b("moved"));
  back.unlink(deep, b("new"));
  back.setContent(a, content("a"));
  assert.equal((await back.finish()).tree, summary.tree);
  withCatalog(restored, (catalog) => {
    assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree));
    const hashes = Array.from(catalog.blobs(), (blob) => blob.hash).sort();
    assert.deepEqual(
      hashes,
      withCatalog(base, (before) => Array.from(before.blobs(), (blob) => blob.hash).sort()),
    );
  });
});

test("removing a directory removes what is below it, but not what has another name", async () => {
  using temporary = temporaryDirectory();
  const [base, changed] = ["base", "changed"].map((name) => join(temporary.path, name)) as [string, string];
  const tree = sample();
  await build(base, tree);
  const edit = CatalogWriter.edit(base, changed);
  edit.unlink(ROOT_INO, b("sub"));
  const summary = await edit.finish();
  tree.children.delete(b("sub"));
  assert.deepEqual([summary.files, summary.directories, summary.symlinks, summary.bytes], [3, 2, 0, 11]);
  withCatalog(changed, (catalog) => {
    assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree));
    assert.equal(catalog.parent(catalog.resolve(b("b.txt"))!.ino), ROOT_INO);
  });
});

test("a catalog that lost most of its entries shrinks", async () => {
  using temporary = temporaryDirectory();
  const [base, changed] = ["base", "changed"].map((name) => join(temporary.path, name)) as [string, string];
  const many = directory();
  for (let index = 0; index < 5000; index++) many.children.set(b(`file ${index}`), file(`content ${index}`));
  const tree = directory({ many, "kept.txt": file("kept") });
  await build(base, tree);
  const edit = CatalogWriter.edit(base, changed);
  edit.unlink(ROOT_INO, b("many"));
  const summary = await edit.finish();
  tree.children.delete(b("many"));
  withCatalog(changed, (catalog) => assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree)));
  assert.ok(statSync(changed).size < statSync(base).size / 10);
  assert.equal(summary.hash, hashOf(readFileSync(changed)));
});

test("mistakes of the caller are refused, and nothing is left of the file", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const attempt = async (mistake: (writer: CatalogWriter) => void, expected: RegExp) => {
    const writer = CatalogWriter.create(path);
    writer.addFile(ROOT_INO, b("f"), 2, attributes("file"), content("f"));
    writer.addDirectory(ROOT_INO, b("d"), 3, attributes("directory"));
    await assert.rejects(async () => {
      mistake(writer);
      await writer.finish();
    }, expected);
    writer.abort();
    assert.throws(() => statSync(path), { code: "ENOENT" });
  };
  await attempt((w) => w.addFile(ROOT_INO, b("f"), 4, attributes("file"), content("g")), /UNIQUE/);
  await attempt((w) => w.addFile(ROOT_INO, b("a/b"), 4, attributes("file"), content("g")), /no directory can hold/);
  await attempt((w) => w.addFile(2, b("g"), 4, attributes("file"), content("g")), /not a directory/);
  await attempt((w) => w.addFile(ROOT_INO, b("g"), 4, attributes("symlink"), content("g")), /another type's mode/);
  await attempt((w) => w.setAttributes(2, attributes("directory")), /cannot change its type/);
  await attempt((w) => w.setAttributes(9, attributes("file")), /no inode 9/);
  await attempt((w) => w.link(3, b("again"), 3), /second name/);
  await attempt((w) => w.unlink(ROOT_INO, b("f")), /edit only/);
  await attempt((w) => w.addDirectory(3, b("low"), 3, attributes("directory")), /numbered before/);

  await build(path, directory({ d: directory({ e: directory() }), f: file("f") }));
  const edited = join(temporary.path, "e.sqlite");
  const attemptEdit = async (mistake: (writer: CatalogWriter) => void, expected: RegExp) => {
    const writer = CatalogWriter.edit(path, edited);
    await assert.rejects(async () => {
      mistake(writer);
      await writer.finish();
    }, expected);
    writer.abort();
    assert.throws(() => statSync(edited), { code: "ENOENT" });
  };
  const [d, e, f] = ["d", "d/e", "f"].map((name) => withCatalog(path, (catalog) => catalog.resolve(b(name))!.ino)) as [
    number,
    number,
    number,
  ];
  await attemptEdit((w) => w.link(ROOT_INO, b("again"), d), /several names/);
  await attemptEdit((w) => w.addFile(f, b("x"), 99, attributes("file"), content("x")), /not a directory/);
  await attemptEdit((w) => w.unlink(ROOT_INO, b("none")), /no entry of that name/);
  await attemptEdit((w) => {
    w.unlink(ROOT_INO, b("d"));
    w.link(e, b("d"), d);
  }, /inside itself/);
});

test("an existing file is never overwritten by a new catalog or by an edit", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const { hash } = await build(path, sample());
  assert.throws(() => CatalogWriter.create(path), DatamonError);
  assert.throws(() => CatalogWriter.edit(path, path), DatamonError);
  assert.equal(hashOf(readFileSync(path)), hash);
});

test("an edit adds whole subtrees", async () => {
  using temporary = temporaryDirectory();
  const [base, changed] = ["base", "changed"].map((name) => join(temporary.path, name)) as [string, string];
  const tree = directory({ a: file("a") });
  const inos = new Map<Node, number>();
  await build(base, tree, inos);
  const subtree = sample();
  const edit = CatalogWriter.edit(base, changed);
  add(edit, inos, ROOT_INO, [[b("subtree"), subtree]]);
  const { tree: hash } = await edit.finish();
  tree.children.set(b("subtree"), subtree);
  withCatalog(changed, (catalog) => assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree)));
  assert.equal((await build(join(temporary.path, "fresh"), tree)).tree, hash);
});
