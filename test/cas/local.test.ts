import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdir, mkdtemp, readdir, rm, stat, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { pathToFileURL } from "node:url";
import { listAll, openStore, setFault } from "../../src/cas/index.ts";
import { objectStoreConformance } from "../conformance/object-store.ts";

objectStoreConformance("local", async () => {
  const directory = await mkdtemp(join(tmpdir(), "datamon-store-"));
  return {
    url: pathToFileURL(join(directory, "a store")).href,
    dispose: () => rm(directory, { recursive: true }),
  };
});

describe("local store", () => {
  let root: string;
  let url: string;
  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), "datamon-local-"));
    url = pathToFileURL(root).href;
  });
  afterEach(async () => {
    setFault(undefined);
    await rm(root, { recursive: true, force: true });
  });

  it("makes nothing until the first put, then all the directories it needs", async () => {
    const directory = join(root, "deep", "er");
    const store = await openStore(pathToFileURL(directory).href);
    assert.deepEqual(await store.list(""), []);
    assert.deepEqual(await readdir(root), []);
    await store.put("a/b/c", Buffer.from("x"));
    assert.deepEqual((await readdir(directory)).sort(), [".tmp", "a"]);
    assert.equal((await stat(directory)).mode & 0o777, 0o700);
  });

  it("puts again where its directories were removed meanwhile", async () => {
    const store = await openStore(url);
    await store.put("a/b/1", Buffer.from("x"));
    await rm(root, { recursive: true });
    assert.equal(await store.put("a/b/2", Buffer.from("y"), { ifAbsent: true }), true);
    assert.equal((await store.get("a/b/2")).toString(), "y");
  });

  it("shows only what are objects", async () => {
    const store = await openStore(url);
    await store.put("a/object", Buffer.from("x"));
    await mkdir(join(root, "a", "directory"));
    await symlink("object", join(root, "a", "link"));
    await writeFile(join(root, "a", "not a key"), "x");
    await writeFile(join(root, ".hidden"), "x");
    const keys: string[] = [];
    for await (const { key } of listAll(store, "")) keys.push(key);
    assert.deepEqual(keys, ["a/object"]);
    await assert.rejects(store.get("a/directory"), { code: "not-found" });
  });

  it("sweeps leftovers of yesterday at open, and no younger ones", async () => {
    await mkdir(join(root, ".tmp"));
    for (const name of ["old", "young"]) await writeFile(join(root, ".tmp", name), name);
    const longAgo = new Date(Date.now() - 25 * 60 * 60 * 1000);
    await utimes(join(root, ".tmp", "old"), longAgo, longAgo);
    await openStore(url);
    assert.deepEqual(await readdir(join(root, ".tmp")), ["young"]);
  });

  it("leaves nothing of a put for which the disk has no room, and names the object", async () => {
    const store = await openStore(url);
    setFault("put.blobs:1:nospace");
    const put = () => store.put("blobs/ab/abc", Buffer.from("x"), { ifAbsent: true });
    await assert.rejects(put, { code: "no-space", message: /blobs\/ab\/abc.*disk is full/ });
    assert.deepEqual(await readdir(join(root, ".tmp")), []);
    assert.equal(await store.head("blobs/ab/abc"), undefined);
    assert.equal(await put(), true);
  });

  it("names the object of a put that failed", async () => {
    const store = await openStore(url);
    setFault("put.refs.done:1:error");
    await assert.rejects(store.put("refs/a", Buffer.from("x")), { code: "io", message: /refs\/a/ });
    assert.deepEqual(await readdir(join(root, ".tmp")), []);
    await store.put("dir", Buffer.from("x"));
    await assert.rejects(store.put("dir/below", Buffer.from("x")), { code: "io", message: /dir\/below/ });
  });

  for (const [point, there] of [
    ["put.blobs", false],
    ["put.blobs.done", true],
  ] as const) {
    it(`has whole objects only when killed at ${point}`, async () => {
      const script = join(import.meta.dirname, "put-some.ts");
      const environment = { ...process.env, DATAMON_FAULT: `${point}:3:kill` };
      const child = spawnSync(process.execPath, [script, url], { env: environment, encoding: "utf8" });
      assert.equal(child.signal, "SIGKILL", child.stderr);
      const store = await openStore(url);
      const keys: string[] = [];
      for await (const { key } of listAll(store, "")) keys.push(key);
      assert.deepEqual(keys, ["blobs/1", "blobs/2", ...(there ? ["blobs/3"] : [])]);
      for (const key of keys) assert.equal((await store.get(key)).toString(), `content of ${key}`);
      assert.equal(await store.put("blobs/3", Buffer.from("again"), { ifAbsent: true }), !there);
    });
  }

  it("tells a disk that is really full", (context) => {
    // A user namespace gives the mount to anybody, where the machine allows it.
    const script = join(import.meta.dirname, "fill-store.ts");
    const command = `mount -t tmpfs -o size=2m tmpfs "$0" || exit 77; exec "$1" "$2" "$3"`;
    const run = ["-rm", "sh", "-c", command, root, process.execPath, script, url];
    const child = spawnSync("unshare", run, { encoding: "utf8" });
    if (child.error !== undefined || child.status === 77 || /unshare/.test(child.stderr)) {
      context.skip("no small file system can be mounted here");
      return;
    }
    assert.equal(child.status, 0, child.stderr);
    const outcome = JSON.parse(child.stdout);
    assert.equal(outcome.code, "no-space");
    assert.match(outcome.message, /blobs\/\d+ .*disk is full/);
    assert.deepEqual(outcome.temporary, []);
    assert.deepEqual(
      outcome.sizes,
      outcome.sizes.map(() => 300_000),
    );
  });
});

describe("store URLs", () => {
  let root: string;
  before(async () => {
    root = await mkdtemp(join(tmpdir(), "datamon-open-"));
  });
  after(() => rm(root, { recursive: true }));

  it("opens file URLs with any characters in them", async () => {
    const directory = join(root, "größe 100%#?");
    const store = await openStore(pathToFileURL(directory).href);
    await store.put("a", Buffer.from("x"));
    assert.deepEqual((await readdir(directory)).sort(), [".tmp", "a"]);
  });

  it("says what are no URLs of stores", async () => {
    for (const url of ["", "bucket", "/data", "http://example.org", "file://host/data", "file:data"]) {
      await assert.rejects(openStore(url), { code: "usage" }, url);
    }
  });
});
