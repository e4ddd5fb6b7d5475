import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, describe, it } from "node:test";
import {
  type Context,
  createBundle,
  createRepo,
  deleteLabel,
  getLabel,
  labelHistory,
  listLabels,
  newBundleId,
  setLabel,
} from "../../src/meta/index.ts";
import { all, temporaryContext } from "./temporary-context.ts";

describe("labels", () => {
  let context: Context;
  let root: string;
  let remove: () => Promise<void>;
  let bundles: string[];
  beforeEach(async () => {
    ({ context, root, remove } = await temporaryContext());
    await createRepo(context, { name: "birds", description: "" });
    bundles = [];
    const hash = "0".repeat(64);
    const rest = { repo: "birds", message: "", parents: [], catalog: hash, tree: hash, files: 0, bytes: 0 };
    for (let at = 0; at < 3; at++)
      bundles.push((await createBundle(context, { id: newBundleId(bundles), ...rest })).id);
  });
  afterEach(() => remove());

  const set = (label: string, at: number, expected?: number) =>
    setLabel(context, "birds", label, bundles[at]!, expected === undefined ? {} : { expected });
  const history = (label: string) => all(labelHistory(context, "birds", label));
  const logFile = (label: string, name: string) => join(root, "meta", "refs", "birds", "labels", label, name);

  it("name bundles, and can be moved", async () => {
    const first = await set("v1", 0);
    assert.deepEqual([first.number, first.bundle], [1, bundles[0]]);
    assert.deepEqual(await getLabel(context, "birds", "v1"), first);
    const second = await set("v1", 1);
    assert.deepEqual(await getLabel(context, "birds", "v1"), second);
    assert.deepEqual(await history("v1"), [first, second]);
    assert.deepEqual(second.contributor, { name: "Ada", email: "ada@example.org" });
  });

  it("go away and come back, and their history stays", async () => {
    await set("v1", 0);
    await deleteLabel(context, "birds", "v1");
    const gone = { code: "not-found", message: /label v1 is not in repo birds/, hint: /label list --repo birds/ };
    await assert.rejects(getLabel(context, "birds", "v1"), gone);
    await assert.rejects(deleteLabel(context, "birds", "v1"), gone);
    assert.deepEqual(await all(listLabels(context, "birds")), []);
    await set("v1", 2);
    assert.equal((await getLabel(context, "birds", "v1")).number, 3);
    assert.deepEqual(
      (await history("v1")).map((version) => version.bundle),
      [bundles[0], undefined, bundles[2]],
    );
  });

  it("are listed in the order of their names, by prefix, with and without versions", async () => {
    for (const label of ["v1", "v1-rc", "v1.0", "v10", "w", "V", "v1+a"]) await set(label, 0);
    await set("v1", 1);
    await set("gone", 1);
    await deleteLabel(context, "birds", "gone");
    const listed = async (options: { prefix?: string; withVersions?: boolean }) =>
      (await all(listLabels(context, "birds", options))).map((version) => `${version.label} ${version.number}`);
    assert.deepEqual(await listed({}), ["V 1", "v1 2", "v1+a 1", "v1-rc 1", "v1.0 1", "v10 1", "w 1"]);
    assert.deepEqual(await listed({ prefix: "v1-" }), ["v1-rc 1"]);
    assert.deepEqual(await listed({ prefix: "v1" }), ["v1 2", "v1+a 1", "v1-rc 1", "v1.0 1", "v10 1"]);
    assert.deepEqual(await listed({ prefix: "no/../such" }), []);
    assert.deepEqual(await listed({ withVersions: true, prefix: "g" }), ["gone 1", "gone 2"]);
    assert.deepEqual(await listed({ withVersions: true, prefix: "v1" }), [
      "v1 1",
      "v1 2",
      "v1+a 1",
      "v1-rc 1",
      "v1.0 1",
      "v10 1",
    ]);
  });

  it("are refused for names that are none, and for what is not there", async () => {
    for (const label of ["a", "0", "v1.2_3+b-4", "x".repeat(200)]) assert.equal((await set(label, 0)).label, label);
    for (const label of ["", ".a", "-a", "a/b", "..", "a b", "ä", "x".repeat(201)]) {
      await assert.rejects(set(label, 0), { code: "usage" }, label);
      await assert.rejects(getLabel(context, "birds", label), { code: "usage" }, label);
    }
    const missing = newBundleId([]);
    await assert.rejects(setLabel(context, "birds", "v1", missing), {
      code: "not-found",
      message: new RegExp(missing),
    });
    await assert.rejects(setLabel(context, "cats", "v1", missing), { code: "not-found", message: /repo cats/ });
    await assert.rejects(getLabel(context, "cats", "v1"), { code: "not-found", message: /repo cats/ });
    await assert.rejects(all(listLabels(context, "cats")), { code: "not-found", message: /repo cats/ });
    await assert.rejects(history("nowhere"), { code: "not-found", message: /label nowhere is not in repo birds/ });
  });

  it("are not moved from where somebody else moved them", async () => {
    await set("v1", 0, 0);
    await assert.rejects(set("v1", 1, 0), { code: "conflict", message: /label v1 of repo birds was changed/ });
    await set("v1", 1, 1);
    const outcomes = await Promise.allSettled([set("v1", 0, 2), set("v1", 1, 2), set("v1", 2, 2)]);
    assert.equal(outcomes.filter((outcome) => outcome.status === "fulfilled").length, 1);
    assert.equal((await history("v1")).length, 3);
  });

  it("keep the entries of all writers of several processes, in one order", async () => {
    const script = join(import.meta.dirname, "label-writer.ts");
    const count = 12;
    const writers = ["p", "q", "r"].map((name) => {
      const place = [context.metadata.url, context.blobs.store.url];
      const args = [script, ...place, name, String(count), "birds", "race", bundles[0]!];
      const child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
      return { name, child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
    });
    for (const { lines } of writers) assert.equal((await lines.next()).value, "ready");
    for (const { child } of writers) child.stdin.write("go\n");
    const written = await Promise.all(
      writers.map(async ({ name, lines }) => {
        const numbers = JSON.parse((await lines.next()).value ?? "") as number[];
        return numbers.map((number) => [number, name] as const);
      }),
    );
    const versions = await history("race");
    assert.deepEqual(
      versions.map((version) => version.number),
      Array.from({ length: 3 * count }, (_, at) => at + 1),
    );
    const byNumber = new Map(written.flat());
    for (const { number, contributor } of versions) assert.equal(contributor?.name, byNumber.get(number));
  });

  it("with a damaged or foreign entry are named and not served, and can be set anew", async () => {
    await set("v1", 0);
    await writeFile(logFile("v1", "000000000001.yaml"), "bundle: x");
    const damaged = { code: "damaged", message: /refs\/birds\/labels\/v1\/000000000001\.yaml/ };
    await assert.rejects(getLabel(context, "birds", "v1"), damaged);
    await assert.rejects(all(listLabels(context, "birds")), damaged);
    assert.equal((await set("v1", 1)).number, 2);
    assert.equal((await getLabel(context, "birds", "v1")).bundle, bundles[1]);
    await rename(logFile("v1", "000000000001.yaml"), logFile("v1", "notes.txt"));
    await assert.rejects(getLabel(context, "birds", "v1"), { code: "damaged", message: /labels\/v1\/notes\.txt/ });
    await rm(logFile("v1", "notes.txt"));
    const entry = await readFile(logFile("v1", "000000000002.yaml"), "utf8");
    assert.match(entry, new RegExp(`^kind: ref\nversion: 1\nbundle: ${bundles[1]}\n`));
  });
});
