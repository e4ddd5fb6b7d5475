import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { bytesOf } from "../../src/cas/index.ts";
import { OverlayNamespace } from "../../src/fs/overlay/overlay.ts";
import {
  claimScratch,
  countChanges,
  createScratch,
  discardScratch,
  getScratch,
  listScratches,
  type Scratch,
  updateScratch,
} from "../../src/fs/scratch.ts";
import { ROOT_USER } from "./fixture.ts";

let root: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "datamon-scratch-"));
});
afterEach(() => rm(root, { recursive: true, force: true }));

const create = (label?: string): Promise<Scratch> =>
  createScratch(join(root, "all"), {
    repo: "repo",
    directory: "/mnt/here",
    message: "why",
    ...(label !== undefined && { label }),
  });

test("a scratch is found by the beginning of its id, and says what it was made for", async () => {
  const made = await create("v1");
  assert.deepEqual(await getScratch(join(root, "all"), made.id), made);
  assert.deepEqual(await getScratch(join(root, "all"), made.id.slice(0, 5)), made);
  assert.deepEqual(
    [made.record.repo, made.record.message, made.record.label, made.record.base],
    ["repo", "why", "v1", undefined],
  );
  assert.equal((await stat(join(made.directory, "scratch.yaml"))).mode & 0o777, 0o600);
  await assert.rejects(getScratch(join(root, "all"), "zz"), { code: "not-found" });
  await assert.rejects(getScratch(join(root, "none"), made.id), { code: "not-found" });
});

test("the list counts changes while the scratch is open, and shows damage without failing", async () => {
  assert.deepEqual(await listScratches(join(root, "all")), []);
  const scratch = await create();
  assert.equal(countChanges(scratch), 0);
  const namespace = OverlayNamespace.open(scratch.directory, undefined, undefined);
  const { ino } = namespace.create(1, bytesOf("f"), 0o644, ROOT_USER);
  namespace.write(ino, 0, Buffer.alloc(100_000, 1));
  const broken = await create();
  await writeFile(join(broken.directory, "scratch.yaml"), "what: is this");
  const told: string[] = [];
  const [only, ...others] = await listScratches(join(root, "all"), (error) => told.push(error.code));
  assert.deepEqual([only?.id, only?.alive, only?.changes, others.length], [scratch.id, true, 1, 0]);
  assert.ok(only !== undefined && only.bytes >= 100_000);
  assert.deepEqual(told, ["damaged"]);
  namespace.close();
});

test("a scratch that is kept elsewhere is listed, worked on and discarded like any other", async () => {
  const all = join(root, "all");
  const place = join(root, "else", "where");
  const scratch = await createScratch(all, { repo: "repo", directory: "/mnt/here", place, limit: 1_000_000 });
  assert.deepEqual(await readdir(place), [scratch.id]);
  const namespace = OverlayNamespace.open(scratch.directory, undefined, undefined);
  namespace.create(1, bytesOf("f"), 0o644, ROOT_USER);
  namespace.close();
  const [listed] = await listScratches(all);
  assert.deepEqual([listed?.id, listed?.changes, listed?.record.limit], [scratch.id, 1, 1_000_000]);
  await rename(place, `${place}-away`);
  const told: string[] = [];
  assert.deepEqual(await listScratches(all, (error) => told.push(error.code)), []);
  assert.deepEqual(told, ["not-found"]);
  await rename(`${place}-away`, place);
  await discardScratch(await getScratch(all, scratch.id));
  assert.deepEqual([await readdir(place), await readdir(all)], [[], []]);
});

test("a scratch in use is not discarded", async () => {
  const scratch = await create();
  const namespace = OverlayNamespace.open(scratch.directory, undefined, undefined);
  await assert.rejects(discardScratch(scratch), { code: "conflict" });
  namespace.close();
  await discardScratch(scratch);
  assert.deepEqual(await listScratches(join(root, "all")), []);
});

test("only a scratch whose daemon is gone can be claimed or discarded", async () => {
  const module = new URL("../../src/fs/scratch.ts", import.meta.url).href;
  const program = `const { createScratch } = await import(${JSON.stringify(module)});
    await createScratch(${JSON.stringify(join(root, "all"))}, { repo: "repo", directory: "/mnt/there" });
    console.log("made"); setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(child.stdout!, "data");
  const [theirs] = await listScratches(join(root, "all"));
  assert.equal(theirs?.alive, true);
  await assert.rejects(discardScratch(theirs!), { code: "conflict" });
  await assert.rejects(claimScratch(theirs!, "/mnt/mine"), { code: "conflict" });
  child.kill("SIGKILL");
  await once(child, "exit");
  assert.equal((await listScratches(join(root, "all")))[0]?.alive, false);
  await claimScratch(await updateScratch(theirs!, { committing: "a-bundle" }), "/mnt/mine");
  const { record } = await getScratch(join(root, "all"), theirs!.id);
  assert.deepEqual([record.daemon.pid, record.directory, record.committing], [process.pid, "/mnt/mine", undefined]);
  await discardScratch(theirs!);
});
