import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { bytesOf } from "../../../src/cas/index.ts";
import { downloadFile, parseFileList } from "../../../src/fs/transfer/index.ts";
import { replaceXattrs, writeXattrs } from "../../../src/fs/transfer/xattr.ts";
import { assertSameTree, fillWithEverything, settle, snapshot, Workplace } from "./support.ts";

test("everything that a bundle keeps comes back", async () => {
  using place = await Workplace.make();
  fillWithEverything(place.tree);
  const xattrs = new Map([
    [bytesOf("user.colour"), Buffer.from("blue")],
    [bytesOf("user.empty"), Buffer.alloc(0)],
    [bytesOf("user.bytes"), Buffer.from([0, 255, 1])],
  ]);
  assert.equal(writeXattrs(bytesOf(join(place.tree, "one")), xattrs), undefined);
  assert.equal(writeXattrs(bytesOf(join(place.tree, "sticky-file")), xattrs), undefined);
  assert.equal(writeXattrs(bytesOf(join(place.tree, "empty")), xattrs), undefined);
  const before = snapshot(place.tree);
  const { bundle, failed, skipped } = await place.upload();
  assert.deepEqual([failed, skipped], [0, 0]);
  assert.deepEqual(snapshot(place.tree), before);
  const copy = await place.download(bundle, "copy");
  assertSameTree(copy, place.tree);
  assert.deepEqual(place.warnings, []);
  assert.ok(statSync(join(copy, "sparse")).blocks * 512 < 10_000_000, "holes stay holes");

  await settle();
  const again = await place.upload({ path: copy });
  assert.equal(again.bundle.tree, bundle.tree, "the copy is the same tree");
  assert.equal(again.unchanged, true);
});

test("a folder's own extended attributes for Datamon are no part of it", async () => {
  using place = await Workplace.make();
  place.write("a", "a");
  const own = new Map([[bytesOf("user.datamon.hash"), Buffer.from("x")]]);
  writeXattrs(bytesOf(join(place.tree, "a")), own);
  const { bundle } = await place.upload();
  assertSameTree(await place.download(bundle, "copy"), place.tree);
  assert.equal(replaceXattrs(bytesOf(join(place.tree, "a")), undefined), undefined);
  assert.match(spawnSync("ls", [place.tree]).stdout.toString(), /a/);
});

test("names are filtered by their displayed path, with the directories above them", async () => {
  using place = await Workplace.make();
  for (const path of ["a.csv", "b.txt", "x/c.csv", "x/d.txt", "y/e.txt"]) place.write(path, path);
  const { bundle } = await place.upload({ filter: /\.csv$/ });
  assert.equal(bundle.files, 2);
  const all = await place.upload();
  assert.equal(all.bundle.files, 5);
  assert.deepEqual(paths(await place.download(bundle, "filtered")), ["a.csv", "x", "x/c.csv"]);
  assert.deepEqual(paths(await place.download(all.bundle, "y", { filter: /^y/g })), ["y", "y/e.txt"]);
});

test("a list picks files; what it cannot reach is an error", async () => {
  using place = await Workplace.make();
  for (const path of ["a", "x/b", "x/c", "y/d"]) place.write(path, path);
  spawnSync("ln", ["-s", "x", join(place.tree, "link")]);
  const { bundle } = await place.upload({ files: parseFileList(Buffer.from("./x//b\n\ny/d\n")) });
  assert.deepEqual(paths(await place.download(bundle, "copy")), ["x", "x/b", "y", "y/d"]);
  await assert.rejects(place.upload({ files: [bytesOf("x/nope")] }), {
    code: "not-found",
    message: /x\/nope.*not there/,
  });
  await assert.rejects(place.upload({ files: [bytesOf("link/b")] }), { code: "not-found", message: /symbolic link/ });
  const some = await place.upload({ files: [bytesOf("x/nope"), bytesOf("a")], skipOnError: true });
  assert.deepEqual([some.failed, some.bundle.files], [1, 1]);
  for (const list of ["/etc/passwd", "../x", "x/../../y"]) {
    assert.throws(() => parseFileList(Buffer.from(list)), { code: "usage" });
  }
});

test("sockets and fifos are left out with a warning; a single file is refused as a folder", async () => {
  using place = await Workplace.make();
  place.write("a", "a");
  spawnSync("mkfifo", [join(place.tree, "fifo")]);
  const { skipped, bundle } = await place.upload();
  assert.deepEqual([skipped, bundle.files], [1, 1]);
  assert.match(place.warnings.join(), /fifo/);
  await settle();
  assert.equal((await place.upload()).skipped, 1);
  await assert.rejects(place.upload({ path: join(place.tree, "a") }), { code: "usage", hint: /folder/ });
  await assert.rejects(place.upload({ path: join(place.tree, "none") }), { code: "not-found" });
});

test("one file is downloaded to its path, and replaced only when asked", async () => {
  using place = await Workplace.make();
  for (const path of ["x/y/a", "x/b"]) place.write(path, path);
  const { bundle } = await place.upload();
  const destination = place.path("out");
  const options = { bundle, file: bytesOf("x/y/a"), destination, cacheDirectory: place.cacheDirectory };
  assert.deepEqual(await downloadFile(place.context, options), { files: 1, bytes: 5 });
  assert.deepEqual(paths(destination), ["x", "x/y", "x/y/a"]);
  await assert.rejects(downloadFile(place.context, options), { code: "exists" });
  await downloadFile(place.context, { ...options, forceDest: true });
  await assert.rejects(downloadFile(place.context, { ...options, file: bytesOf("x") }), { code: "usage" });
  await assert.rejects(downloadFile(place.context, { ...options, file: bytesOf("z") }), { code: "not-found" });
});

test("a destination in use needs force, which replaces what is in the way and nothing else", async () => {
  using place = await Workplace.make();
  for (const path of ["a", "d/b", "e"]) place.write(path, path);
  const { bundle } = await place.upload();
  const target = place.path("target");
  spawnSync("mkdir", [target]);
  writeFileSync(join(target, "mine"), "mine");
  writeFileSync(join(target, "d"), "in the way");
  spawnSync("ln", ["-s", place.path("elsewhere"), join(target, "a")]);
  await assert.rejects(place.download(bundle, "target"), { code: "exists", hint: /--force-dest/ });
  assert.deepEqual(readdirSync(target).sort(), ["a", "d", "mine"]);
  await place.download(bundle, "target", { forceDest: true });
  assert.deepEqual(paths(target), ["a", "d", "d/b", "e", "mine"]);
  assert.equal(existsSync(place.path("elsewhere")), false);
  spawnSync("mkdir", ["-p", join(place.path("other"), "e", "kept")]);
  await assert.rejects(place.download(bundle, "other", { forceDest: true }), {
    code: "exists",
    message: /e is a directory/,
  });
});

function paths(root: string): string[] {
  return [...snapshot(root).keys()].filter((path) => path !== "");
}
