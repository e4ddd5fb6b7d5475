import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { type ByteString, bytesFrom, bytesOf, isValidName } from "../../src/cas/index.ts";
import { CatalogWriter, diffCatalogs } from "../../src/meta/index.ts";
import {
  attributes,
  build,
  content,
  type Directory,
  directory,
  factsOfCatalog,
  factsOfTree,
  type Node,
  sorted,
  temporaryDirectory,
  withCatalog,
} from "./catalog-trees.ts";

const name = fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom("a", "b", "c", "data", "README.md").map(bytesOf) },
  {
    weight: 1,
    arbitrary: fc.string({ minLength: 1, maxLength: 12, unit: "grapheme" }).map(bytesOf).filter(isValidName),
  },
  { weight: 1, arbitrary: fc.uint8Array({ minLength: 1, maxLength: 8 }).map(bytesFrom).filter(isValidName) },
  {
    weight: 1,
    arbitrary: fc
      .integer({ min: 0x21, max: 0x7e })
      .filter((code) => code !== 0x2f)
      .map((code) => String.fromCharCode(code).repeat(255) as ByteString),
  },
);

/** What one step of building or changing a tree draws from; indexes are taken modulo what is there. */
const step = fc.record({
  what: fc.constantFrom("file", "file", "directory", "symlink", "link", "unlink", "move", "attributes", "content"),
  where: fc.nat(),
  which: fc.nat(),
  name,
  text: fc.oneof(fc.constantFrom("", "one", "two"), fc.string({ maxLength: 20 })),
  blob: fc.constantFrom(undefined, "shared blob"),
  linkFirst: fc.boolean(),
  mode: fc.integer({ min: 0, max: 0o7777 }),
  uid: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
  mtimeNs: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  xattrs: fc.option(
    fc.uniqueArray(fc.tuple(name, fc.uint8Array({ maxLength: 10 })), { selector: ([key]) => key, maxLength: 3 }),
    { nil: undefined, freq: 5 },
  ),
});
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

/** A writer that is told of the same changes as the tree; undefined where only the tree is changed. */
interface Target {
  writer: CatalogWriter;
  inos: Map<Node, number>;
}

function directoriesOf(tree: Directory): Directory[] {
  const below = [...tree.children.values()].filter((node) => node.kind === "directory");
  return [tree, ...below.flatMap(directoriesOf)];
}

function apply(tree: Directory, draw: Step, target: Target | undefined): void {
  const pick = <T>(from: T[], index: number): T | undefined => from[index % from.length];
  const directories = directoriesOf(tree);
  const parent = pick(directories, draw.where)!;
  const given = { mode: draw.mode, uid: draw.uid, mtimeNs: draw.mtimeNs };
  const xattrs = new Map(draw.xattrs?.map(([key, value]) => [key, Buffer.from(value)]));
  const attributesOf = (kind: Node["kind"]) => attributes(kind, xattrs.size === 0 ? given : { ...given, xattrs });
  const inoOf = (node: Node) => target?.inos.get(node) ?? 0;
  const writer = target?.writer;
  const free = !parent.children.has(draw.name);
  const named = directories.flatMap((from) => sorted(from).map(([key, node]) => ({ from, key, node })));
  const chosen = pick(named, draw.which);

  const create = (node: Node): void => {
    if (!free) return;
    parent.children.set(draw.name, node);
    if (target === undefined) return;
    const ino = target.writer.reserve(1);
    target.inos.set(node, ino);
    if (node.kind === "file") target.writer.addFile(inoOf(parent), draw.name, ino, node.attributes, node.content);
    else if (node.kind === "symlink")
      target.writer.addSymlink(inoOf(parent), draw.name, ino, node.attributes, node.target);
    else target.writer.addDirectory(inoOf(parent), draw.name, ino, node.attributes);
  };

  switch (draw.what) {
    case "file":
      create({ kind: "file", attributes: attributesOf("file"), content: content(draw.text, draw.blob) });
      return;
    case "directory":
      create({ ...directory(), attributes: attributesOf("directory") });
      return;
    case "symlink":
      create({ kind: "symlink", attributes: attributesOf("symlink"), target: bytesOf(draw.text || "x") });
      return;
    case "link":
      if (chosen === undefined || chosen.node.kind === "directory" || !free) return;
      parent.children.set(draw.name, chosen.node);
      writer?.link(inoOf(parent), draw.name, inoOf(chosen.node));
      return;
    case "unlink":
      if (chosen === undefined) return;
      chosen.from.children.delete(chosen.key);
      writer?.unlink(inoOf(chosen.from), chosen.key);
      return;
    case "move": {
      if (chosen === undefined || !free) return;
      if (chosen.node.kind === "directory" && directoriesOf(chosen.node).includes(parent)) return;
      chosen.from.children.delete(chosen.key);
      parent.children.set(draw.name, chosen.node);
      if (draw.linkFirst) writer?.link(inoOf(parent), draw.name, inoOf(chosen.node));
      writer?.unlink(inoOf(chosen.from), chosen.key);
      if (!draw.linkFirst) writer?.link(inoOf(parent), draw.name, inoOf(chosen.node));
      return;
    }
    case "attributes":
      if (chosen === undefined) return;
      chosen.node.attributes = attributesOf(chosen.node.kind);
      writer?.setAttributes(inoOf(chosen.node), chosen.node.attributes);
      return;
    case "content":
      if (chosen?.node.kind !== "file") return;
      chosen.node.content = content(draw.text, draw.blob);
      writer?.setContent(inoOf(chosen.node), chosen.node.content);
  }
}

test("random trees are read back as they were written", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      using temporary = temporaryDirectory();
      const tree = directory();
      for (const draw of steps) apply(tree, draw, undefined);
      const path = join(temporary.path, "c.sqlite");
      const summary = await build(path, tree);
      withCatalog(path, (catalog) => {
        assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree));
        assert.deepEqual({ ...catalog.summary(), file: path, hash: summary.hash }, summary);
        for (const { path: at, inode, parent } of catalog.walk()) {
          assert.equal(catalog.resolve(at)?.ino, inode.ino);
          if (inode.nlink === 1) assert.equal(catalog.parent(inode.ino), parent);
        }
      });
    }),
    { numRuns: 500 },
  );
});

test("random edits of a copy make the catalog that a fresh build of the same tree makes", async () => {
  const rounds = fc.array(fc.array(step, { maxLength: 25 }), { minLength: 1, maxLength: 3 });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), rounds, async (first, edits) => {
      using temporary = temporaryDirectory();
      const tree = directory();
      for (const draw of first) apply(tree, draw, undefined);
      const inos = new Map<Node, number>();
      let path = join(temporary.path, "base.sqlite");
      const base = path;
      const original = factsOfTree(tree);
      await build(base, tree, inos);
      for (const [round, steps] of edits.entries()) {
        const next = join(temporary.path, `${round}.sqlite`);
        const writer = CatalogWriter.edit(path, next);
        for (const draw of steps) apply(tree, draw, { writer, inos });
        const edited = await writer.finish();
        const fresh = await build(join(temporary.path, `fresh-${round}.sqlite`), tree);
        assert.equal(edited.tree, fresh.tree);
        assert.deepEqual(
          [edited.files, edited.directories, edited.symlinks, edited.bytes],
          [fresh.files, fresh.directories, fresh.symlinks, fresh.bytes],
        );
        withCatalog(next, (catalog) => {
          assert.deepEqual(factsOfCatalog(catalog), factsOfTree(tree));
          const blobs = Array.from(catalog.blobs(), (blob) => blob.hash).sort();
          assert.deepEqual(
            blobs,
            withCatalog(fresh.file, (other) => Array.from(other.blobs(), (blob) => blob.hash).sort()),
          );
          const kept = reachable(tree);
          for (const [node, ino] of inos) {
            assert.equal(catalog.inode(ino) !== undefined, kept.has(node), "inodes keep their numbers");
            if (!kept.has(node)) inos.delete(node);
          }
        });
        path = next;
      }
      compareDiff(base, path, original, factsOfTree(tree));
    }),
    { numRuns: 500 },
  );
});

function reachable(tree: Directory): Set<Node> {
  return new Set<Node>([tree, ...directoriesOf(tree).flatMap((from) => [...from.children.values()])]);
}

/** Checks a diff of two catalogs against their trees, path by path. */
function compareDiff(
  from: string,
  to: string,
  before: ReturnType<typeof factsOfTree>,
  after: ReturnType<typeof factsOfTree>,
): void {
  const comparable = (facts: typeof before) =>
    new Map(
      facts.map(({ path, mode, uid, gid, mtimeNs, xattrs, hash, target }) => [
        path as ByteString,
        JSON.stringify([mode, uid, gid, String(mtimeNs), xattrs, hash, target]),
      ]),
    );
  const [olds, news] = [comparable(before), comparable(after)];
  const expected = [...new Set([...olds.keys(), ...news.keys()])]
    .filter((path) => olds.get(path) !== news.get(path))
    .map((path) => (!olds.has(path) ? "A" : !news.has(path) ? "D" : "U") + path)
    .sort();
  const found = withCatalog(from, (a) =>
    withCatalog(to, (b) => Array.from(diffCatalogs(a, b), (difference) => difference.kind + difference.path)),
  );
  assert.deepEqual(found.sort(), expected);
  assert.equal(new Set(found).size, found.length);
}
