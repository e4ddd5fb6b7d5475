import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import fc from "fast-check";
import KSUID from "ksuid";
import {
  type Context,
  createBundle,
  createRepo,
  getBundle,
  listBundles,
  newBundleId,
  newestBundle,
  resolveBundle,
  setLabel,
} from "../../src/meta/index.ts";
import { all, temporaryContext } from "./temporary-context.ts";

const HASH = "0123456789abcdef".repeat(4);

describe("bundle ids", () => {
  it("are KSUIDs of the moment, with the fraction of the second", () => {
    const before = Date.now();
    const id = KSUID.parse(newBundleId([]));
    const after = Date.now();
    const moment = id.date.getTime() + (id.payload.readUInt32BE(0) / 2 ** 32) * 1000;
    assert.ok(moment > before - 0.01 && moment < after + 0.01, `${before} ${moment} ${after}`);
    assert.notEqual(newBundleId([]), newBundleId([]));
  });

  it("come after those of the parents, whatever the clocks say", () => {
    const raw = fc.uint8Array({ minLength: 20, maxLength: 20 }).filter((bytes) => bytes[0]! < 255);
    fc.assert(
      fc.property(fc.array(raw, { maxLength: 3 }), (parents) => {
        const ids = parents.map((bytes) => new KSUID(Buffer.from(bytes)).string);
        const id = newBundleId(ids);
        assert.match(id, /^[0-9A-Za-z]{27}$/);
        for (const parent of ids) assert.ok(id > parent, `${id} after ${parent}`);
      }),
    );
    let id = newBundleId([]);
    for (let at = 0; at < 1000; at++) {
      const next = newBundleId([id]);
      assert.ok(next > id);
      id = next;
    }
    assert.throws(() => newBundleId([new KSUID(Buffer.alloc(20, 255)).string]), { code: "usage" });
  });
});

describe("bundles", () => {
  let context: Context;
  let root: string;
  let remove: () => Promise<void>;
  beforeEach(async () => {
    ({ context, root, remove } = await temporaryContext());
    await createRepo(context, { name: "birds", description: "" });
  });
  afterEach(() => remove());

  const create = (id = newBundleId([]), parents: string[] = []) =>
    createBundle(context, { id, repo: "birds", message: "m", parents, catalog: HASH, tree: HASH, files: 1, bytes: 2 });
  const idOf = (seconds: number, fill: number) => {
    const raw = Buffer.alloc(20, fill);
    raw.writeUInt32BE(seconds, 0);
    return new KSUID(raw).string;
  };

  it("are kept with what was said about them", async () => {
    const first = await create();
    assert.deepEqual(first.contributors, [{ name: "Ada", email: "ada@example.org" }]);
    const second = await createBundle(context, {
      ...first,
      id: newBundleId([first.id]),
      message: "second\n",
      parents: [first.id],
      contributors: [{ name: "Grace", email: "g@example.org" }],
    });
    assert.deepEqual(await getBundle(context, "birds", first.id), first);
    assert.deepEqual(await getBundle(context, "birds", second.id), second);
    assert.deepEqual(await all(listBundles(context, "birds")), [first, second]);
    assert.deepEqual(await newestBundle(context, "birds"), second);
  });

  it("are refused where id or repo are wrong", async () => {
    const { id } = await create();
    await assert.rejects(create(id), { code: "exists", message: new RegExp(id) });
    await assert.rejects(create("short"), { code: "usage" });
    await assert.rejects(create(idOf(1, 1), [id]), { code: "usage", message: /cannot follow its parent/ });
    const bundle = { id, repo: "cats", message: "", parents: [], catalog: HASH, tree: HASH, files: 0, bytes: 0 };
    await assert.rejects(createBundle(context, bundle), { code: "not-found", message: /repo cats/ });
  });

  it("can be called by the beginning of their ids", async () => {
    const ids = [idOf(1_000_000, 1), idOf(1_000_001, 2), idOf(900_000_000, 3)];
    for (const id of ids) await create(id);
    const far = ids[2]!;
    assert.equal((await getBundle(context, "birds", far.slice(0, 4))).id, far);
    assert.equal((await getBundle(context, "birds", ids[0]!.slice(0, 26))).id, ids[0]);
    await assert.rejects(getBundle(context, "birds", ids[0]!.slice(0, 4)), {
      code: "usage",
      message: /more than one bundle of repo birds/,
    });
    await assert.rejects(getBundle(context, "birds", far.slice(0, 3)), { code: "usage", message: /too short/ });
    for (const id of ["", "a/b-c", "../../x", `${far}0`]) {
      await assert.rejects(getBundle(context, "birds", id), { code: "usage" }, id);
    }
    await assert.rejects(getBundle(context, "birds", "zzzzz"), { code: "not-found", hint: /bundle list --repo birds/ });
  });

  it("are listed by id, and the newest found, however many there are", async () => {
    const now = Math.floor(Date.now() / 1000) - 1_400_000_000;
    // More than a page of old ones, then some at growing distances from now.
    const old = Array.from({ length: 1100 }, (_, at) => idOf(1000 + at, 7));
    const template = await readFile(
      join(root, "meta", "bundles", "birds", `${(await create(old[0])).id}.yaml`),
      "utf8",
    );
    const add = async (id: string) => {
      const bytes = Buffer.from(template.replace(old[0]!, id));
      await context.metadata.put(`bundles/birds/${id}.yaml`, bytes);
    };
    for (let at = 1; at < old.length; at += 100) await Promise.all(old.slice(at, at + 100).map(add));
    assert.equal((await newestBundle(context, "birds"))?.id, old.at(-1));
    for (const age of [20_000 * 86_400, 1000 * 86_400, 20 * 86_400, 7200, 60, -10_000]) {
      const id = idOf(Math.max(now - age, 5000), 9);
      await add(id);
      assert.equal((await newestBundle(context, "birds"))?.id, id, `${age} seconds old`);
    }
    const listed = (await all(listBundles(context, "birds"))).map((bundle) => bundle.id);
    assert.equal(listed.length, 1106);
    assert.deepEqual(listed, [...listed].sort());
  });

  it("are meant by id, by label, or as the newest", async () => {
    await assert.rejects(resolveBundle(context, "birds"), {
      code: "not-found",
      message: /repo birds has no bundles/,
      hint: /bundle upload --repo birds/,
    });
    const first = await create(idOf(1000, 1));
    const second = await create(idOf(900_000_000, 1));
    await setLabel(context, "birds", "v1", first.id);
    assert.deepEqual(await resolveBundle(context, "birds"), second);
    assert.deepEqual(await resolveBundle(context, "birds", { label: "v1" }), first);
    assert.deepEqual(await resolveBundle(context, "birds", { bundle: second.id.slice(0, 5) }), second);
    await assert.rejects(resolveBundle(context, "birds", { bundle: first.id, label: "v1" }), { code: "usage" });
    await assert.rejects(resolveBundle(context, "birds", { label: "v2" }), {
      code: "not-found",
      message: /label v2 is not in repo birds/,
      hint: /datamon label list --repo birds/,
    });
    for (const ref of [{}, { label: "v1" }, { bundle: first.id }]) {
      await assert.rejects(resolveBundle(context, "cats", ref), { code: "not-found", message: /repo cats/ });
    }
    await context.metadata.delete(`bundles/birds/${first.id}.yaml`);
    await assert.rejects(resolveBundle(context, "birds", { label: "v1" }), {
      code: "not-found",
      message: new RegExp(`label v1 of repo birds names bundle ${first.id}`),
    });
  });

  it("with a damaged or foreign record are named and not served", async () => {
    const [first, second] = [await create(), await create()];
    const file = (id: string) => join(root, "meta", "bundles", "birds", `${id}.yaml`);
    const message = new RegExp(`bundles/birds/${first.id}\\.yaml`);
    await writeFile(file(first.id), await readFile(file(second.id)));
    await assert.rejects(getBundle(context, "birds", first.id), { code: "damaged", message });
    await writeFile(file(first.id), "");
    await assert.rejects(getBundle(context, "birds", first.id), { code: "damaged", message });
    await assert.rejects(all(listBundles(context, "birds")), { code: "damaged", message });
    assert.equal((await getBundle(context, "birds", second.id)).id, second.id);
    await context.metadata.delete(`bundles/birds/${first.id}.yaml`);
    await writeFile(file("notes"), "x");
    await assert.rejects(all(listBundles(context, "birds")), {
      code: "damaged",
      message: /bundles\/birds\/notes\.yaml/,
    });
  });
});
