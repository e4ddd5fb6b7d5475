/** What is told of mounts that are over; living ones are in test/mount. */

import assert from "node:assert/strict";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { createRecordDirectory, type MountRecord, writeRecord } from "../../src/fs/mount-record.ts";
import { listMounts, unmount } from "../../src/fs/mounts.ts";
import { createScratch } from "../../src/fs/scratch.ts";

const REPO = "birds";

describe("mounts that are over", () => {
  let home: string;

  beforeEach(async () => {
    home = await mkdtemp(join(tmpdir(), "datamon-mounts-"));
  });

  afterEach(() => rm(home, { recursive: true, force: true }));

  /** Writes down a mount whose daemon does not run. */
  async function past(change: Partial<MountRecord>): Promise<MountRecord> {
    const record: MountRecord = {
      id: await createRecordDirectory(home),
      repo: REPO,
      mode: "rw",
      directory: join(home, "mnt"),
      channel: "kernel",
      daemon: { pid: process.pid, started: "at another time" },
      since: new Date().toISOString(),
      cacheDirectory: join(home, "cache"),
      state: "mounted",
      ...change,
    };
    await writeRecord(home, record);
    return record;
  }

  it("are not listed; they are told of once", async () => {
    await past({ state: "ended", outcome: { kind: "committed", bundle: "the-bundle" } });
    assert.deepEqual(await listMounts(home), []);
    const told: string[] = [];
    assert.deepEqual(await listMounts(home, (line) => told.push(line)), []);
    assert.equal(told.length, 1);
    assert.match(told[0] ?? "", /birds.*the-bundle/);
    assert.deepEqual(await readdir(join(home, "mounts")), []);
    await listMounts(home, (line) => told.push(line));
    assert.equal(told.length, 1);
  });

  it("give their outcome to whoever unmounts them", async () => {
    const directory = join(home, "mnt");
    await past({ state: "ended", outcome: { kind: "committed", bundle: "the-bundle" } });
    assert.deepEqual(await unmount({ home, directory }), { kind: "committed", bundle: "the-bundle" });
    await past({ state: "ended", outcome: { kind: "failed", code: "no-space", message: "full", hint: "empty it" } });
    await assert.rejects(unmount({ home, directory }), { code: "no-space", message: "full", hint: "empty it" });
    await assert.rejects(unmount({ home, directory }), { code: "not-found" });
  });

  it("whose daemon died without changes leave no scratch", async () => {
    const scratch = await createScratch(join(home, "scratch"), { repo: REPO, directory: join(home, "mnt") });
    await past({ scratch: scratch.id });
    await assert.rejects(unmount({ home, directory: join(home, "mnt") }), /died; nothing had been changed/);
    assert.deepEqual(await readdir(join(home, "scratch")), []);
  });
});
