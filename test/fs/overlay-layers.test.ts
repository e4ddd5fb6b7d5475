/** Layers of an overlay: freezing, and a bundle that takes their place. */

import assert from "node:assert/strict";
import { existsSync, futimesSync, readdirSync, readFileSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { bytesOf, setFault } from "../../src/cas/index.ts";
import { commitFrozen, commitScratch } from "../../src/fs/commit.ts";
import { copyAhead } from "../../src/fs/overlay/ahead.ts";
import { layersOf, settleLayers, stackOf } from "../../src/fs/overlay/layers.ts";
import { OverlayNamespace } from "../../src/fs/overlay/overlay.ts";
import { createScratch, rereadScratch, type Scratch, settleScratch } from "../../src/fs/scratch.ts";
import type { Bundle } from "../../src/meta/index.ts";
import { noise, outcome, ROOT_USER, resolve, type Spec, World } from "./fixture.ts";

const b = bytesOf;
const LARGE = noise(2_000_000, 4);
const SPECS: Spec[] = [
  { path: "a", kind: "directory" },
  { path: "a/one", kind: "file", content: Buffer.from("one"), xattrs: new Map([[b("user.k"), Buffer.from("v")]]) },
  { path: "large", kind: "file", content: LARGE },
];

let world: World;
let base: Bundle;
let scratch: Scratch;
let namespace: OverlayNamespace;
before(async () => {
  world = await World.open();
  base = await world.bundle(SPECS);
});
after(() => world.close());
beforeEach(async () => {
  scratch = await createScratch(world.scratchRoot, {
    repo: "repo",
    base: { bundle: base.id, catalog: base.catalog },
    directory: "/mnt/x",
  });
  await open();
});
afterEach(() => {
  setFault(undefined);
  namespace.close();
});

async function open(adopted = false): Promise<void> {
  const { directory, record } = await settleScratch(await rereadScratch(scratch));
  const { bundle, catalog } = record.base!;
  namespace = OverlayNamespace.open(directory, await world.catalog({ catalog }), bundle, { adopted });
}

async function reopen(adopted = false): Promise<void> {
  namespace.close();
  await open(adopted);
}

const at = (path: string) => resolve(namespace, path);
const text = async (ino: number): Promise<string> => (await world.read(namespace, ino)).toString("latin1");

/** Commits what is frozen and puts its bundle in its place; false where that cannot be done yet. */
async function rebase(): Promise<boolean> {
  const { cacheDirectory } = world;
  const { base } = await commitFrozen(world.context, await rereadScratch(scratch), { cacheDirectory });
  const close = namespace.rebase(await world.catalog(base!), base!.bundle);
  close?.();
  return close !== undefined;
}

test("a layer in which nothing differs is not frozen", () => {
  assert.equal(namespace.freeze(), false);
  assert.deepEqual(layersOf(scratch.directory), [0]);
});

test("what is frozen shows with the same numbers, before and after its bundle takes its place", async () => {
  const made = namespace.create(1, b("made"), 0o640, { uid: 7, gid: 8, pid: 1 });
  namespace.write(made.ino, 0, Buffer.from("made"));
  namespace.setxattr(made.ino, b("user.x"), Buffer.from("y"), 0);
  namespace.write(at("large").ino, 1_000_000, Buffer.from("changed"));
  namespace.rename(1, b("a"), 1, b("moved"), 0);
  const tree = async () =>
    JSON.stringify(
      [...(await world.tree(namespace))].map(([path, entry]) => [
        path,
        entry.content,
        entry.attr.ino,
        entry.attr.mtimeNs.toString(),
        entry.attr.nlink,
      ]),
    );
  const shown = await tree();
  assert.ok(namespace.freeze());
  assert.equal(namespace.changes(), 0);
  assert.equal(await tree(), shown);
  assert.equal(
    outcome(() => namespace.getxattr(made.ino, b("user.datamon.hash"))),
    "ENODATA",
  );
  await reopen();
  assert.equal(await tree(), shown);
  assert.ok(await rebase());
  assert.equal(await tree(), shown);
  assert.equal(namespace.getxattr(made.ino, b("user.x")).toString(), "y");
  assert.equal(namespace.getxattr(made.ino, b("user.datamon.hash")).length, 64);
  assert.equal(namespace.changes(), 0);
  await reopen();
  assert.equal(await tree(), shown);
  assert.equal(namespace.create(1, b("next"), 0o644, ROOT_USER).ino > made.ino, true);
});

test("a write above a frozen file costs its range alone", async () => {
  const { ino } = namespace.create(1, b("made"), 0o644, ROOT_USER);
  namespace.write(ino, 0, noise(3_000_000, 1));
  namespace.freeze();
  namespace.write(ino, 1_000_000, Buffer.from("above"));
  namespace.setattr(ino, { size: 2_000_000 }, ROOT_USER);
  const expected = noise(3_000_000, 1).subarray(0, 2_000_000);
  expected.write("above", 1_000_000);
  assert.ok((await world.read(namespace, ino)).equals(expected));
  assert.ok(await rebase());
  assert.ok((await world.read(namespace, ino)).equals(expected));
  const kinds = new Set(namespace.planRead(ino, 0, 2_000_000).map(({ kind }) => kind));
  assert.deepEqual([...kinds].sort(), ["blob", "file"]);
});

test("a file that lost its name shows what it did while it is open, and the bundle waits for that", async () => {
  const { ino: large } = at("large");
  namespace.open(large, 2);
  namespace.write(large, 5, Buffer.from("changed"));
  namespace.unlink(1, b("large"));
  const { ino: made } = namespace.create(1, b("made"), 0o644, ROOT_USER);
  namespace.open(made, 2);
  namespace.write(made, 0, Buffer.from("made"));
  namespace.unlink(1, b("made"));
  const expected = Buffer.from(LARGE);
  expected.write("changed", 5);
  namespace.freeze();
  assert.equal(await rebase(), false);
  assert.ok((await world.read(namespace, large)).equals(expected));
  namespace.write(large, 9, Buffer.from("more"));
  expected.write("more", 9);
  assert.ok((await world.read(namespace, large)).equals(expected));
  assert.equal(await text(made), "made");
  namespace.write(at("a/one").ino, 0, Buffer.from("ONE"));
  assert.ok(namespace.freeze(), "a second layer, while the first is still needed");
  assert.equal(await rebase(), false);
  assert.ok((await world.read(namespace, large)).equals(expected));
  namespace.release(large);
  assert.equal(
    outcome(() => namespace.getattr(large)),
    "ENOENT",
  );
  assert.ok(await rebase());
  assert.equal(await text(made), "made");
  assert.equal(await text(at("a/one").ino), "ONE");
  namespace.release(made);
  assert.equal(
    outcome(() => namespace.getattr(made)),
    "ENOENT",
  );
  assert.deepEqual(readdirSync(join(scratch.directory, "layers", "2", "data")), []);
});

test("what no bundle holds goes on above, and is not in the bundle", async () => {
  const { ino } = namespace.mknod(1, b("pipe"), 0o010644, 0, ROOT_USER);
  namespace.link(ino, at("a").ino, b("pipe"));
  namespace.freeze();
  assert.ok(await rebase());
  assert.deepEqual([at("pipe").ino, at("a/pipe").ino, at("pipe").nlink], [ino, ino, 2]);
  assert.equal(
    outcome(() => namespace.getxattr(ino, b("user.x"))),
    "ENODATA",
  );
  assert.ok(namespace.freeze(), "it is a change, as far as is known");
  assert.ok(await rebase());
  namespace.unlink(1, b("pipe"));
  assert.equal(
    outcome(() => at("pipe")),
    "ENOENT",
  );
  namespace.unlink(at("a").ino, b("pipe"));
  namespace.close();
  assert.equal(await commitScratch(world.context, scratch, { cacheDirectory: world.cacheDirectory }), undefined);
});

test("a file that others write to goes on above and leaves a copy", async () => {
  const { ino } = namespace.create(1, b("made"), 0o644, ROOT_USER);
  namespace.open(ino, 2);
  const backing = namespace.backing(ino);
  assert.ok(backing?.kind === "file");
  writeSync(backing.fd, "before", 0);
  writeSync(backing.fd, "far", 5_000_000);
  namespace.freeze();
  writeSync(backing.fd, "AFTER!", 0);
  assert.equal((await text(ino)).slice(0, 6), "AFTER!");
  const frozen = readFileSync(join(scratch.directory, "data", String(ino)));
  assert.equal(frozen.length, 5_000_003);
  assert.equal(frozen.toString("latin1", 0, 6), "before");
  assert.ok(await rebase());
  writeSync(backing.fd, "LAST", 6);
  assert.equal((await text(ino)).slice(0, 10), "AFTER!LAST");
  namespace.release(ino);
  assert.equal((await text(ino)).slice(0, 10), "AFTER!LAST");
  assert.ok(namespace.changes() > 0);
});

test("a file at rest is copied before, and its copy is used only while it is the file's", async () => {
  const files = ["resting", "changing"].map((name) => {
    const { ino } = namespace.create(1, b(name), 0o644, ROOT_USER);
    namespace.open(ino, 2);
    const backing = namespace.backing(ino);
    assert.ok(backing?.kind === "file");
    writeSync(backing.fd, noise(300_000, ino), 0);
    const before = new Date(Date.now() - 5000);
    futimesSync(backing.fd, before, before);
    return { ino, fd: backing.fd };
  });
  const inos = files.map(({ ino }) => ino);
  await copyAhead(scratch.directory, inos);
  const ahead = join(scratch.directory, "layers", "1.ahead");
  assert.equal(readdirSync(ahead).length, 2);
  const [resting, changing] = files;
  const copy = readdirSync(ahead).find((name) => name.startsWith(`${resting!.ino}-`))!;
  const { ino: copied } = statSync(join(ahead, copy));
  writeSync(changing!.fd, "changed", 0);
  namespace.freeze();
  const frozen = join(scratch.directory, "data");
  assert.equal(statSync(join(frozen, String(resting!.ino))).ino, copied);
  assert.ok(readFileSync(join(frozen, String(resting!.ino))).equals(noise(300_000, resting!.ino)));
  assert.equal(readFileSync(join(frozen, String(changing!.ino))).toString("latin1", 0, 7), "changed");
  assert.equal(existsSync(ahead), false);
});

test("a request that was answered before is known after", async () => {
  namespace.begin("1:2");
  namespace.create(1, b("made"), 0o644, ROOT_USER);
  namespace.freeze();
  await reopen(true);
  assert.ok(namespace.isDone("1:2"));
});

for (const point of ["freeze", "freeze.done", "rebase"]) {
  test(`a failure at ${point} leaves all of it`, async () => {
    const { ino } = namespace.create(1, b("made"), 0o644, ROOT_USER);
    namespace.open(ino, 2);
    const backing = namespace.backing(ino);
    assert.ok(backing?.kind === "file");
    writeSync(backing.fd, "made", 0);
    if (point === "rebase") namespace.freeze();
    setFault(`${point}:1:error`);
    await assert.rejects(async () => (point === "rebase" ? await rebase() : namespace.freeze()), { code: "EIO" });
    setFault(undefined);
    if (point !== "rebase") {
      assert.equal(await text(ino), "made");
      assert.deepEqual(layersOf(scratch.directory), [0]);
      assert.ok(namespace.freeze());
    }
    // As after a death: nothing of what this process knows counts.
    await reopen(true);
    assert.equal(await text(at("made").ino), "made");
    assert.deepEqual(stackOf(scratch.directory), point === "rebase" ? [1] : [0, 1]);
    namespace.write(at("a/one").ino, 0, Buffer.from("ONE"));
    namespace.close();
    const { cacheDirectory } = world;
    const bundle = await commitScratch(world.context, scratch, { cacheDirectory });
    assert.ok(bundle !== undefined);
    await open();
  });
}

test("what a process died in is ended", () => {
  namespace.write(at("a/one").ino, 0, Buffer.from("ONE"));
  namespace.freeze();
  namespace.close();
  settleLayers(scratch.directory);
  assert.deepEqual(layersOf(scratch.directory), [0, 1]);
  assert.equal(existsSync(join(scratch.directory, "layers", "1.new")), false);
});
