import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cp, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { after, before, describe, it, type TestContext } from "node:test";
import { pathToFileURL } from "node:url";
import { uploadTree } from "../../src/fs/index.ts";
import {
  type Context,
  checkStores,
  createRepo,
  type Finding,
  labelHistory,
  openContext,
  setLabel,
} from "../../src/meta/index.ts";
import { S3_CREDENTIALS } from "../support/servers.ts";
import { all } from "./temporary-context.ts";

const STORES = ["a", "b"];

/** Two stores of each kind with the bundles of one repo. */
class Stores {
  readonly root: string;
  readonly context: Context;

  private constructor(root: string, context: Context) {
    this.root = root;
    this.context = context;
  }

  /** A copy of stores that were filled once. */
  static async make(t: TestContext): Promise<Stores> {
    const root = await mkdtemp(join(tmpdir(), "datamon-check-"));
    t.after(() => rm(root, { recursive: true }));
    await cp(filled, root, { recursive: true });
    return await Stores.open(root, STORES);
  }

  static async open(root: string, names: readonly string[]): Promise<Stores> {
    const urls = (kind: string) => names.map((name) => pathToFileURL(join(root, name, kind)).href);
    const context = await openContext({
      metadata: urls("meta"),
      blob: urls("blob"),
      name: "Ada",
      email: "ada@example.org",
      file: undefined,
    });
    return new Stores(root, context);
  }

  async fill(): Promise<void> {
    await createRepo(this.context, { name: "birds", description: "counts" });
    for (const version of [1, 2]) await this.#upload("birds", version);
  }

  async #upload(repo: string, version: number): Promise<void> {
    const tree = join(this.root, "tree");
    await mkdir(join(tree, "d"), { recursive: true });
    await writeFile(join(tree, "d", "large"), randomBytes(3_000_000));
    await writeFile(join(tree, `small-${version}`), `version ${version} of ${repo}`);
    await uploadTree(this.context, {
      repo,
      path: tree,
      message: "m",
      label: "latest",
      cacheDirectory: join(this.root, "cache"),
      stateFile: join(this.root, "stat.sqlite"),
    });
  }

  /** Files of one store below a directory such as `blob/blobs`, by path below the root. */
  objects(store: string, ...names: string[]): string[] {
    const directory = join(this.root, store, ...names);
    return readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && !entry.parentPath.includes(".tmp"))
      .map((entry) => relative(this.root, join(entry.parentPath, entry.name)))
      .sort();
  }

  flip(path: string, at = -1): void {
    const bytes = readFileSync(join(this.root, path));
    bytes[at < 0 ? bytes.length + at : at]! ^= 1;
    writeFileSync(join(this.root, path), bytes);
  }

  remove(path: string): void {
    rmSync(join(this.root, path));
  }

  async check(options: { readData?: boolean; repair?: boolean; repo?: string } = {}): Promise<Finding[]> {
    return await all(checkStores(this.context, { ...options, cacheDirectory: join(this.root, "checking") }));
  }

  /** Asserts that both stores hold the same bytes, and that a check finds nothing. */
  async assertLevel(): Promise<void> {
    assert.deepEqual(await this.check({ readData: true }), []);
    const contents = STORES.map((store) => {
      const entries = this.objects(store).map((path) => [
        path.slice(store.length),
        readFileSync(join(this.root, path)),
      ]);
      return Object.fromEntries(entries);
    });
    assert.deepEqual(contents[0], contents[1]);
  }
}

const filled = await mkdtemp(join(tmpdir(), "datamon-check-"));
after(() => rm(filled, { recursive: true }));

const half = (bytes: Buffer) => bytes.subarray(0, bytes.length / 2);
const kinds = (findings: Finding[]) => findings.map(({ kind }) => kind);

describe("checking and repairing stores", () => {
  before(async () => await (await Stores.open(filled, STORES)).fill());

  it("finds nothing where all is level, and leaves no temporary files", async (t) => {
    const stores = await Stores.make(t);
    await stores.assertLevel();
    assert.deepEqual(await stores.check({ repo: "birds" }), []);
    await assert.rejects(stores.check({ repo: "none" }), { code: "not-found" });
    assert.deepEqual(readdirSync(join(stores.root, "checking")), []);
  });

  it("finds what any store lacks, of every kind of object, and copies it", async (t) => {
    const stores = await Stores.make(t);
    const removed = ["blob/blobs", "meta/catalogs", "meta/bundles", "meta/repos", "meta/refs"].map((place, index) => {
      const path = stores.objects(STORES[index % 2]!, place)[0]!;
      stores.remove(path);
      return path;
    });
    const expected = removed.map((path) => ["missing", path.replace(/^.\/(blob|meta)\//, "")]);
    const shown = (findings: Finding[]) => findings.map((one) => [one.kind, "key" in one ? one.key : undefined]).sort();
    assert.deepEqual(shown(await stores.check()), expected.sort());
    assert.deepEqual(shown(await stores.check({ readData: true, repo: "birds" })), expected);
    const repaired = await stores.check({ repair: true });
    assert.deepEqual(shown(repaired), expected);
    assert.ok(repaired.every((finding) => "repaired" in finding && finding.repaired));
    await stores.assertLevel();
  });

  it("brings an empty store level", async (t) => {
    const stores = await Stores.make(t);
    rmSync(join(stores.root, "a"), { recursive: true });
    assert.deepEqual(new Set(kinds(await stores.check({ repair: true }))), new Set(["missing"]));
    await stores.assertLevel();
  });

  it("finds damaged content by reading it, and replaces it", async (t) => {
    const stores = await Stores.make(t);
    stores.flip(stores.objects("a", "blob", "blobs")[0]!);
    stores.flip(stores.objects("b", "blob", "blobs")[1]!, 4);
    stores.flip(stores.objects("b", "meta", "catalogs")[0]!, 200);
    assert.deepEqual(await stores.check(), []);
    assert.deepEqual(kinds(await stores.check({ readData: true })), ["damaged", "damaged", "damaged"]);
    assert.deepEqual(await stores.check({ repair: true }), []);
    assert.deepEqual(kinds(await stores.check({ readData: true, repair: true })), ["damaged", "damaged", "damaged"]);
    await stores.assertLevel();
  });

  it("finds in a listing what is too short, and never copies what is damaged", async (t) => {
    const stores = await Stores.make(t);
    const [one, other, third] = stores.objects("a", "blob", "blobs") as [string, string, string];
    writeFileSync(join(stores.root, one), "");
    writeFileSync(join(stores.root, other), half(readFileSync(join(stores.root, other))));
    stores.flip(third);
    stores.remove(third.replace(/^a/, "b"));
    const found = await stores.check({ repair: true });
    // What there is of the third is found damaged when it is to be copied.
    assert.deepEqual(new Set(kinds(found)), new Set(["damaged", "lost", "harmed"]));
    assert.equal(found.filter((finding) => finding.kind === "damaged" && finding.repaired).length, 2);
    assert.ok(found.some((finding) => finding.kind === "lost" && third.endsWith(finding.key)));
  });

  it("says which files of which bundles are lost where no store has content right, and repairs the rest", async (t) => {
    const stores = await Stores.make(t);
    const [lost, missing] = stores.objects("a", "blob", "blobs") as [string, string];
    for (const store of STORES) stores.flip(lost.replace(/^a/, store));
    stores.remove(missing);
    const found = await stores.check({ readData: true, repair: true });
    assert.deepEqual(new Set(kinds(found)), new Set(["lost", "missing", "harmed"]));
    const harmed = found.filter((finding) => finding.kind === "harmed");
    assert.ok(harmed.every(({ repo, path }) => repo === "birds" && /^(d\/large|small-\d)$/.test(path!)));
    assert.deepEqual(new Set(kinds(await stores.check({ readData: true }))), new Set(["lost", "harmed"]));
  });

  it("names the bundles whose catalog is lost", async (t) => {
    const stores = await Stores.make(t);
    const [catalog] = stores.objects("a", "meta", "catalogs") as [string];
    for (const store of STORES) stores.remove(catalog.replace(/^a/, store));
    rmSync(join(stores.root, "cache"), { recursive: true });
    const found = await stores.check({ repair: true });
    assert.deepEqual(kinds(found), ["lost", "harmed"]);
    assert.equal(found[1]?.kind === "harmed" && found[1].path, undefined);
  });

  it("checks a single store", async (t) => {
    const stores = await Stores.open((await Stores.make(t)).root, ["a"]);
    assert.deepEqual(await stores.check({ readData: true }), []);
    const [removed, flipped] = stores.objects("a", "blob", "blobs") as [string, string];
    stores.remove(removed);
    assert.deepEqual(new Set(kinds(await stores.check())), new Set(["lost", "harmed"]));
    stores.flip(flipped);
    const found = await stores.check({ readData: true, repair: true });
    assert.equal(found.filter(({ kind }) => kind === "lost").length, 2);
  });

  it("replaces records that are damaged, and those that say something else than the first store's", async (t) => {
    const stores = await Stores.make(t);
    writeFileSync(join(stores.root, stores.objects("a", "meta", "bundles")[0]!), "kind: bund");
    const description = join(stores.root, "b/meta/repos/birds/repo.yaml");
    writeFileSync(description, readFileSync(description, "utf8").replace("counts", "mounts"));
    assert.deepEqual(kinds(await stores.check()), ["damaged", "differs"]);
    await stores.check({ repair: true });
    assert.match(readFileSync(description, "utf8"), /counts/);
    await stores.assertLevel();
  });

  it("joins the logs of a label that was moved on both sides of a broken network, and loses no entry", async (t) => {
    const stores = await Stores.make(t);
    const { context } = stores;
    const bundles = (await all(labelHistory(context, "birds", "latest"))).map(({ bundle }) => bundle!);
    const alone = async (name: string) =>
      await openContext({ ...context.config, metadata: pathToFileURL(join(stores.root, name, "meta")).href });
    const [a, b] = [await alone("a"), await alone("b")];
    await setLabel(a, "birds", "latest", bundles[0]!);
    await setLabel(b, "birds", "latest", bundles[1]!);
    await setLabel(b, "birds", "latest", bundles[0]!);
    await setLabel(a, "birds", "latest", bundles[1]!);
    const times = async (one: Context) =>
      (await all(labelHistory(one, "birds", "latest"))).map(({ timestamp }) => timestamp.toISOString());
    const before = new Set([...(await times(a)), ...(await times(b))]);
    assert.deepEqual(kinds(await stores.check()), ["differs", "differs"]);
    await stores.check({ repair: true });
    await stores.assertLevel();
    const after = await times(context);
    assert.deepEqual(new Set(after), before);
    assert.equal(after.at(-1), [...before].sort().at(-1));
  });

  it("says which store it cannot reach, and puts the others right", async (t) => {
    const environment = { ...process.env };
    t.after(() => {
      process.env = environment;
    });
    Object.assign(process.env, S3_CREDENTIALS);
    const stores = await Stores.make(t);
    const away = "s3://bucket?endpoint=http://127.0.0.1:9&timeout=0.2";
    const { config } = stores.context;
    const three = await openContext({ ...config, blob: [away, ...config.blob] });
    const removed = stores.objects("b", "blob", "blobs")[0]!;
    stores.remove(removed);
    const options = { repair: true, cacheDirectory: join(stores.root, "checking") };
    const [first, ...rest] = await all(checkStores(three, options));
    assert.ok(first?.kind === "unreachable" && first.store === away);
    assert.deepEqual(kinds(rest), ["missing"]);
    await stores.assertLevel();
    const none = await openContext({ ...config, blob: away });
    await assert.rejects(all(checkStores(none, options)), { code: "unavailable" });
  });
});
