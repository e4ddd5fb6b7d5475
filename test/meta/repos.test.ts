import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { listAll, setFault } from "../../src/cas/index.ts";
import {
  type Context,
  contributorOf,
  createBundle,
  createRepo,
  deleteRepo,
  getRepo,
  listRepos,
  newBundleId,
  openContext,
  setLabel,
} from "../../src/meta/index.ts";
import { all, temporaryContext } from "./temporary-context.ts";

describe("repos", () => {
  let context: Context;
  let root: string;
  let remove: () => Promise<void>;
  beforeEach(async () => {
    ({ context, root, remove } = await temporaryContext());
  });
  afterEach(async () => {
    setFault(undefined);
    await remove();
  });

  const create = (name: string) => createRepo(context, { name, description: `about ${name}` });
  const names = async () => (await all(listRepos(context))).map((repo) => repo.name);

  it("are kept with what was said about them", async () => {
    const made = await createRepo(context, { name: "birds", description: "Counts: 1970 #1\nand later" });
    assert.deepEqual(made.contributor, { name: "Ada", email: "ada@example.org" });
    assert.deepEqual(await getRepo(context, "birds"), made);
    const other = await createRepo(context, { name: "b", description: "", contributor: { email: "b@example.org" } });
    assert.deepEqual(other.contributor, { name: "Ada", email: "b@example.org" });
    assert.deepEqual(await all(listRepos(context)), [other, made]);
  });

  it("are made once", async () => {
    const outcomes = await Promise.allSettled(Array.from({ length: 5 }, () => create("birds")));
    assert.equal(outcomes.filter((outcome) => outcome.status === "fulfilled").length, 1);
    await assert.rejects(create("birds"), {
      code: "exists",
      message: /repo birds exists/,
      hint: /repo get --repo birds/,
    });
  });

  it("have names of letters, digits and hyphens", async () => {
    for (const name of ["a", "0", "Birds-2", "a-", "x".repeat(100)]) assert.equal((await create(name)).name, name);
    for (const name of ["", "-a", "a_b", "a.b", "a/b", "..", "ä", "a b", "x".repeat(101)]) {
      await assert.rejects(create(name), { code: "usage" }, name);
      await assert.rejects(getRepo(context, name), { code: "usage" }, name);
      await assert.rejects(deleteRepo(context, name), { code: "usage" }, name);
    }
  });

  it("that are not there are named, with the store and what to do", async () => {
    const missing = { code: "not-found", message: /repo birds is not in file:/, hint: /datamon repo list/ };
    await assert.rejects(getRepo(context, "birds"), missing);
    await assert.rejects(deleteRepo(context, "birds"), missing);
    assert.deepEqual(await names(), []);
  });

  it("are listed in the order of their names, however many there are", async () => {
    const made = Array.from({ length: 60 }, (_, index) => `r${(index * 7) % 60}${index % 3 === 0 ? "-x" : ""}`);
    await Promise.all(made.map(create));
    assert.deepEqual(await names(), [...made].sort());
  });

  it("with a damaged record are named and not served", async () => {
    await create("birds");
    await create("cats");
    const file = join(root, "meta", "repos", "birds", "repo.yaml");
    const cats = join(root, "meta", "repos", "cats", "repo.yaml");
    await writeFile(file, "kind: repo\nversion: 1\nname: cats\n");
    await assert.rejects(getRepo(context, "birds"), { code: "damaged", message: /repos\/birds\/repo\.yaml/ });
    await assert.rejects(names(), { code: "damaged", message: /repos\/birds\/repo\.yaml/ });
    await writeFile(file, await readFile(cats));
    await assert.rejects(getRepo(context, "birds"), { code: "damaged", message: /record of a repo named cats/ });
    await deleteRepo(context, "birds");
    assert.deepEqual(await names(), ["cats"]);
  });

  it("go with their bundles and labels, and leave others alone", async () => {
    for (const repo of ["birds", "birds-2"]) {
      await create(repo);
      for (let at = 0; at < 3; at++) {
        const { id } = await someBundle(repo);
        await setLabel(context, repo, `v${at}`, id);
      }
    }
    await deleteRepo(context, "birds");
    const keys = (await all(listAll(context.metadata, ""))).map((object) => object.key);
    assert.equal(keys.length, 7);
    for (const key of keys) assert.match(key, /\/birds-2\//);
    await assert.rejects(someBundle("birds"), { code: "not-found" });
    await create("birds");
    assert.deepEqual(await names(), ["birds", "birds-2"]);
  });

  it("can be deleted again after an interruption", async () => {
    await create("birds");
    const { id } = await someBundle("birds");
    await setLabel(context, "birds", "v1", id);
    setFault("delete.bundles:1:error");
    await assert.rejects(deleteRepo(context, "birds"), { code: "io", message: new RegExp(id) });
    assert.deepEqual(await names(), ["birds"]);
    await deleteRepo(context, "birds");
    assert.deepEqual(await context.metadata.list(""), []);
  });

  function someBundle(repo: string) {
    const hash = "0".repeat(64);
    const id = newBundleId([]);
    return createBundle(context, { id, repo, message: "", parents: [], catalog: hash, tree: hash, files: 0, bytes: 0 });
  }
});

describe("contributors", () => {
  it("are the login name where nothing is configured", async () => {
    const { USER } = process.env;
    const config = { metadata: "file:///nowhere/m", blob: "file:///nowhere/b", file: undefined };
    try {
      process.env.USER = "grace";
      const context = await openContext(config);
      assert.equal(context.contributor, undefined);
      assert.deepEqual(contributorOf(context), { name: "grace", email: `grace@${hostname()}` });
      const named = await openContext({ ...config, name: "Grace" });
      assert.deepEqual(named.contributor, { name: "Grace", email: `grace@${hostname()}` });
      delete process.env.USER;
      assert.notEqual(contributorOf(context).name, "");
    } finally {
      if (USER === undefined) delete process.env.USER;
      else process.env.USER = USER;
    }
  });
});
