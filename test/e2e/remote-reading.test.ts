/** Mounts of bundles in a remote store: what is fetched, when, and how much of it is in memory. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { FaultProxy } from "../support/fault-proxy.ts";
import { type StoreServer, serverMissing, startGcs } from "../support/servers.ts";
import { assertFailed, Home, write } from "./support.ts";

const MIB = 1024 * 1024;
const LARGE = randomBytes(32 * MIB);
const SMALL_FILES = 400;
const SMALL = randomBytes(SMALL_FILES * 3000);

interface Fetched {
  readonly blobs: number;
  readonly ahead: number;
  readonly bytes: number;
}

function small(index: number): Buffer {
  return SMALL.subarray(index * 3000, (index + 1) * 3000);
}

function nameOf(index: number): string {
  return `small/d${Math.floor(index / 100)}/f${String(index).padStart(4, "0")}`;
}

describe("reading from a remote store", { skip: serverMissing("fake-gcs-server") }, () => {
  let server: StoreServer;
  let proxy: FaultProxy;
  let home: Home;
  let caches = 0;

  const env = () => ({ STORAGE_EMULATOR_HOST: proxy.endpoint });
  const datamon = async (...args: string[]) => {
    const ended = await home.runWith(env(), ...args);
    assert.equal(ended.code, 0, ended.stderr);
    return ended.stdout;
  };
  const mount = async (cache: string, ...flags: string[]) => {
    const directory = home.path("mnt");
    mkdirSync(directory, { recursive: true });
    await datamon("mount", "--cache-dir", cache, ...flags, "data", directory);
    return directory;
  };
  const report = async () =>
    JSON.parse(await datamon("mount", "status", "-o", "json", home.path("mnt"))) as {
      fetched: Fetched;
      daemonPid: number;
    };
  const freshCache = () => home.path(`cache${caches++}`);
  const blobRequests = () => proxy.seen.filter(({ path }) => path.includes("/blob/blobs/")).length;

  before(async () => {
    server = await startGcs();
    proxy = await FaultProxy.start(server.endpoint);
    home = new Home();
    const url = (prefix: string) => `gs://${server.bucket}/${prefix}`;
    write(home.own("datamon.yaml"), `metadata: ${url("meta")}\nblob: ${url("blob")}\n`);
    for (let index = 0; index < SMALL_FILES; index++) write(home.path("data", nameOf(index)), small(index));
    write(home.path("data", "large.bin"), LARGE);
    await datamon("repo", "create", "--repo", "data", "--description", "for reading");
    await datamon("bundle", "upload", "--repo", "data", "--path", home.path("data"), "--message", "first");
  });

  afterEach(async () => {
    await home.runWith(env(), "unmount", home.path("mnt"));
  });

  after(async () => {
    await proxy?.down();
    await server?.dispose();
    if (home !== undefined) rmSync(home.root, { recursive: true, force: true });
  });

  it("needs no store for what was warmed", async () => {
    const cache = freshCache();
    const warmed = JSON.parse(await datamon("cache", "warm", "-o", "json", "--cache-dir", cache, "data")) as {
      files: number;
      bytes: number;
      fetchedBytes: number;
    };
    assert.equal(warmed.files, SMALL_FILES + 1);
    assert.equal(warmed.bytes, LARGE.length + SMALL.length);
    assert.equal(warmed.fetchedBytes, LARGE.length + SMALL.length);
    const directory = await mount(cache);
    await server.stop();
    try {
      const seen = proxy.seen.length;
      assert.ok((await readFile(join(directory, "large.bin"))).equals(LARGE));
      for (let index = 0; index < SMALL_FILES; index++) {
        assert.ok((await readFile(join(directory, nameOf(index)))).equals(small(index)));
      }
      assert.equal(readdirSync(join(directory, "small")).length, SMALL_FILES / 100);
      assert.equal(proxy.seen.length, seen, "nothing was asked of the store");
    } finally {
      await server.start();
    }
  });

  it("warms what is chosen, and says so where it does not fit", async () => {
    const cache = freshCache();
    const warm = (...args: string[]) => home.runWith(env(), "cache", "warm", "--cache-dir", cache, ...args, "data");
    const before = blobRequests();
    const refused = await warm("--cache-size", "20M");
    assertFailed(refused, 1, "cache warm");
    assert.match(refused.stderr, /take 33\.\d MiB of the cache, which may hold 20\.0 MiB/);
    assert.equal(blobRequests(), before);
    const chosen = await warm("-o", "json", "--cache-size", "20M", "--path", "small/d[01]/*", "--path", "small/d3");
    const { files, fetchedBytes } = JSON.parse(chosen.stdout) as { files: number; fetchedBytes: number };
    assert.equal(files, 300);
    assert.equal(fetchedBytes, SMALL.length, "the blob that all small files share");
    assert.equal((await warm("--path", "absent/**")).code, 2);
  });

  it("fetches of small files here and there just these, and of many together all of them", async () => {
    const directory = await mount(freshCache());
    const read = async (index: number) => {
      assert.ok((await readFile(join(directory, nameOf(index)))).equals(small(index)));
    };
    const before = blobRequests();
    for (const index of [250, 30]) await read(index);
    assert.equal((await report()).fetched.bytes, 6000);
    assert.equal(blobRequests() - before, 2, "a round trip each");
    for (const index of [30, 250]) await read(index);
    assert.equal(blobRequests() - before, 2);
    await read(31);
    assert.equal((await report()).fetched.bytes, 6000 + SMALL.length, "who goes on to the next file gets all");
    for (let index = 0; index < SMALL_FILES; index++) await read(index);
    assert.equal(blobRequests() - before, 3);
  });

  it("waits one round trip for the first byte", async () => {
    const directory = await mount(freshCache(), "--prefetch", "0");
    proxy.seen.length = 0;
    await readFile(join(directory, nameOf(7)));
    assert.equal(proxy.seen.length, 1);
    const file = await open(join(directory, "large.bin"));
    const part = await file.read(Buffer.alloc(4096), 0, 4096, 20 * MIB);
    assert.ok(part.buffer.equals(LARGE.subarray(20 * MIB, 20 * MIB + 4096)));
    await file.close();
    // The kernel reads ahead by itself, which may reach into the next blob.
    assert.ok(proxy.seen.length <= 3, `${proxy.seen.length} requests`);
  });

  it("fetches ahead of a slow reader no more than it may, and nothing where it may not", async () => {
    for (const [prefetch, bytes] of [
      ["16M", 16 * MIB],
      ["0", 0],
    ] as const) {
      const directory = await mount(freshCache(), "--prefetch", prefetch);
      const { daemonPid } = await report();
      const before = peak(daemonPid);
      const file = await open(join(directory, "large.bin"));
      const piece = Buffer.alloc(MIB);
      for (let at = 0; at < LARGE.length; at += MIB) {
        await file.read(piece, 0, MIB, at);
        assert.ok(piece.equals(LARGE.subarray(at, at + MIB)));
        await delay(5);
        const { fetched } = at % (16 * MIB) === 0 ? await report() : { fetched: undefined };
        // One blob is as long as 8 MiB, and the kernel reads ahead up to 2 MiB.
        if (fetched !== undefined) assert.ok(fetched.bytes <= at + MIB + bytes + 20 * MIB, `${fetched.bytes} at ${at}`);
      }
      await file.close();
      const { fetched } = await report();
      assert.equal(fetched.bytes, LARGE.length);
      assert.equal(fetched.ahead > 0, bytes > 0);
      const grown = peak(daemonPid) - before;
      assert.ok(grown < bytes + 64 * MIB, `it took ${Math.round(grown / MIB)} MiB`);
      await datamon("unmount", directory);
    }
  });
});

/** The most memory that a process had, in bytes. */
function peak(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) * 1024;
}
