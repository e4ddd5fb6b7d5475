import assert from "node:assert/strict";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import Database from "better-sqlite3";
import {
  type ByteString,
  bytesFrom,
  bytesOf,
  DerivedHasher,
  type Extent,
  type FileContent,
  hashOf,
} from "../../src/cas/index.ts";
import { Catalog, ROOT_INO } from "../../src/meta/index.ts";
import {
  attributes,
  build,
  content,
  directory,
  factsOfCatalog,
  factsOfTree,
  file,
  type Node,
  sample,
  symlink,
  temporaryDirectory,
  withCatalog,
} from "./catalog-trees.ts";

const b = bytesOf;

test("a tree is read back as it was written, in path order", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const tree = sample();
  const summary = await build(path, tree);
  assert.deepEqual(
    { files: summary.files, directories: summary.directories, symlinks: summary.symlinks, bytes: summary.bytes },
    { files: 5, directories: 5, symlinks: 1, bytes: 12 },
  );
  const catalog = Catalog.open(path, { expectedHash: summary.hash });
  catalog.validate();
  assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree));
  assert.deepEqual(
    Array.from(catalog.walk(), (entry) => entry.path as string),
    [
      "a.txt",
      "b.txt",
      "empty",
      "sub",
      "x.bin",
      "sub/c.txt",
      "sub/deep",
      "sub/link",
      "sub/second",
      "sub/deep/deeper",
      "sub/deep/deeper/d.txt",
    ],
  );
  assert.equal(catalog.summary().tree, summary.tree);
  assert.equal(catalog.inode(ROOT_INO)?.hash, summary.tree);
  catalog.close();
});

test("single entries are found by number, name and path", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const inos = new Map<Node, number>();
  const tree = sample();
  await build(path, tree, inos);
  withCatalog(path, (catalog) => {
    const sub = catalog.lookup(ROOT_INO, b("sub"))!;
    assert.equal(sub.nlink, 3);
    assert.equal(catalog.lookup(ROOT_INO, b("suB")), undefined);
    assert.equal(catalog.lookup(999, b("sub")), undefined);
    assert.equal(catalog.inode(999), undefined);
    assert.equal(catalog.resolve(b(""))?.ino, ROOT_INO);
    assert.equal(catalog.resolve(b("sub/link"))?.target, "../a.txt");
    assert.equal(catalog.resolve(b("sub/link/x")), undefined);
    assert.equal(catalog.resolve(b("no/such")), undefined);
    const second = catalog.resolve(b("sub/second"))!;
    assert.equal(second.ino, catalog.resolve(b("b.txt"))?.ino);
    assert.equal(second.nlink, 2);
    assert.equal(catalog.parent(second.ino), undefined, "two names: no one parent");
    assert.equal(catalog.parent(ROOT_INO), undefined);
    assert.equal(catalog.parent(sub.ino), ROOT_INO);
    assert.equal(
      catalog.parent(catalog.resolve(b("sub/deep/deeper/d.txt"))!.ino),
      catalog.resolve(b("sub/deep/deeper"))!.ino,
    );
    assert.deepEqual(catalog.content(second.ino), content("two names"));
    assert.throws(() => catalog.content(sub.ino), { code: "not-found" });
    assert.equal(catalog.maxIno(), Math.max(...inos.values()));
    assert.deepEqual(new Map(Array.from(catalog.contentHashes(), (entry) => [entry.ino, entry.hash])).size, 5);
    assert.equal([...catalog.blobs()].length, 4);
  });
});

test("directories are read page by page in byte order, whatever their names", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const raw = (...bytes: number[]) => bytesFrom(Uint8Array.from(bytes));
  const names = [
    raw(1),
    raw(0x0a, 0x27),
    b("\ufeff"),
    b("A"),
    b("a"),
    b("a\\b"),
    b("é"),
    b("日本"),
    raw(0x80),
    raw(0xff),
    raw(0xff, 0xfe, 0x41),
    raw(0xc3, 0x28),
    raw(0xed, 0xa0, 0x80),
    b("�"),
    b("z".repeat(255)),
    b(" "),
    b(".a"),
    b("..."),
  ];
  const tree = directory();
  for (const name of names) tree.children.set(name, file(name));
  await build(path, tree);
  withCatalog(path, (catalog) => {
    const expected = [...names].sort();
    for (const limit of [1, 2, 5, 100]) {
      const read: ByteString[] = [];
      for (;;) {
        const page = catalog.readdir(ROOT_INO, read.at(-1), limit);
        read.push(...page.map((entry) => entry.name));
        if (page.length < limit) break;
      }
      assert.deepEqual(read, expected);
    }
    for (const name of names) assert.equal(catalog.lookup(ROOT_INO, name)?.hash, hashOf(Buffer.from(name)));
    assert.deepEqual(catalog.readdir(12345, undefined, 10), []);
  });
});

test("more entries and subdirectories than one page are walked", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const tree = directory();
  for (let index = 0; index < 2500; index++) tree.children.set(b(`f${index}`), file("same"));
  for (let index = 0; index < 600; index++) tree.children.set(b(`d${index}`), directory({ inside: file("i") }));
  await build(path, tree);
  withCatalog(path, (catalog) => assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree)));
});

test("times keep every nanosecond of 64 bits and are held within them", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const limits = [-(2n ** 63n), 2n ** 63n - 1n] as const;
  const times = [
    0n,
    -1n,
    1n,
    -1_000_000_001n,
    2n ** 53n + 1n,
    -(2n ** 53n) - 1n,
    ...limits,
    limits[0] - 1n,
    limits[1] + 1n,
  ];
  const tree = directory(Object.fromEntries(times.map((mtimeNs, index) => [`t${index}`, file("t", { mtimeNs })])));
  await build(path, tree);
  withCatalog(path, (catalog) => {
    const read = times.map((_, index) => catalog.lookup(ROOT_INO, b(`t${index}`))!.mtimeNs);
    assert.deepEqual(read, [...times.slice(0, 8), ...limits]);
  });
});

test("extents are found by range, also far into a large file", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const MIB = 1024 * 1024;
  const extents: Extent[] = [];
  // Chunks of 1 to 8 MiB with every fifth one a hole, to beyond 4 GiB.
  let start = 0;
  for (let index = 0; start < 5 * 1024 * MIB; index++) {
    const length = (1 + (index % 8)) * MIB;
    if (index % 5 !== 0) extents.push({ start, blob: hashOf(Buffer.from(`chunk ${index}`)), offset: 0, length });
    start += length;
  }
  const big: FileContent = { hash: hashOf(Buffer.from("big")), size: start + 77, extents };
  const tree = directory();
  tree.children.set(b("big"), { kind: "file", attributes: attributes("file"), content: big });
  await build(path, tree);
  withCatalog(path, (catalog) => {
    const { ino, size } = catalog.lookup(ROOT_INO, b("big"))!;
    assert.equal(size, big.size);
    assert.deepEqual(catalog.content(ino), big);
    const ranges = [
      [0, 1],
      [0, 0],
      [MIB, MIB + 1],
      [5 * MIB - 1, 5 * MIB + 1],
      [2 ** 32 - 5, 2 ** 32 + 9 * MIB],
      [start - 1, start],
      [start, start + 77],
      [0, big.size],
    ];
    for (const [from, to] of ranges as [number, number][]) {
      const expected = extents.filter((extent) => extent.start < to && extent.start + extent.length > from);
      assert.deepEqual(catalog.extents(ino, from, to), expected, `${from} to ${to}`);
    }
  });
});

test("the same calls make the same bytes, in one file", async () => {
  using temporary = temporaryDirectory();
  const paths = ["one.sqlite", "two.sqlite"].map((name) => join(temporary.path, name));
  const [one, two] = [await build(paths[0]!, sample()), await build(paths[1]!, sample())];
  assert.equal(one.hash, two.hash);
  assert.equal(one.hash, hashOf(readFileSync(paths[0]!)));
  assert.equal(statSync(paths[0]!).size % 4096, 0);
  assert.throws(() => statSync(`${paths[0]}-journal`));
});

test("the identification of the file is pinned", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  await build(path, sample());
  const database = new Database(path, { readonly: true });
  assert.equal(database.pragma("application_id", { simple: true }), 0x444d4354);
  assert.equal(database.pragma("user_version", { simple: true }), 1);
  assert.equal(database.pragma("page_size", { simple: true }), 4096);
  assert.deepEqual(database.prepare("SELECT key FROM meta").pluck().all(), [
    "bytes",
    "directories",
    "files",
    "format",
    "symlinks",
    "tree",
  ]);
  database.close();
});

test("the tree hash and the form of extended attributes are pinned", async () => {
  using temporary = temporaryDirectory();
  const path = join(temporary.path, "c.sqlite");
  const xattrs = new Map([
    [b("user.b"), Buffer.from("12")],
    [b("user.a"), Buffer.alloc(0)],
  ]);
  const encoded = Buffer.from("06757365722e6100000000" + "06757365722e62020000003132", "hex");
  const tree = directory({
    f: file("hi", { xattrs, mtimeNs: -2n, uid: 3, gid: 4 }),
    l: symlink(b("f"), { mtimeNs: 5n }),
    s: directory(),
  });
  const summary = await build(path, tree);

  const entry = (
    name: string,
    mode: number,
    uid: number,
    gid: number,
    mtimeNs: bigint,
    size: number,
    more: Buffer[],
  ) => {
    const numbers = Buffer.alloc(28);
    numbers.writeUInt32LE(mode, 0);
    numbers.writeUInt32LE(uid, 4);
    numbers.writeUInt32LE(gid, 8);
    numbers.writeBigInt64LE(mtimeNs, 12);
    numbers.writeBigUInt64LE(BigInt(size), 20);
    return Buffer.concat([Buffer.from([name.length]), Buffer.from(name), numbers, ...more]);
  };
  const empty = Buffer.from(new DerivedHasher("datamon directory 1").digest(), "hex");
  const none = Buffer.alloc(4);
  const expected = new DerivedHasher("datamon directory 1")
    .update(
      entry("f", 0o100644, 3, 4, -2n, 2, [
        Buffer.from([encoded.length, 0, 0, 0]),
        encoded,
        Buffer.from(hashOf(Buffer.from("hi")), "hex"),
      ]),
    )
    .update(entry("l", 0o120644, 1000, 100, 5n, 1, [none, Buffer.from("f")]))
    .update(entry("s", 0o040755, 1000, 100, 1_700_000_000_123_456_789n, 0, [none, empty]))
    .digest();
  assert.equal(summary.tree, expected);
  assert.equal(summary.tree, "e03d2d96768f344352cd6e4ad68276490d2ef51736709eb06b3b73e197cc4667");
  const database = new Database(path, { readonly: true });
  assert.deepEqual(database.prepare("SELECT xattrs FROM inode WHERE xattrs IS NOT NULL").pluck().all(), [encoded]);
  database.close();
});

test("attributes of the root are kept but are no part of the tree hash", async () => {
  using temporary = temporaryDirectory();
  const [one, two] = ["one.sqlite", "two.sqlite"].map((name) => join(temporary.path, name)) as [string, string];
  const tree = sample();
  const before = await build(one, tree);
  tree.attributes = attributes("directory", { mode: 0o700, uid: 7, mtimeNs: 1n });
  const after = await build(two, tree);
  assert.equal(before.tree, after.tree);
  withCatalog(two, (catalog) => assert.deepEqual(catalog.inode(ROOT_INO)?.mtimeNs, 1n));
});
