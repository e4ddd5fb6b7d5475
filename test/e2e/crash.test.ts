/** Uploads and commits that are killed or fail, at random moments and at named ones. */

import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { setTimeout } from "node:timers/promises";
import { pseudoRandom } from "../cas/pseudo-random.ts";
import { pattern } from "../fs/transfer/support.ts";
import { assertFailed, assertSame, committedId, Home, runs, smallTree, until, uploadedId, write } from "./support.ts";

/** How many times uploads are killed at random moments; more when run by hand. */
const KILLS = Number(process.env.DATAMON_TEST_KILLS ?? 6);
const SEED = Number(process.env.DATAMON_TEST_SEED ?? randomInt(1, 2 ** 31));

/** A large file and small ones, all of new content for each `round`. */
function change(tree: string, round: number): void {
  write(join(tree, "large"), pattern(6_000_000, 2 * round + 1));
  for (let at = 0; at < 60; at++)
    write(join(tree, `d${at % 7}`, `f${at}`), pattern(20_000 + 997 * at, 1000 * round + at));
}

/** Asserts that every object of `before` is there as it was, so that none was put again. */
function assertNothingPutAgain(before: Map<string, string>, now: Map<string, string>): void {
  for (const [name, identity] of before) assert.equal(now.get(name), identity, `blob ${name} is as it was`);
}

async function bundlesOf(home: Home): Promise<string[]> {
  return (await home.json("bundle", "list", "--repo", "birds")).map(({ id }: { id: string }) => id);
}

/** Asserts that bundles can be downloaded: the download verifies each byte. */
async function assertComplete(home: Home, bundles: readonly string[]): Promise<void> {
  for (const id of bundles) rmSync(await home.download("--bundle", id), { recursive: true });
}

describe("uploads that are killed at random moments", () => {
  it(`leave a store that is intact, and what was put is not put again (${KILLS} times)`, async (t) => {
    t.diagnostic(`DATAMON_TEST_SEED=${SEED}`);
    const moments = pseudoRandom(SEED, 4 * (KILLS + 1));
    const home = new Home();
    t.after(() => home.end());
    await home.repo();
    const tree = home.path("tree");
    change(tree, 0);
    const started = performance.now();
    await home.upload(tree);
    const usual = performance.now() - started;

    let killed = 0;
    let done = 1;
    for (let round = 1; round <= KILLS; round++) {
      // Now and then the same content again, so that there are rounds that find much of it in the store.
      if (round % 3 !== 0) change(tree, round);
      const before = home.blobs();
      const upload = home.start("bundle", "upload", "--repo", "birds", "--path", tree, "--message", `round ${round}`);
      await setTimeout((moments.readUInt32LE(4 * round) / 2 ** 32) * usual * 1.1);
      upload.process.kill("SIGKILL");
      const { signal, code, stdout, stderr } = await upload.end();
      if (signal === "SIGKILL") killed++;
      else assert.equal(code, 0, stderr);
      if (code === 0) uploadedId(stdout);
      assertNothingPutAgain(before, home.blobs());
      const bundles = await bundlesOf(home);
      assert.ok(bundles.length === done || bundles.length === done + 1, "no bundle is lost");
      if (code === 0) assert.equal(bundles.length, done + 1, "a bundle that was reported is there");
      done = bundles.length;
    }
    t.diagnostic(`${killed} of ${KILLS} uploads were killed, ${done - 1} bundles were made all the same`);

    const before = home.blobs();
    const last = await home.upload(tree);
    assertNothingPutAgain(before, home.blobs());
    await assertSame(await home.download("--bundle", last), tree);
    await assertComplete(home, await bundlesOf(home));
    const clean = await home.json("bundle", "upload", "--repo", "birds", "--path", tree, "--message", "again");
    assert.equal(clean.stats.bytesPut, 0);
  });
});

describe("an upload that dies or fails", { concurrency: 2 }, () => {
  let template: Home;
  let first: string;

  before(async () => {
    template = new Home();
    await template.repo();
    first = await template.upload(smallTree(template.path("first")), "--label", "v1");
    change(template.path("tree"), 1);
  });
  after(() => template.end());

  /** Points, and whether the bundle and the label are there once the upload ended at them. */
  const points: [fault: string, made: boolean, labelled: boolean][] = [
    ["put.blobs:1", false, false],
    ["put.blobs:3", false, false],
    ["put.blobs.done:2", false, false],
    ["put.catalogs:1", false, false],
    ["put.catalogs.done:1", false, false],
    ["put.bundles:1", false, false],
    ["put.bundles.done:1", true, false],
    ["put.refs:1", true, false],
    ["put.refs.done:1", true, true],
  ];
  for (const [point, made, labelled] of points) {
    for (const action of point.includes(".done") ? ["kill"] : ["kill", "error", "nospace"]) {
      if (action === "nospace" && point !== "put.blobs:1" && point !== "put.bundles:1") continue;
      it(`at ${point}, by ${action}, leaves what is right, and can be repeated`, async (t) => {
        const home = template.copy();
        t.after(() => home.end());
        const upload = [
          "bundle",
          "upload",
          "--repo",
          "birds",
          "--path",
          home.path("tree"),
          "--message",
          "m",
          "--label",
          "v1",
        ];
        const ended = await home.runWith({ DATAMON_FAULT: `${point}:${action}` }, ...upload);
        if (action === "kill") assert.equal(ended.signal ?? ended.code, "SIGKILL", ended.stderr);
        else {
          assertFailed(ended, 1, point);
          const [, kind] = /^put\.(\w+)/.exec(point) as unknown as [string, string];
          assert.match(ended.stderr, new RegExp(`${kind}/.*${action === "nospace" ? "the disk is full" : "EIO"}`));
        }
        assert.equal(ended.stdout, "", "nothing is reported as done");

        const bundles = await bundlesOf(home);
        assert.equal(bundles.length, made ? 2 : 1);
        await assertComplete(home, bundles);
        const label = () => home.json("label", "get", "--repo", "birds", "--label", "v1");
        assert.equal((await label()).bundle, labelled ? bundles[1] : first);

        const before = home.blobs();
        const id = uploadedId(await home.ok(...upload));
        assertNothingPutAgain(before, home.blobs());
        assert.equal((await label()).bundle, id);
        await assertSame(await home.download("--label", "v1"), home.path("tree"));
      });
    }
  }

  it("by SIGINT stops cleanly with 130, and goes on from there", async (t) => {
    const home = template.copy();
    t.after(() => home.end());
    write(home.path("tree/huge"), Buffer.concat([1, 2, 3, 4, 5, 6, 7, 8].map((seed) => pattern(16_000_000, seed))));
    const args = ["bundle", "upload", "--repo", "birds", "--path", home.path("tree"), "--message", "m"];
    const upload = home.start(...args);
    const put = home.blobs().size;
    await until(
      () => home.blobs().size > put + 1 || upload.process.exitCode !== null,
      () => upload.stderr,
    );
    upload.process.kill("SIGINT");
    const { code, stdout, stderr } = await upload.end();
    assert.deepEqual([code, stdout], [130, ""], stderr);
    assert.match(stderr, /^Stopping; .*\ndatamon: the upload was (stopped|interrupted)/m);
    assert.equal((await bundlesOf(home)).length, 1);
    const before = home.blobs();
    await home.ok(...args);
    assertNothingPutAgain(before, home.blobs());
    await assertSame(await home.download(), home.path("tree"));
  });
});

describe("the commit of a mount that dies or fails", { concurrency: 2 }, () => {
  let template: Home;

  before(async () => {
    template = new Home();
    await template.repo();
    await template.upload(smallTree(template.path("tree")), "--label", "v1");
  });
  after(() => template.end());

  for (const [fault, made] of [
    ["put.blobs:1:kill", false],
    ["put.catalogs:1:error", false],
    ["put.bundles:1:kill", false],
    ["put.bundles.done:1:kill", true],
    ["put.refs:1:error", true],
  ] as const) {
    it(`at ${fault} keeps the changes, and can be repeated`, async (t) => {
      const home = template.copy();
      t.after(() => home.end());
      const mnt = home.path("mnt");
      const mount = ["mount", "--rw", "--message", "changed", "--label", "v2", "birds@v1", mnt];
      const mounted = await home.runWith({ DATAMON_FAULT: fault }, ...mount);
      assert.equal(mounted.code, 0, mounted.stderr);
      const [pid] = home.daemons();
      write(join(mnt, "2025/lark.csv"), "lark,3\n");
      rmSync(join(mnt, "robin.csv"));
      const failed = await home.run("unmount", mnt);
      assertFailed(failed, 1, fault);
      const scratch = /datamon scratch commit ([0-9a-f]+)/.exec(failed.stderr)?.[1] as string;
      assert.ok(scratch, failed.stderr);
      assert.equal(runs(pid as number), false);
      assert.equal((await bundlesOf(home)).length, made ? 2 : 1);
      const [kept] = await home.json("scratch", "list");
      assert.deepEqual([kept.id, kept.repo, kept.alive], [scratch, "birds", false]);

      const before = home.blobs();
      const id = committedId(await home.ok("scratch", "commit", scratch));
      assertNothingPutAgain(before, home.blobs());
      assert.equal((await bundlesOf(home)).length, 2, "one bundle is made of the changes, not two");
      assert.equal((await home.json("label", "get", "--repo", "birds", "--label", "v2")).bundle, id);
      const folder = await home.download("--bundle", id);
      assert.equal(readFileSync(join(folder, "2025/lark.csv"), "utf8"), "lark,3\n");
      assert.deepEqual(readdirSync(folder).sort(), ["2024", "2025", "empty"]);
      assert.deepEqual(await home.json("scratch", "list"), []);
    });
  }

  it("changes can be thrown away instead", async (t) => {
    const home = template.copy();
    t.after(() => home.end());
    const mnt = home.path("mnt");
    await home.ok("mount", "--rw", "--message", "changed", "birds", mnt);
    mkdirSync(join(mnt, "more"));
    const [scratch] = await home.json("scratch", "list");
    assert.equal(scratch.alive, true);
    assert.match(await home.fails(1, "scratch", "discard", scratch.id), /is mounted at/);
    assert.match(await home.fails(1, "scratch", "commit", scratch.id), /mounted|in use/);
    const [pid] = home.daemons();
    home.kill();
    await until(
      () => !runs(pid as number),
      () => "the daemon dies",
    );
    assert.match(await home.fails(1, "unmount", mnt), /died before the changes were committed/);
    const discarded = await home.run("scratch", "discard", scratch.id.slice(0, 4));
    assert.deepEqual([discarded.code, discarded.stdout], [0, ""]);
    assert.equal(await home.ok("scratch", "list"), "");
    assert.match(await home.fails(2, "scratch", "commit", scratch.id), /there is no scratch/);
  });
});
