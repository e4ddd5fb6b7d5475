import assert from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { type ByteString, bytesOf, DatamonError, type ObjectStore } from "../../src/cas/index.ts";
import { commitScratch } from "../../src/fs/commit.ts";
import { openNamespace } from "../../src/fs/namespace.ts";
import { OverlayNamespace } from "../../src/fs/overlay/overlay.ts";
import { claimScratch, createScratch, type Scratch } from "../../src/fs/scratch.ts";
import { type Bundle, Catalog, type Context, diffCatalogs, getLabel, listBundles } from "../../src/meta/index.ts";
import { noise, ROOT_USER, resolve, type Spec, T0, type TreeEntry, World } from "./fixture.ts";

const b = bytesOf;
const LARGE = noise(12_000_000, 4);
const SPECS: Spec[] = [
  { path: "a", kind: "directory" },
  { path: "a/one", kind: "file", content: Buffer.from("one"), xattrs: new Map([[b("user.k"), Buffer.from("v")]]) },
  { path: "a/two", kind: "file", content: Buffer.from("two") },
  { path: "a/deep", kind: "directory" },
  { path: "a/deep/leaf", kind: "file", content: Buffer.from("leaf") },
  { path: "a/deep/er", kind: "directory" },
  { path: "a/deep/er/est", kind: "file", content: Buffer.from("est") },
  { path: "copy", kind: "link", to: "a/one" },
  { path: "large", kind: "file", content: LARGE },
  { path: "link", kind: "symlink", target: "a/one" },
];

let world: World;
let base: Bundle;
let catalog: string;
let scratch: Scratch;
let namespace: OverlayNamespace;
before(async () => {
  world = await World.open();
  base = await world.bundle(SPECS);
  catalog = await world.catalog(base);
});
after(() => world.close());
beforeEach(async () => {
  scratch = await newScratch();
  namespace = OverlayNamespace.open(scratch.directory, catalog, base.id);
});
afterEach(() => namespace.close());

const newScratch = (): Promise<Scratch> =>
  createScratch(world.scratchRoot, {
    repo: "repo",
    base: { bundle: base.id, catalog: base.catalog },
    directory: "/mnt/x",
    message: "from the scratch",
  });
const at = (path: string) => resolve(namespace, path);
const commit = (
  options: { message?: string; label?: string; onWarning?(text: string): void } = {},
  context: Context = world.context,
) => commitScratch(context, scratch, { cacheDirectory: world.cacheDirectory, ...options });

/** Closes the overlay, commits, and compares the new bundle with what the overlay showed. */
async function commitAndCompare(options: { label?: string; onWarning?(text: string): void } = {}): Promise<Bundle> {
  const expected = comparable(await world.tree(namespace));
  namespace.close();
  const bundle = await commit(options);
  assert.ok(bundle !== undefined);
  const file = await world.catalog(bundle);
  const committed = Catalog.open(file);
  committed.validate();
  committed.close();
  const snapshot = openNamespace({ kind: "snapshot", catalog: file, bundle: bundle.id });
  assert.deepEqual(comparable(await world.tree(snapshot)), expected);
  snapshot.close();
  return bundle;
}

/** What a bundle keeps of a tree: by path, without the numbers of inodes. */
function comparable(tree: Map<ByteString, TreeEntry>): unknown {
  const first = new Map<number, ByteString>();
  const entries = [...tree].toSorted(([one], [other]) => (one < other ? -1 : 1));
  return entries
    .filter(([, { attr }]) => [0o040000, 0o100000, 0o120000].includes(attr.mode & 0o170000))
    .map(([path, { attr, content, target }]) => {
      if (!first.has(attr.ino)) first.set(attr.ino, path);
      const { mode, uid, gid, size, nlink, mtimeNs } = attr;
      return {
        path,
        same: first.get(attr.ino),
        mode,
        uid,
        gid,
        size,
        nlink,
        mtimeNs,
        target,
        content: content?.toString("latin1"),
      };
    });
}

test("what differs in nothing gives no bundle", async () => {
  namespace.write(namespace.create(1, b("x"), 0o644, ROOT_USER).ino, 0, Buffer.from("x"));
  namespace.unlink(1, b("x"));
  namespace.close();
  assert.equal(await commit(), undefined);
});

test("what is written back as it was gives no bundle", async () => {
  const { ino } = at("a/two");
  namespace.write(ino, 0, Buffer.from("TWO"));
  namespace.write(ino, 0, Buffer.from("two"));
  namespace.write(at("large").ino, 5_000_000, LARGE.subarray(5_000_000, 5_000_100));
  for (const path of ["a/two", "large"]) namespace.setattr(at(path).ino, { mtimeNs: T0 }, ROOT_USER);
  assert.ok(namespace.changes() > 0);
  namespace.close();
  assert.equal(await commit(), undefined);
});

test("a change of nothing but the root's own attributes is kept", async () => {
  namespace.setattr(1, { mode: 0o751 }, { uid: 0, gid: 0, pid: 1 });
  await commitAndCompare();
});

test("every kind of change, in one bundle", async () => {
  const { ino: a } = at("a");
  const made = namespace.mkdir(a, b("made"), 0o750, ROOT_USER);
  const file = namespace.create(made.ino, b("file"), 0o640, { uid: 7, gid: 8, pid: 1 });
  namespace.write(file.ino, 0, Buffer.from("content"));
  namespace.setxattr(file.ino, b("user.x"), Buffer.from("y"), 0);
  namespace.link(file.ino, 1, b("\xc3\xa9 again"));
  namespace.create(made.ino, b("empty"), 0o600, ROOT_USER);
  namespace.symlink(made.ino, b("to"), b("../one"), ROOT_USER);
  namespace.rename(a, b("deep"), made.ino, b("moved"), 0);
  namespace.unlink(at("a/made/moved").ino, b("leaf"));
  namespace.write(at("a/one").ino, 3, Buffer.from(" more"));
  namespace.write(at("large").ino, 6_000_000, Buffer.from("a few bytes"));
  namespace.setattr(at("a/two").ino, { mode: 0o4711, uid: 3 }, ROOT_USER);
  namespace.removexattr(at("copy").ino, b("user.k"));
  namespace.unlink(1, b("link"));
  namespace.symlink(1, b("link"), b("elsewhere"), ROOT_USER);
  const { timestamp: _, ...rest } = await commitAndCompare();
  assert.deepEqual(rest.parents, [base.id]);
  assert.equal(rest.message, "from the scratch");
  assert.equal(rest.files, 6);
});

test("a removed directory takes nothing along that was moved out of it", async () => {
  const { ino: deep } = at("a/deep");
  namespace.rename(deep, b("er"), 1, b("er"), 0);
  namespace.rename(deep, b("leaf"), 1, b("leaf"), 0);
  namespace.rmdir(at("a").ino, b("deep"));
  namespace.mkdir(at("a").ino, b("deep"), 0o700, ROOT_USER);
  await commitAndCompare();
});

test("names change places", async () => {
  namespace.rename(1, b("a"), 1, b("large"), 2);
  namespace.rename(at("large").ino, b("one"), at("large").ino, b("deep"), 2);
  await commitAndCompare();
});

test("a large file that was cut and grew again", async () => {
  const { ino } = at("large");
  namespace.setattr(ino, { size: 3_000_000 }, ROOT_USER);
  namespace.setattr(ino, { size: 20_000_000 }, ROOT_USER);
  namespace.write(ino, 19_999_990, Buffer.from("0123456789"));
  await commitAndCompare();
});

test("a small file that became large, and a large one that became small", async () => {
  namespace.write(at("a/two").ino, 2_000_000, noise(1_000_000, 8));
  namespace.setattr(at("large").ino, { size: 700_000 }, ROOT_USER);
  namespace.write(at("large").ino, 10, Buffer.from("!"));
  await commitAndCompare();
});

test("an edit of a large file stores and reads little, and hashes as an upload of the whole does", async () => {
  namespace.write(at("large").ino, 6_000_000, Buffer.from("!"));
  const before = countBlobs();
  const bundle = await commitAndCompare();
  assert.ok(countBlobs() - before <= 2, "one chunk, or two where a boundary moved");
  const whole = Buffer.from(LARGE);
  whole.write("!", 6_000_000);
  const uploaded = await world.bundle([{ path: "large", kind: "file", content: whole }]);
  const hash = (file: string): string | undefined => {
    const opened = Catalog.open(file);
    const found = opened.resolve(b("large"))?.hash;
    opened.close();
    return found;
  };
  assert.equal(hash(await world.catalog(bundle)), hash(await world.catalog(uploaded)));
});

test("content that the base has is not stored again", async () => {
  const { ino } = namespace.create(1, b("same"), 0o644, ROOT_USER);
  namespace.write(ino, 0, Buffer.from("leaf"));
  const before = countBlobs();
  await commitAndCompare();
  assert.equal(countBlobs(), before);
});

test("unchanged inodes keep their numbers", async () => {
  namespace.create(at("a").ino, b("0-first"), 0o644, ROOT_USER);
  const bundle = await commitAndCompare();
  const [from, to] = [Catalog.open(catalog), Catalog.open(await world.catalog(bundle))];
  assert.equal(from.resolve(b("a/deep/er/est"))?.ino, to.resolve(b("a/deep/er/est"))?.ino);
  const kinds = [...diffCatalogs(from, to)].map(({ kind, path }) => `${kind} ${path}`);
  assert.ok(kinds.includes("A a/0-first"));
  from.close();
  to.close();
});

test("pipes and devices are left out, with a warning", async () => {
  namespace.mknod(1, b("pipe"), 0o010644, 0, ROOT_USER);
  namespace.mknod(at("a").ino, b("null"), 0o020644, 0x103, ROOT_USER);
  namespace.create(1, b("file"), 0o644, ROOT_USER);
  const warnings: string[] = [];
  await commitAndCompare({ onWarning: (text) => warnings.push(text) });
  assert.deepEqual(warnings, ["pipe is a named pipe and is not kept", "null is a character device and is not kept"]);
});

test("a tree that started empty", async () => {
  namespace.close();
  scratch = await createScratch(world.scratchRoot, { repo: "repo", directory: "/mnt/x", label: "first" });
  namespace = OverlayNamespace.open(scratch.directory, undefined, undefined);
  const { ino } = namespace.mkdir(1, b("dir"), 0o755, ROOT_USER);
  for (let index = 0; index < 50; index++) {
    namespace.write(namespace.create(ino, b(`f${index}`), 0o644, ROOT_USER).ino, 0, Buffer.from(`${index}`));
  }
  const bundle = await commitAndCompare();
  assert.deepEqual(bundle.parents, []);
  assert.equal((await getLabel(world.context, "repo", "first")).bundle, bundle.id);
});

test("a commit of a tree that started empty and stayed so is none", async () => {
  namespace.close();
  scratch = await createScratch(world.scratchRoot, { repo: "repo", directory: "/mnt/x" });
  assert.equal(await commit(), undefined);
});

for (const [what, fails] of [
  ["the first blob", (key: string) => key.startsWith("blobs/")],
  ["the catalog", (key: string) => key.startsWith("catalogs/")],
  ["the record", (key: string) => key.startsWith("bundles/")],
  ["the label", (key: string) => key.startsWith("refs/")],
] as const) {
  test(`where ${what} cannot be stored, the scratch stays and a retry makes one bundle`, async () => {
    namespace.write(namespace.create(1, b("new"), 0o644, ROOT_USER).ino, 0, noise(5000, what.length));
    namespace.close();
    const known = await ids();
    await assert.rejects(
      commit({ label: `on ${what}`.replaceAll(" ", "-") }, failing(fails)),
      (error: DatamonError) => {
        assert.equal(error.code, "unavailable");
        assert.match(error.hint ?? "", new RegExp(`datamon scratch commit ${scratch.id}`));
        return true;
      },
    );
    assert.deepEqual(
      readdirSync(scratch.directory).filter((name) => name.startsWith("commit-")),
      [],
    );
    const bundle = await commit({ label: `on ${what}`.replaceAll(" ", "-") });
    assert.deepEqual(
      (await ids()).filter((id) => !known.includes(id)),
      [bundle!.id],
    );
    assert.equal((await getLabel(world.context, "repo", `on ${what}`.replaceAll(" ", "-"))).bundle, bundle!.id);
    assert.ok(existsSync(scratch.directory));
  });
}

test("a bundle made by a commit that then failed is not taken for changes made later", async () => {
  namespace.create(1, b("new"), 0o644, ROOT_USER);
  namespace.close();
  await assert.rejects(
    commit(
      { label: "later" },
      failing((key) => key.startsWith("refs/")),
    ),
  );
  scratch = await claimScratch(scratch, "/mnt/x");
  namespace = OverlayNamespace.open(scratch.directory, catalog, base.id);
  namespace.create(1, b("newer"), 0o644, ROOT_USER);
  await commitAndCompare({ label: "later" });
});

test("a scratch that is mounted is not committed", async () => {
  await assert.rejects(commit(), { code: "conflict" });
});

/** The context with stores in which puts of some keys fail. */
function failing(fails: (key: string) => boolean): Context {
  const wrap = <T extends object>(inner: T): T =>
    new Proxy(inner, {
      get(target, property) {
        const value = Reflect.get(target, property);
        if (typeof value !== "function") return value;
        return (...given: unknown[]) => {
          if (property === "put" && fails(given[0] as string)) {
            throw new DatamonError("unavailable", "the store is away");
          }
          return value.apply(target, given);
        };
      },
    });
  const blobs = wrap<ObjectStore>(world.context.blobs.store);
  return {
    ...world.context,
    metadata: wrap(world.context.metadata),
    blobs: new (world.context.blobs.constructor as new (store: ObjectStore) => Context["blobs"])(blobs),
  };
}

async function ids(): Promise<string[]> {
  const found: string[] = [];
  for await (const { id } of listBundles(world.context, "repo")) found.push(id);
  return found;
}

function countBlobs(): number {
  const root = join(world.directory, "blob");
  return readdirSync(root, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile()).length;
}
