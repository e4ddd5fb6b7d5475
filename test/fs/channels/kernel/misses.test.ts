import assert from "node:assert/strict";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { pathToFileURL } from "node:url";
import { Fetcher, type Segment } from "../../../../src/cache/index.ts";
import { BlobStore, type Hash, hashOf, openStore } from "../../../../src/cas/index.ts";
import { Counts, monotonicMs } from "../../../../src/fs/channels/kernel/counts.ts";
import type { Miss } from "../../../../src/fs/channels/kernel/dispatch.ts";
import { Misses } from "../../../../src/fs/channels/kernel/misses.ts";
import { u32, u64 } from "./requests.ts";

const CONTENT = Buffer.from("the content of a blob");

/** A store with one blob, and a file in place of the device, to which replies are appended. */
async function setUp(t: TestContext): Promise<{
  misses: Misses;
  fetcher: Fetcher;
  counts: Counts;
  blob: Hash;
  replies(): Buffer;
  failures: unknown[];
}> {
  const directory = mkdtempSync(join(tmpdir(), "datamon-misses-"));
  mkdirSync(join(directory, "store"));
  const blobs = new BlobStore(await openStore(pathToFileURL(join(directory, "store")).href));
  const blob = hashOf(CONTENT);
  await blobs.put(blob, CONTENT);
  const fd = openSync(join(directory, "device"), "a");
  const failures: unknown[] = [];
  t.after(() => {
    closeSync(fd);
    rmSync(directory, { recursive: true, force: true });
  });
  const counts = new Counts();
  const fetcher = new Fetcher(blobs, undefined);
  const misses = new Misses(fd, fetcher, counts.meter, (error) => failures.push(error));
  return { misses, fetcher, counts, blob, failures, replies: () => readFileSync(join(directory, "device")) };
}

function missOf(uniqueLow: number, local: string, segments: Segment[]): Miss {
  const plan: Segment[] = [{ kind: "bytes", bytes: Buffer.from(local), length: local.length }, ...segments];
  const length = plan.reduce((sum, segment) => sum + segment.length, 0);
  return { since: monotonicMs(), uniqueLow, uniqueHigh: 5, plan, length };
}

const unique = (low: number): Buffer => u64(5n * 2n ** 32n + BigInt(low));

/** Waits until what `done` looks at is there. */
async function until(done: () => boolean): Promise<void> {
  while (!done()) await new Promise((resolve) => setImmediate(resolve));
}

describe("reads that wait", () => {
  it("are answered with what is local and what was fetched", async (t) => {
    const { misses, blob, replies } = await setUp(t);
    misses.start(
      missOf(8, "local ", [
        { kind: "blob", blob, offset: 4, length: 7 },
        { kind: "zeros", length: 2 },
      ]),
    );
    await until(() => replies().length > 0);
    assert.deepEqual(replies(), Buffer.concat([u32(31, 0), unique(8), Buffer.from("local content\0\0")]));
  });

  it("are answered with an error where the blob cannot be had", async (t) => {
    const { misses, replies, failures } = await setUp(t);
    misses.start(missOf(10, "", [{ kind: "blob", blob: hashOf(Buffer.from("lost")), offset: 0, length: 4 }]));
    await until(() => replies().length > 0);
    assert.deepEqual(replies(), Buffer.concat([u32(16, 2 ** 32 - constants.errno.EIO), unique(10)]));
    assert.equal(failures.length, 1);
  });

  it("are answered once when interrupted, and not at all after the end", async (t) => {
    const { misses, fetcher, counts, blob, replies, failures } = await setUp(t);
    const segments: Segment[] = [{ kind: "blob", blob, offset: 0, length: 3 }];
    misses.start(missOf(18, "", segments));
    misses.start(missOf(20, "", segments));
    misses.interrupt(18, 5);
    misses.interrupt(18, 5);
    misses.interrupt(99, 5);
    const interrupted = Buffer.concat([u32(16, 2 ** 32 - constants.errno.EINTR), unique(18)]);
    assert.deepEqual(replies(), interrupted);
    misses.stop();
    // The fetch goes on.
    await until(() => fetcher.stats.fetches === 1);
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(replies(), interrupted);
    assert.deepEqual(failures, []);
    const requests = counts.read().requests.map(({ request, count }) => [request, count]);
    assert.deepEqual(requests, [["read-fetched", 1]]);
  });
});
