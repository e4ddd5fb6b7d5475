import assert from "node:assert/strict";
import { chmodSync, mkdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import {
  type DiffEntry,
  diffTree,
  type UpdateOptions,
  type UpdateResult,
  updateTree,
} from "../../../src/fs/transfer/index.ts";
import type { Bundle } from "../../../src/meta/index.ts";
import { assertSameTree, fillWithEverything, pattern, Workplace } from "./support.ts";

async function diff(place: Workplace, bundle: Bundle, directory: string): Promise<DiffEntry[]> {
  const { cacheDirectory, stateFile } = place;
  const found: DiffEntry[] = [];
  for await (const entry of diffTree(place.context, { bundle, directory, cacheDirectory, stateFile }))
    found.push(entry);
  return found;
}

function update(
  place: Workplace,
  bundle: Bundle,
  directory: string,
  more: Partial<UpdateOptions> = {},
): Promise<UpdateResult> {
  const { cacheDirectory, stateFile, context, warnings } = place;
  return updateTree(context, {
    bundle,
    directory,
    cacheDirectory,
    stateFile,
    onWarning: (message) => warnings.push(message),
    ...more,
  });
}

const lines = (entries: DiffEntry[]) => entries.map(({ kind, path }) => `${kind} ${path}`);

test("a diff tells what bringing the folder to the bundle would do", async () => {
  using place = await Workplace.make();
  for (const path of ["same", "edited", "gone", "d/inner", "kind"]) place.write(path, `${path} before`);
  mkdirSync(join(place.tree, "empty"));
  symlinkSync("same", join(place.tree, "link"));
  const { bundle } = await place.upload();
  const copy = await place.download(bundle, "copy");
  assert.deepEqual(await diff(place, bundle, copy), []);
  writeFileSync(join(copy, "edited"), "edited beforf");
  rmSync(join(copy, "gone"));
  rmSync(join(copy, "empty"), { recursive: true });
  rmSync(join(copy, "link"));
  symlinkSync("elsewhere", join(copy, "link"));
  rmSync(join(copy, "kind"));
  mkdirSync(join(copy, "kind"));
  writeFileSync(join(copy, "kind/new"), "new");
  mkdirSync(join(copy, "vacant"));
  chmodSync(join(copy, "same"), 0o600);
  const found = await diff(place, bundle, copy);
  assert.deepEqual(lines(found), ["U edited", "A empty", "A gone", "A kind", "U link", "D vacant", "D kind/new"]);
  const edited = found.find(({ path }) => path === "edited");
  assert.equal(edited?.local?.size, 13);
  assert.match(edited?.local?.hash ?? "", /^[0-9a-f]{64}$/);
  assert.notEqual(edited?.local?.hash, edited?.remote?.hash);
  assert.deepEqual(found.find(({ path }) => path === "kind/new")?.remote, undefined);
  assert.deepEqual(await diff(place, bundle, copy), found, "the same with what the stat cache knows");
});

test("an update writes only what differs and mends attributes", async () => {
  using place = await Workplace.make();
  fillWithEverything(place.tree);
  const first = await place.upload();
  const copy = await place.download(first.bundle, "copy");
  const untouched = statSync(join(copy, "large"), { bigint: true });

  writeFileSync(join(place.tree, "nothing"), "something");
  rmSync(join(place.tree, "deep/er/est"), { recursive: true });
  rmSync(join(place.tree, "dangling"));
  symlinkSync("changed", join(place.tree, "absolute2"));
  chmodSync(join(place.tree, "m400"), 0o440);
  place.write("added/file", pattern(2_000_000, 9));
  rmSync(join(place.tree, "closed"), { recursive: true });
  place.write("closed", "a file now");
  const second = await place.upload();
  const result = await update(place, second.bundle, copy);
  assertSameTree(copy, place.tree);
  assert.equal(result.written, 3);
  assert.equal(result.kept, 0);
  assert.equal(statSync(join(copy, "large"), { bigint: true }).ino, untouched.ino);
  assert.deepEqual(await diff(place, second.bundle, copy), []);
  const back = await update(place, first.bundle, copy);
  assert.equal(back.written, 3);
  assertSameTree(copy, await place.download(first.bundle, "fresh"));
  assert.deepEqual(await update(place, first.bundle, copy), { written: 0, bytes: 0, removed: 0, kept: 0 });
});

test("local edits stop an update before it changes anything, unless forced", async () => {
  using place = await Workplace.make();
  for (const path of ["a", "b", "c", "d/e"]) place.write(path, `${path} 1`);
  const first = await place.upload();
  const copy = await place.download(first.bundle, "copy");
  place.write("a", "a 2");
  rmSync(join(place.tree, "c"));
  rmSync(join(place.tree, "d"), { recursive: true });
  place.write("d", "d is a file");
  place.write("new", "new 2");
  const second = await place.upload();

  writeFileSync(join(copy, "b"), "my b");
  writeFileSync(join(copy, "c"), "my c");
  writeFileSync(join(copy, "new"), "my new");
  writeFileSync(join(copy, "mine"), "mine");
  writeFileSync(join(copy, "d/mine"), "mine, in the way");
  await assert.rejects(update(place, second.bundle, copy), {
    code: "conflict",
    message: /b, c, new, d\/mine/,
    hint: /--force/,
  });
  assert.equal(readFileSync(join(copy, "a"), "utf8"), "a 1");
  const result = await update(place, second.bundle, copy, { force: true });
  assert.deepEqual(lines(await diff(place, second.bundle, copy)), ["D mine"]);
  assert.equal(result.kept, 1);
  assert.equal(readFileSync(join(copy, "d"), "utf8"), "d is a file");
});

test("a local file that equals the new bundle's is no edit; one that was deleted comes back", async () => {
  using place = await Workplace.make();
  for (const path of ["a", "b"]) place.write(path, `${path} 1`);
  const first = await place.upload();
  const copy = await place.download(first.bundle, "copy");
  place.write("a", "a 2");
  const second = await place.upload();
  writeFileSync(join(copy, "a"), "a 2");
  rmSync(join(copy, "b"));
  assert.equal((await update(place, second.bundle, copy)).written, 1);
  assertSameTree(copy, place.tree);
});

test("a folder without a note of its bundle has only edits; one that stopped on the way goes on", async () => {
  using place = await Workplace.make();
  for (let n = 0; n < 20; n++) place.write(`f${n}`, pattern(1_100_000, n + 1));
  const first = await place.upload();
  const foreign = place.path("foreign");
  mkdirSync(foreign);
  writeFileSync(join(foreign, "f0"), "other");
  await assert.rejects(update(place, first.bundle, foreign), { code: "conflict", message: /no note/ });

  const copy = await place.download(first.bundle, "copy");
  for (let n = 0; n < 20; n++) place.write(`f${n}`, pattern(1_100_000, n + 100));
  const second = await place.upload();
  const stop = new AbortController();
  const stopped = update(place, second.bundle, copy, {
    signal: stop.signal,
    concurrency: 1,
    onProgress: ({ files }) => files === 3 && stop.abort(),
  });
  await assert.rejects(stopped, { code: "interrupted", message: /3 of 20|4 of 20/ });
  await update(place, second.bundle, copy);
  assertSameTree(copy, place.tree);
});
