import assert from "node:assert/strict";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { pathToFileURL } from "node:url";
import koffi from "koffi";
import { Fetcher, type Segment } from "../../../../src/cache/index.ts";
import { BlobStore, type Hash, hashOf, openStore } from "../../../../src/cas/index.ts";
import { Counts, monotonicMs } from "../../../../src/fs/channels/kernel/counts.ts";
import type { Miss } from "../../../../src/fs/channels/kernel/dispatch.ts";
import { Misses } from "../../../../src/fs/channels/kernel/misses.ts";
import { u32, u64 } from "./requests.ts";

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SOCK_NONBLOCK = 0o4000;

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

/** Two ends of a connection that keeps messages apart, as the device does; reading never waits. */
function messages(t: TestContext): [number, number] {
  const socketpair = koffi.load(null).func("int socketpair(int domain, int type, int protocol, _Out_ int *ends)");
  const ends: [number, number] = [-1, -1];
  assert.equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends), 0);
  t.after(() => {
    for (const fd of ends) closeSync(fd);
  });
  return ends;
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

  it("are answered in one message, of however many pieces", async (t) => {
    const { fetcher, counts, blob, failures } = await setUp(t);
    const [here, there] = messages(t);
    const misses = new Misses(here, fetcher, counts.meter, (error) => failures.push(error));
    const segments = Array.from({ length: 1500 }, (_, index) =>
      index === 700
        ? ({ kind: "blob", blob, offset: 4, length: 1 } as const)
        : ({ kind: "bytes", bytes: Buffer.of(index % 251), length: 1 } as const),
    );
    misses.start(missOf(12, "", segments));
    const message = Buffer.alloc(4096);
    await until(() => fetcher.stats.fetches === 1);
    await new Promise((resolve) => setImmediate(resolve));
    const length = readSync(there, message);
    const content = Buffer.from(segments.map((_, index) => (index === 700 ? CONTENT[4]! : index % 251)));
    assert.deepEqual(message.subarray(0, length), Buffer.concat([u32(1516, 0), unique(12), content]));
    assert.deepEqual(failures, []);
  });

  it("are answered with an error where the kernel does not take the content", async (t) => {
    const { fetcher, counts, blob, failures } = await setUp(t);
    const [here, there] = messages(t);
    const misses = new Misses(here, fetcher, counts.meter, (error) => failures.push(error));
    // Longer than any message may be.
    const zeros = 16 * 1024 * 1024;
    misses.start(
      missOf(14, "", [
        { kind: "zeros", length: zeros },
        { kind: "blob", blob, offset: 0, length: 1 },
      ]),
    );
    await until(() => failures.length === 1);
    const message = Buffer.alloc(100);
    const length = readSync(there, message);
    const expected = Buffer.concat([u32(16, 2 ** 32 - constants.errno.EIO), unique(14)]);
    assert.deepEqual(message.subarray(0, length), expected);
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
