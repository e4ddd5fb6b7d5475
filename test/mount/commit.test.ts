/** Commits of mounts that go on, through the command line and real mounts. */

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import {
  appendFile,
  cp,
  link,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  unlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { DiskCache, Fetcher, type Segment } from "../../src/cache/index.ts";
import { BlobStore, openStore } from "../../src/cas/index.ts";
import { CatalogBase, isRegular } from "../../src/fs/base.ts";
import { commitScratch } from "../../src/fs/commit.ts";
import { commitMount } from "../../src/fs/mount-commit.ts";
import type { MountRecord } from "../../src/fs/mount-record.ts";
import { detach } from "../../src/fs/mount-table.ts";
import { getScratch } from "../../src/fs/scratch.ts";
import {
  type Bundle,
  type Context,
  fetchCatalog,
  getBundle,
  getLabel,
  listBundles,
  setLabel,
} from "../../src/meta/index.ts";
import { noise } from "../fs/fixture.ts";
import { killTree, runs } from "./supervised-mount.ts";

const ENTRY = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const WRITER = fileURLToPath(new URL("./commit-writer.ts", import.meta.url));
const asRoot = process.getuid?.() === 0;
const FULL = process.env.DATAMON_TEST_FULL === "1";
/** Commits beside a writer. */
const ROUNDS = FULL ? 10 : 2;

interface Ended {
  status: number;
  stdout: string;
  stderr: string;
}

let template: string;
let home: string;
let directory: string;
const pids = new Set<number>();

before(async () => {
  template = home = await mkdtemp(join(tmpdir(), "datamon-commit-"));
  await ok("repo", "create", "--repo", "birds", "--description", "counts", "--name", "A", "--email", "a@example.com");
  const files = join(home, "files");
  await mkdir(files);
  await writeFile(join(files, "robin"), "robin,1\n");
  await writeFile(join(files, "wren"), noise(50_000, 1));
  await writeFile(join(files, "large"), noise(9_000_000, 2));
  await ok("bundle", "upload", "--repo", "birds", "--path", files, "--message", "first", "--label", "v1");
});
after(() => rm(template, { recursive: true, force: true }));

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "datamon-commit-"));
  directory = join(home, "mnt");
  await cp(join(template, ".datamon"), join(home, ".datamon"), { recursive: true });
});

afterEach(async () => {
  await killAll();
  await detach(directory, { lazy: true }).catch(() => {});
  await rm(home, { recursive: true, force: true });
});

async function datamon(args: string[], environment: NodeJS.ProcessEnv = {}): Promise<Ended> {
  const NODE_COMPILE_CACHE = join(template, "compile");
  const env = { ...process.env, HOME: home, DATAMON_CONFIG: "", NODE_COMPILE_CACHE, ...environment };
  return await new Promise((resolve) => {
    execFile(process.execPath, [ENTRY, ...args], { env, cwd: home }, (error, stdout, stderr) => {
      resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

async function ok(...args: string[]): Promise<string> {
  const ended = await datamon(args);
  assert.equal(ended.status, 0, `datamon ${args.join(" ")}: ${ended.stderr}`);
  return ended.stdout;
}

async function mount(args: string[] = [], environment: NodeJS.ProcessEnv = {}): Promise<void> {
  const ended = await datamon(["mount", "--rw", ...args, "birds", directory], environment);
  assert.equal(ended.status, 0, ended.stderr);
  await note();
}

/** Notes who serves the mount, and returns what its record says. */
async function note(): Promise<MountRecord> {
  const mounts = join(home, ".datamon", "mounts");
  const [id] = await readdir(mounts);
  const record = JSON.parse(await readFile(join(mounts, id!, "mount.json"), "utf8")) as MountRecord;
  if (record.supervisor !== undefined) pids.add(record.supervisor.pid);
  pids.add(record.daemon.pid);
  return record;
}

/** Kills all that serves the mount: also a daemon that has just been started, of which no record tells yet. */
async function killAll(): Promise<void> {
  if (pids.size > 0) await note().catch(() => {});
  for (const pid of [...pids].flatMap(killTree)) while (runs(pid)) await setTimeout(10);
  pids.clear();
}

/** Waits until another daemon than that one serves the mount. */
async function replaced(pid: number): Promise<void> {
  for (;;) {
    const record = await note();
    if (record.daemon.pid !== pid && record.state === "mounted") return;
    await setTimeout(20);
  }
}

function bundleOf(stdout: string): string {
  const id = /^bundle: (\S+)$/m.exec(stdout)?.[1];
  assert.ok(id, `a bundle id in ${JSON.stringify(stdout)}`);
  return id;
}

/** Commits the mount as `datamon commit` does, in this process. */
async function commit(options: { message?: string; label?: string; onConflict?: "fail" } = {}): Promise<string> {
  const id = await commitMount({ home: join(home, ".datamon"), directory, ...options });
  assert.ok(id !== undefined, "there was something to commit");
  return id;
}

/** The stores of the home directory. */
async function stores(): Promise<Context> {
  const url = (name: string): string => pathToFileURL(join(home, ".datamon", "store", name)).href;
  return {
    metadata: await openStore(url("meta")),
    blobs: new BlobStore(await openStore(url("blob"))),
    contributor: { name: "A", email: "a@example.com" },
    config: { metadata: url("meta"), blob: url("blob"), file: undefined },
  };
}

async function bundles(): Promise<Bundle[]> {
  const found: Bundle[] = [];
  for await (const bundle of listBundles(await stores(), "birds")) found.push(bundle);
  return found;
}

async function labelled(label: string): Promise<string | undefined> {
  return (await getLabel(await stores(), "birds", label)).bundle;
}

/** The files in the root of a bundle, by name. */
async function filesOf(id: string): Promise<Map<string, string>> {
  const context = await stores();
  const cacheDirectory = join(home, "other-cache");
  const { catalog } = await getBundle(context, "birds", id);
  const file = await fetchCatalog(context, catalog, join(cacheDirectory, "catalogs"));
  const cache = DiskCache.open(cacheDirectory);
  const fetcher = new Fetcher(context.blobs, cache);
  const base = new CatalogBase(file);
  try {
    const found = new Map<string, string>();
    for (const { name, inode } of base.readdir(1, undefined, 1000)) {
      if (!isRegular(inode.mode)) continue;
      const plan: Segment[] = [];
      base.plan(inode, 0, inode.size, plan);
      const bytes = Buffer.alloc(inode.size);
      await fetcher.read(plan, bytes);
      found.set(name, bytes.toString("latin1"));
    }
    return found;
  } finally {
    base.close();
    await fetcher.close();
    cache.close();
  }
}

/** Each bundle but the first has the one before it as its parent. */
async function assertChain(count: number): Promise<Bundle[]> {
  const made = await bundles();
  assert.equal(made.length, count);
  for (const [index, { parents }] of made.entries()) {
    assert.deepEqual(parents, index === 0 ? [] : [made[index - 1]!.id]);
  }
  return made;
}

async function blobCount(): Promise<number> {
  const blobs = join(home, ".datamon", "store", "blob", "blobs");
  let count = 0;
  for (const name of await readdir(blobs)) count += (await readdir(join(blobs, name))).length;
  return count;
}

async function scratches(): Promise<string[]> {
  return await readdir(join(home, ".datamon", "scratch"));
}

describe("a commit of a mount that goes on", () => {
  const ways: { args: string[]; skip?: string | false }[] = [
    { args: ["--open-mode", "passthrough"], skip: !asRoot && "only root hands files to the kernel" },
    { args: ["--open-mode", "plain"] },
    { args: ["--channel", "fuse-native"] },
  ];
  for (const { args, skip = false } of ways) {
    it(`is of one moment for a writer of two files in turn, ${args.at(-1)}`, { skip }, async () => {
      await mount(args);
      const writer = spawn(process.execPath, [WRITER, join(directory, "A"), join(directory, "B")], {
        stdio: ["pipe", "ignore", "inherit"],
      });
      try {
        while (!existsSync(join(directory, "B")) || (await stat(join(directory, "B"))).size === 0) await setTimeout(10);
        let last = 0;
        for (let round = 0; round < ROUNDS; round++) {
          const files = await filesOf(await commit());
          const [a, b] = [Number(files.get("A")), Number(files.get("B"))];
          assert.ok(b <= a && a <= b + 1, `A is ${a} and B is ${b}`);
          assert.ok(b > last);
          last = b;
        }
      } finally {
        writer.stdin.end();
        if (writer.exitCode === null) await once(writer, "exit");
      }
      const [a, b] = await Promise.all(["A", "B"].map((name) => readFile(join(directory, name), "utf8")));
      const files = await filesOf(bundleOf(await ok("unmount", directory)));
      assert.deepEqual([files.get("A"), files.get("B")], [a, b]);
    });

    it(`has the mount go on above it, ${args.at(-1)}`, { skip }, async () => {
      await mount([...args, "--label", "head"]);
      const kept = openSync(join(directory, "kept"), "w+");
      writeSync(kept, "one", 0);
      await writeFile(join(directory, "robin"), "robin,2\n");
      await mkdir(join(directory, "made"));
      await link(join(directory, "wren"), join(directory, "made", "wren"));
      const { ino } = fstatSync(kept);

      const first = await commit({ message: "the first" });
      assert.equal(await labelled("head"), first);
      assert.equal(fstatSync(kept).ino, ino);
      assert.equal((await stat(join(directory, "kept"))).ino, ino);
      const before = await blobCount();
      writeSync(kept, "two", 3);
      const large = openSync(join(directory, "large"), "r+");
      writeSync(large, "few bytes", 4_000_000);
      await rename(join(directory, "made"), join(directory, "moved"));
      await unlink(join(directory, "robin"));
      const second = await commit();
      assert.ok((await blobCount()) - before <= 3, "only what changed was stored");
      assert.equal(await labelled("head"), second);

      writeSync(large, "and more", 4_000_100);
      for (const fd of [kept, large]) closeSync(fd);
      const content = noise(9_000_000, 2);
      content.write("few bytes", 4_000_000);
      content.write("and more", 4_000_100);
      assert.ok((await readFile(join(directory, "large"))).equals(content));
      const last = bundleOf(await ok("unmount", directory));
      const made = await assertChain(4);
      assert.deepEqual(
        made.slice(1).map(({ id }) => id),
        [first, second, last],
      );
      assert.equal(made[1]!.message, "the first");
      const files = await filesOf(last);
      assert.deepEqual([...files.keys()].sort(), ["kept", "large", "wren"]);
      assert.equal(files.get("kept"), "onetwo");
      assert.ok(Buffer.from(files.get("large")!, "latin1").equals(content));
      assert.deepEqual((await filesOf(first)).get("robin"), "robin,2\n");
      assert.deepEqual(await scratches(), []);
    });
  }

  it("says so where nothing was changed, and makes nothing", async () => {
    await mount();
    const unchanged = await datamon(["commit", "-o", "json", directory]);
    assert.equal(unchanged.status, 0);
    assert.deepEqual(JSON.parse(unchanged.stdout), { bundle: null });
    assert.match(unchanged.stderr, /nothing was changed/);
    await writeFile(join(directory, "robin"), "robin,2\n");
    await commit();
    assert.equal(await ok("commit", directory), "");
    await ok("unmount", directory);
    await assertChain(2);
  });

  it("is for writable mounts, and says so", async () => {
    const ended = await datamon(["commit", directory]);
    assert.equal(ended.status, 2);
    await ok("mount", "birds", directory);
    await note();
    const refused = await datamon(["commit", directory]);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /mounted read-only/);
  });

  it("lets others write and read meanwhile, and holds none of what they write after it", async () => {
    await mount();
    for (let index = 0; index < 4; index++) await writeFile(join(directory, `big-${index}`), noise(8_000_000, index));
    const committing = commit();
    let done = false;
    void committing.then(() => {
      done = true;
    });
    const layers = join(home, ".datamon", "scratch", (await scratches())[0]!, "layers");
    let during = 0;
    for (let number = 0; !done; number++) {
      const frozen = existsSync(join(layers, "1"));
      const file = join(directory, `small-${number}`);
      await writeFile(file, `${number}`);
      assert.equal(await readFile(file, "utf8"), `${number}`);
      await appendFile(join(directory, "robin"), ".");
      if (frozen && !done) during++;
    }
    const bundle = await committing;
    assert.ok(during > 0, "programs went on while the bundle was made");
    const shown = await readFile(join(directory, "robin"), "latin1");
    const files = await filesOf(bundle);
    for (let index = 0; index < 4; index++) {
      assert.ok(Buffer.from(files.get(`big-${index}`)!, "latin1").equals(noise(8_000_000, index)));
    }
    assert.ok(shown.startsWith(files.get("robin")!));
    const last = bundleOf(await ok("unmount", directory));
    assert.equal((await filesOf(last)).get("robin"), shown);
  });

  it("keeps what is open without a name, and sockets and pipes", async () => {
    await mount();
    const open = openSync(join(directory, "large"), "r+");
    writeSync(open, "changed", 100);
    await unlink(join(directory, "large"));
    const added = openSync(join(directory, "added"), "w+");
    writeSync(added, "added");
    await unlink(join(directory, "added"));
    const pipe = join(directory, "pipe");
    await new Promise((resolve) => execFile("mkfifo", [pipe], resolve));
    const first = await commit();
    assert.deepEqual([...(await filesOf(first)).keys()].sort(), ["robin", "wren"]);
    await writeFile(join(directory, "robin"), "robin,2\n");
    const second = await commit();

    const content = noise(9_000_000, 2);
    content.write("changed", 100);
    const bytes = Buffer.alloc(content.length);
    for (let at = 0; at < bytes.length; ) at += readSync(open, bytes, at, bytes.length - at, at);
    assert.ok(bytes.equals(content), "the whole file is there");
    writeSync(open, "again", 200);
    readSync(open, bytes, 0, 5, 200);
    assert.equal(bytes.toString("latin1", 0, 5), "again");
    readSync(added, bytes, 0, 5, 0);
    assert.equal(bytes.toString("latin1", 0, 5), "added");
    for (const fd of [open, added]) closeSync(fd);
    assert.ok((await stat(pipe)).isFIFO());

    await writeFile(join(directory, "robin"), "robin,3\n");
    const third = await commit();
    await unlink(pipe);
    assert.equal(await ok("unmount", directory), "");
    assert.deepEqual(
      (await assertChain(4)).slice(1).map(({ id }) => id),
      [first, second, third],
    );
  });

  it("that fails leaves a mount that goes on, and the next one makes up for it", async () => {
    await mount(["--label", "head"]);
    await writeFile(join(directory, "robin"), "robin,2\n");
    const store = join(home, ".datamon", "store");
    await rename(store, `${store}.away`);
    await writeFile(store, "in the way");
    const failed = await datamon(["commit", "--message", "the first", directory]);
    assert.equal(failed.status, 1);
    assert.match(failed.stderr, /The mount goes on, and nothing is lost/);
    await assert.rejects(commit(), { hint: /The mount goes on/ });
    await writeFile(join(directory, "robin"), "robin,3\n");
    assert.equal(await readFile(join(directory, "robin"), "utf8"), "robin,3\n");
    await rm(store);
    await rename(`${store}.away`, store);

    const second = await commit({ message: "the second" });
    const made = await assertChain(3);
    assert.deepEqual(
      made.map(({ message }) => message),
      ["first", "the first", "the second"],
    );
    assert.equal((await filesOf(made[1]!.id)).get("robin"), "robin,2\n");
    assert.equal((await filesOf(second)).get("robin"), "robin,3\n");
    assert.equal(await labelled("head"), second);

    await rename(store, `${store}.away`);
    await writeFile(store, "in the way");
    await writeFile(join(directory, "robin"), "robin,4\n");
    await assert.rejects(commit());
    await rm(store);
    await rename(`${store}.away`, store);
    const last = bundleOf(await ok("unmount", directory));
    await assertChain(4);
    assert.equal((await filesOf(last)).get("robin"), "robin,4\n");
  });

  it("waits for another one that is under way", async () => {
    await mount();
    await writeFile(join(directory, "robin"), "robin,2\n");
    const asked = { home: join(home, ".datamon"), directory };
    const both = await Promise.all([commitMount(asked), commitMount(asked)]);
    assert.equal(both.filter((bundle) => bundle !== undefined).length, 1);
    await assertChain(2);
  });
});

describe("a mount that ends in a commit", () => {
  it("makes the bundle and its own", async () => {
    await mount();
    for (let index = 0; index < 3; index++) await writeFile(join(directory, `big-${index}`), noise(10_000_000, index));
    const layers = join(home, ".datamon", "scratch", (await scratches())[0]!, "layers");
    const committing = commit({ message: "the first" }).catch(() => undefined);
    while (!existsSync(join(layers, "1"))) await setTimeout(5);
    await writeFile(join(directory, "robin"), "robin,2\n");
    const last = bundleOf(await ok("unmount", directory));
    await committing;
    const made = await assertChain(3);
    assert.equal(made[1]!.message, "the first");
    assert.equal((await filesOf(made[1]!.id)).get("robin"), "robin,1\n");
    const files = await filesOf(last);
    assert.equal(files.get("robin"), "robin,2\n");
    assert.ok(Buffer.from(files.get("big-2")!, "latin1").equals(noise(10_000_000, 2)));
  });
});

describe("a daemon that dies in a commit", () => {
  // After each of these something else is there to be found; a long run dies also where that is as it was before.
  const points = ["freeze.done", "put.bundles", "put.bundles.done", "commit.made", "rebase.done"];
  if (FULL) points.push("freeze", "put.blobs", "put.catalogs", "put.refs.done", "rebase");
  for (const point of points) {
    it(`at ${point} loses nothing and makes no bundle twice`, async () => {
      await mount(["--label", "head", "--give-up-after", "1000"], { DATAMON_FAULT: `${point}:1:kill` });
      const { daemon } = await note();
      const open = openSync(join(directory, "open"), "w+");
      writeSync(open, "one", 0);
      await writeFile(join(directory, "robin"), noise(70_000, 3));
      await assert.rejects(commit(), { message: /died before it answered/, hint: /Give the same command again/ });
      await replaced(daemon.pid);
      writeSync(open, "two", 3);
      assert.equal(await readFile(join(directory, "open"), "utf8"), "onetwo");
      assert.ok((await readFile(join(directory, "robin"))).equals(noise(70_000, 3)));
      await appendFile(join(directory, "robin"), "end");
      closeSync(open);
      // Everything dies, and the changes are committed without the fault.
      await killAll();
      await detach(directory, { lazy: true });
      const [scratch] = await scratches();
      const root = join(home, ".datamon", "scratch");
      const cacheDirectory = join(home, ".datamon", "cache");
      const { id: last } = (await commitScratch(await stores(), await getScratch(root, scratch!), { cacheDirectory }))!;
      const made = await bundles();
      await assertChain(made.length);
      assert.equal(made.at(-1)!.id, last);
      assert.ok(made.length <= 3, `${made.length} bundles`);
      const files = await filesOf(last);
      assert.equal(files.get("open"), "onetwo");
      assert.equal(files.get("robin"), `${noise(70_000, 3).toString("latin1")}end`);
      assert.equal(await labelled("head"), last);
    });
  }

  it("leaves to the one after it what can be resumed and committed again", async () => {
    await mount([], { DATAMON_FAULT: "put.bundles:1:kill" });
    await writeFile(join(directory, "robin"), "robin,2\n");
    await assert.rejects(commit({ message: "the first" }));
    await killAll();
    await detach(directory, { lazy: true });
    const [scratch] = await scratches();
    await ok("mount", "--resume", scratch!, directory);
    await note();
    assert.equal(await readFile(join(directory, "robin"), "utf8"), "robin,2\n");
    await writeFile(join(directory, "wren"), "wren,2\n");
    await commit({ message: "the second" });
    assert.equal(await ok("unmount", directory), "");
    assert.deepEqual(
      (await assertChain(3)).map(({ message }) => message),
      ["first", "the first", "the second"],
    );
  });
});

describe("--on-conflict fail", () => {
  it("commits only while nobody else has moved the label", async () => {
    await mount(["--label", "v1", "--on-conflict", "fail"]);
    const [first] = await bundles();
    await writeFile(join(directory, "robin"), "robin,2\n");
    const second = await commit();
    assert.equal(await labelled("v1"), second);
    await writeFile(join(directory, "robin"), "robin,3\n");
    await setLabel(await stores(), "birds", "v1", first!.id);

    const refused = await datamon(["commit", directory]);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /label v1 of repo birds was moved since the mount began/);
    assert.match(refused.stderr, /--label NAME/);
    await assertChain(2);
    const third = await commit({ label: "v2" });
    await ok("unmount", "--on-conflict", "move", directory);
    await mount(["--label", "v1"]);
    await setLabel(await stores(), "birds", "v1", second);
    await setLabel(await stores(), "birds", "v1", first!.id);
    assert.deepEqual([await labelled("v1"), await labelled("v2")], [first!.id, third]);

    await writeFile(join(directory, "robin"), "robin,4\n");
    const failed = await datamon(["unmount", "--on-conflict", "fail", directory]);
    assert.equal(failed.status, 1);
    assert.match(failed.stderr, /label v1 of repo birds was moved since the mount began/);
    const [scratch] = await scratches();
    const last = bundleOf(await ok("scratch", "commit", "--on-conflict", "move", scratch!));
    assert.equal(await labelled("v1"), last);
    await assertChain(4);
  });

  it("knows of labels that the mount was not told of by their time", async () => {
    await mount();
    await writeFile(join(directory, "robin"), "robin,2\n");
    await commit({ label: "v1", onConflict: "fail" });
    await writeFile(join(directory, "robin"), "robin,3\n");
    const [first] = await bundles();
    await setLabel(await stores(), "birds", "other", first!.id);
    await assert.rejects(commit({ label: "other", onConflict: "fail" }), {
      code: "conflict",
      message: /label other of repo birds was moved/,
    });
    await commit({ label: "other" });
  });
});
