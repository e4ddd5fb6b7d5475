import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { once } from "node:events";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { bytesOf } from "../../../src/cas/index.ts";
import { writeXattrs } from "../../../src/fs/transfer/xattr.ts";
import { getLabel, listBundles } from "../../../src/meta/index.ts";
import { assertSameTree, pattern, REPO, settle, Workplace } from "./support.ts";

const UPLOADER = fileURLToPath(new URL("./upload-process.ts", import.meta.url));

function fillSome(place: Workplace): void {
  for (let n = 0; n < 60; n++) place.write(`d${n % 7}/f${n}`, pattern(100_000, n + 1));
  for (let n = 0; n < 4; n++) place.write(`large${n}`, pattern(5_000_000, n + 1000));
  mkdirSync(join(place.tree, "empty"));
}

test("an unchanged tree is not read again and stores nothing but a record", async () => {
  using place = await Workplace.make();
  fillSome(place);
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
  fillSome(place);
  place.write("moved", "to be moved");
  await settle();
  let last = await place.upload();
  const at = (path: string) => join(place.tree, path);
  const changes: [string, () => void][] = [
    ["content", () => writeFileSync(at("d1/f1"), "new")],
    ["content of the same size and mtime", () => {
      const { atime, mtime, size } = statSync(at("d1/f8"));
      writeFileSync(at("d1/f8"), Buffer.alloc(size, 7));
      utimesSync(at("d1/f8"), atime, mtime);
    }],
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
    ["hard link broken", () => {
      const { atime, mtime } = statSync(at("hard"));
      spawnSync("cp", ["-p", at("large1"), at("copy")]);
      renameSync(at("copy"), at("hard"));
      utimesSync(at("hard"), atime, mtime);
    }],
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
    await settle();
    last = await place.upload();
    assert.equal(last.unchanged, true, name);
  }
});

test("a moved file and a copied tree put nothing", async () => {
  using place = await Workplace.make();
  fillSome(place);
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
  fillSome(place);
  await settle();
  await place.upload();
  for (const damage of [
    () => writeFileSync(place.stateFile, "not SQLite at all".repeat(1000)),
    () => truncateSync(place.stateFile, 5000),
    () => spawnSync("dd", ["if=/dev/zero", `of=${place.stateFile}`, "bs=1", "seek=4096", "count=9000", "conv=notrunc"]),
  ]) {
    damage();
    rmSync(`${place.stateFile}-wal`, { force: true });
    rmSync(`${place.stateFile}-shm`, { force: true });
    const rebuilt = await place.upload();
    assert.equal(rebuilt.stats.blobsPut, 0);
    assertSameTree(await place.download(rebuilt.bundle, "copy", { forceDest: true }), place.tree);
    assert.equal((await place.upload()).stats.bytesRead, 0);
  }
  assert.deepEqual(place.warnings, []);
});

test("uploads at the same time share stores and stat cache", async () => {
  using place = await Workplace.make();
  fillSome(place);
  await settle();
  const bundles = await Promise.all([place.upload(), place.upload(), place.upload()]);
  assert.equal(new Set(bundles.map(({ bundle }) => bundle.id)).size, 3);
  assert.equal(new Set(bundles.map(({ bundle }) => bundle.tree)).size, 1);
  for (const { bundle } of bundles) assertSameTree(await place.download(bundle, bundle.id), place.tree);
  assert.equal((await place.upload()).unchanged, true);
});

test("a file that changes while it is read fails by name, or is left out", async () => {
  using place = await Workplace.make();
  fillSome(place);
  const restless = join(place.tree, "restless");
  writeFileSync(restless, pattern(9_000_000));
  const writer = spawn(process.execPath, [
    "-e",
    `const fs = require("fs"); const fd = fs.openSync(${JSON.stringify(restless)}, "r+"); console.log("writing");
     for (let n = 0; ; n++) fs.writeSync(fd, String(n), 0);`,
  ]);
  try {
    await once(writer.stdout, "data");
    await assert.rejects(place.upload(), { code: "changed", message: /restless/ });
    const { failed, bundle } = await place.upload({ skipOnError: true });
    assert.equal(failed, 1);
    assert.match(place.warnings.join(), /restless/);
    assert.equal(bundle.files, 64);
  } finally {
    writer.kill("SIGKILL");
    await once(writer, "close");
  }
});

test("files that vanish during the upload are named, or left out with their other names", async () => {
  using place = await Workplace.make();
  fillSome(place);
  linkSync(join(place.tree, "large3"), join(place.tree, "z"));
  const vanish = () => {
    for (const name of ["large3", "z"]) rmSync(join(place.tree, name), { force: true });
  };
  // The tree is listed by the time the first bytes are read.
  const { bundle, failed } = await place.upload({ skipOnError: true, onProgress: vanish });
  assert.equal(bundle.files + failed - (failed === 2 ? 1 : 0) >= 64, true);
  const copy = await place.download(bundle, "copy");
  if (failed === 2) assertSameTree(copy, place.tree);
});

test("an interrupted upload leaves nothing behind but blobs, which are not put again", async () => {
  using place = await Workplace.make();
  fillSome(place);
  const stop = new AbortController();
  const interrupted = place.upload({
    signal: stop.signal,
    onProgress: ({ bytes }) => bytes > 12_000_000 && stop.abort(),
  });
  await assert.rejects(interrupted, { code: "interrupted", hint: /again/ });
  assert.deepEqual(readdirSync(join(place.cacheDirectory, "catalogs")), []);
  const before = place.blobs();
  const { bundle } = await place.upload();
  const after = place.blobs();
  for (const [name, stamp] of before) assert.equal(after.get(name), stamp);
  assertSameTree(await place.download(bundle, "copy"), place.tree);
});

test("an upload that is killed at any put leaves whole bundles only and is finished by the next", async () => {
  using place = await Workplace.make();
  fillSome(place);
  const known: string[] = [];
  const faults = ["put.blobs:1", "put.blobs:5", "put.blobs.done:7", "put.catalogs:1", "put.catalogs.done:1"]
    .concat(["put.bundles:1", "put.bundles.done:1", "put.refs:1", "put.refs.done:1"])
    .map((point) => `${point}:kill`);
  for (const [round, DATAMON_FAULT] of faults.entries()) {
    // Something new in each round, so that each has blobs to put.
    appendFileSync(join(place.tree, `large${round % 4}`), pattern(3_000_000, 5000 + round));
    for (let n = 0; n < 40; n++) place.write(`round${round}/f${n}`, pattern(200_000, 10_000 * round + n));
    const env = { ...process.env, DATAMON_FAULT };
    const child = spawnSync(process.execPath, [UPLOADER, place.root, "newest"], { env, encoding: "utf8" });
    assert.equal(child.signal, "SIGKILL", `${DATAMON_FAULT}: ${child.stderr}`);
    const before = place.blobs();
    for await (const bundle of listBundles(place.context, REPO)) {
      if (known.includes(bundle.id)) continue;
      known.push(bundle.id);
      assertSameTree(await place.download(bundle, bundle.id), place.tree);
    }
    const { bundle } = await place.upload({ label: "newest" });
    known.push(bundle.id);
    const after = place.blobs();
    for (const [name, stamp] of before) assert.equal(after.get(name), stamp, `${DATAMON_FAULT}: ${name} was put again`);
    assert.equal((await getLabel(place.context, REPO, "newest")).bundle, bundle.id);
    assertSameTree(await place.download(bundle, `copy${round}`), place.tree);
  }
});

test("without permission a file is named, or left out", { skip: process.geteuid?.() === 0 && "root may read everything" }, async () => {
  using place = await Workplace.make();
  fillSome(place);
  chmodSync(join(place.tree, "large1"), 0);
  chmodSync(join(place.tree, "d1"), 0);
  await assert.rejects(place.upload(), { code: "denied" });
  const { failed } = await place.upload({ skipOnError: true });
  assert.equal(failed, 2);
  assert.match(place.warnings.join(), /d1.*large1|large1.*d1/s);
});
