import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { linkSync, readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { type ByteString, bytesOf, type DatamonError, Placer, setFault } from "../../../src/cas/index.ts";
import { Breath } from "../../../src/fs/transfer/breath.ts";
import { select } from "../../../src/fs/transfer/selection.ts";
import { StatCache } from "../../../src/fs/transfer/stat-cache.ts";
import { TreeScan } from "../../../src/fs/transfer/tree-scan.ts";
import { type LocalStat, LocalTree } from "../../../src/fs/transfer/walk.ts";
import { CatalogWriter, getLabel, listBundles } from "../../../src/meta/index.ts";
import { assertSameTree, fillWithSome, pattern, REPO, Workplace } from "./support.ts";

const UPLOADER = fileURLToPath(new URL("./upload-process.ts", import.meta.url));

test("a file that changes while it is read fails by name, or is left out", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  const restless = join(place.tree, "restless");
  // Reading it takes long enough for many writes, also on a busy machine.
  writeFileSync(restless, "");
  truncateSync(restless, 300_000_000);
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

test("files that vanish after they were listed are named, or left out with their other names", async () => {
  using place = await Workplace.make();
  for (const name of ["a", "b", "c"]) place.write(name, name);
  linkSync(join(place.tree, "b"), join(place.tree, "b2"));
  /** Still lists what is gone. */
  class LateTree extends LocalTree {
    readonly #stats = new Map(["a", "b", "b2", "c"].map((name) => [name, super.stat(bytesOf(name))]));
    override names(path: ByteString): ByteString[] {
      return path === "" ? ([...this.#stats.keys()] as ByteString[]) : super.names(path);
    }
    override stat(path: ByteString): LocalStat | undefined {
      return this.#stats.get(path) ?? super.stat(path);
    }
  }
  const tree = new LateTree(bytesOf(place.tree));
  for (const name of ["b", "b2"]) rmSync(join(place.tree, name));
  const scanWith = async (onFailure: (error: DatamonError) => void, name: string) => {
    const writer = CatalogWriter.create(place.path(name));
    const placer = new Placer(place.context.blobs);
    const cache = StatCache.open(place.stateFile, tree.root);
    const breath = new Breath("the test", undefined);
    const parts = { tree, writer, cache, breath, selection: select({}), base: undefined, known: undefined };
    const scan = new TreeScan({ ...parts, onFailure, onFile: () => {}, onOther: () => {} });
    try {
      return { scan, summary: await scan.run(placer) };
    } finally {
      writer.abort();
      cache.close();
      await placer.close();
    }
  };
  const told: string[] = [];
  const { scan, summary } = await scanWith((error) => told.push(error.message), "catalog1");
  assert.equal(scan.failed, 2);
  assert.equal(summary.files, 2);
  assert.match(told.join("\n"), /tree\/b\b.*tree\/b2/s);
  const fail = scanWith((error) => {
    throw error;
  }, "catalog2");
  await assert.rejects(fail, { code: "not-found", message: /tree\/b/ });
});

test("an interrupted upload leaves nothing behind but blobs, which are not put again", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  const stop = new AbortController();
  const interrupted = place.upload({
    signal: stop.signal,
    onProgress: ({ bytes }) => bytes > 2_500_000 && stop.abort(),
  });
  await assert.rejects(interrupted, { code: "interrupted", hint: /again/ });
  assert.deepEqual(readdirSync(join(place.cacheDirectory, "catalogs")), []);
  const before = place.blobs();
  const { bundle } = await place.upload();
  const after = place.blobs();
  for (const [name, stamp] of before) assert.equal(after.get(name), stamp);
  assertSameTree(await place.download(bundle, "copy"), place.tree);
});

test("a full store ends the upload with nothing half made, and the next one finishes it", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  for (const point of ["put.blobs:2+", "put.catalogs:1", "put.bundles:1"]) {
    setFault(`${point}:nospace`);
    try {
      await assert.rejects(place.upload({ skipOnError: true }), { code: "no-space" });
    } finally {
      setFault(undefined);
    }
    for await (const bundle of listBundles(place.context, REPO)) assert.fail(`${point} left bundle ${bundle.id}`);
  }
  const { bundle } = await place.upload();
  assertSameTree(await place.download(bundle, "copy"), place.tree);
});

test("an upload that is killed at any put leaves whole bundles only and is finished by the next", async () => {
  using place = await Workplace.make();
  fillWithSome(place);
  const known: string[] = [];
  const faults = ["put.blobs:1", "put.blobs:3", "put.blobs.done:2", "put.catalogs:1", "put.catalogs.done:1"]
    .concat(["put.bundles:1", "put.bundles.done:1", "put.refs:1", "put.refs.done:1"])
    .map((point) => `${point}:kill`);
  for (const [round, DATAMON_FAULT] of faults.entries()) {
    // Something new in each round, so that each has blobs to put.
    for (let n = 0; n < 3; n++) place.write(`round${round}/large${n}`, pattern(1_100_000, 10_000 * round + n));
    place.write(`round${round}/small`, `round ${round}`);
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
