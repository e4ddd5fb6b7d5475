import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { bytesOf } from "../../../src/cas/index.ts";
import { writeXattrs } from "../../../src/fs/transfer/xattr.ts";
import { assertSameTree, fillWithSome, settle, Workplace } from "./support.ts";

test("an unchanged tree is not read again and stores nothing but a record", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  linkSync(join(place.tree, "large0"), join(place.tree, "d1/linked"));
  writeXattrs(bytesOf(join(place.tree, "d1")), new Map([[bytesOf("user.x"), Buffer.from("y")]]));
  await settle();
  const first = await place.upload();
  const before = place.blobs();
  const second = await place.upload();
  assert.equal(second.unchanged, true);
  assert.equal(second.bundle.catalog, first.bundle.catalog);
  assert.deepEqual(second.bundle.parents, [first.bundle.id]);
  assert.ok(second.bundle.id > first.bundle.id);
  assert.deepEqual(second.stats, { blobsPut: 0, bytesPut: 0, bytesRead: 0, bytesReused: 0 });
  assert.equal(second.reusedFiles, 65);
  assert.deepEqual(place.blobs(), before);
});

test("every kind of change is seen", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  place.write("moved", "to be moved");
  await settle();
  let last = await place.upload();
  const at = (path: string) => join(place.tree, path);
  const changes: [string, () => void][] = [
    ["content", () => writeFileSync(at("d1/f1"), "new")],
    [
      "content of the same size and mtime",
      () => {
        const { atime, mtime, size } = statSync(at("d1/f8"));
        writeFileSync(at("d1/f8"), Buffer.alloc(size, 7));
        utimesSync(at("d1/f8"), atime, mtime);
      },
    ],
    ["mode", () => chmodSync(at("d2/f2"), 0o600)],
    ["mtime", () => utimesSync(at("d2/f2"), 1, 1)],
    ["new file", () => writeFileSync(at("d3/new"), "new")],
    ["file gone", () => rmSync(at("d3/f3"))],
    ["renamed", () => renameSync(at("moved"), at("d4/renamed"))],
    ["empty directory", () => mkdirSync(at("another"))],
    ["directory gone", () => rmSync(at("empty"), { recursive: true })],
    ["link", () => spawnSync("ln", ["-s", "x", at("link")])],
    ["link's target", () => spawnSync("ln", ["-sfn", "y", at("link")])],
    ["hard link", () => linkSync(at("large1"), at("hard"))],
    [
      "hard link broken",
      () => {
        const { atime, mtime } = statSync(at("hard"));
        spawnSync("cp", ["-p", at("large1"), at("copy")]);
        renameSync(at("copy"), at("hard"));
        utimesSync(at("hard"), atime, mtime);
      },
    ],
    ["xattr", () => writeXattrs(bytesOf(at("d5")), new Map([[bytesOf("user.a"), Buffer.from("b")]]))],
    ["xattr of a file", () => writeXattrs(bytesOf(at("large2")), new Map([[bytesOf("user.a"), Buffer.from("b")]]))],
    ["mode of the root", () => chmodSync(place.tree, 0o750)],
  ];
  for (const [name, change] of changes) {
    change();
    const next = await place.upload();
    assert.equal(next.unchanged, false, name);
    assert.notEqual(next.bundle.catalog, last.bundle.catalog, name);
    assertSameTree(await place.download(next.bundle, name), place.tree);
    last = next;
  }
});

test("a moved file and a copied tree put nothing", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  await settle();
  await place.upload();
  renameSync(join(place.tree, "d1"), join(place.tree, "elsewhere"));
  const before = place.blobs();
  const moved = await place.upload();
  assert.equal(moved.stats.blobsPut, 0);
  spawnSync("cp", ["-a", place.tree, place.path("copy")]);
  const copied = await place.upload({ path: place.path("copy") });
  assert.equal(copied.stats.blobsPut, 0);
  assert.equal(copied.unchanged, true);
  assert.deepEqual(place.blobs(), before);
});

test("a file written right after it was read is not taken for unchanged", async () => {
  using place = await Workplace.make();
  // Sizes and times may be equal; only the moment of reading tells that nothing is known.
  for (let round = 0; round < 5; round++) {
    place.write("file", `round ${round}`);
    const { bundle } = await place.upload();
    const copy = await place.download(bundle, `copy${round}`);
    assert.equal(readFileSync(join(copy, "file"), "utf8"), `round ${round}`);
  }
});

test("a damaged stat cache, or one of another version, is replaced", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  await settle();
  await place.upload();
  const damages = [
    () => writeFileSync(place.stateFile, "not SQLite at all".repeat(1000)),
    () => truncateSync(place.stateFile, 5000),
    () => spawnSync("dd", ["if=/dev/zero", `of=${place.stateFile}`, "bs=1", "seek=4096", "count=9000", "conv=notrunc"]),
  ];
  for (const [round, damage] of damages.entries()) {
    damage();
    rmSync(`${place.stateFile}-wal`, { force: true });
    rmSync(`${place.stateFile}-shm`, { force: true });
    const rebuilt = await place.upload();
    assert.equal(rebuilt.stats.blobsPut, 0);
    assertSameTree(await place.download(rebuilt.bundle, `copy${round}`), place.tree);
    assert.equal((await place.upload()).stats.bytesRead, 0);
  }
  assert.deepEqual(place.warnings, []);
});

test("uploads at the same time share stores and stat cache", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  await settle();
  const bundles = await Promise.all([place.upload(), place.upload(), place.upload()]);
  assert.equal(new Set(bundles.map(({ bundle }) => bundle.id)).size, 3);
  assert.equal(new Set(bundles.map(({ bundle }) => bundle.tree)).size, 1);
  for (const { bundle } of bundles) assertSameTree(await place.download(bundle, bundle.id), place.tree);
  assert.equal((await place.upload()).unchanged, true);
});
