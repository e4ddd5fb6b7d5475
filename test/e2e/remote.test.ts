/** The command line on remote stores, with a network that fails now and then, and with none. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { openBucket } from "../../src/cas/index.ts";
import { pattern } from "../fs/transfer/support.ts";
import { type Fault, FaultProxy, type Seen } from "../support/fault-proxy.ts";
import { S3_CREDENTIALS, type StoreServer, serverMissing, startGcs, startS3 } from "../support/servers.ts";
import { assertFailed, assertSame, Home, type Running, sh, smallTree, write } from "./support.ts";

interface Kind {
  readonly name: string;
  readonly server: "fake-gcs-server" | "versitygw";
  start(): Promise<StoreServer>;
  /** A store's URL, and what commands need to reach it. */
  url(proxy: FaultProxy, prefix: string, parameters: Record<string, string>, bucket: string): string;
  environment(proxy: FaultProxy): NodeJS.ProcessEnv;
}

const KINDS: Kind[] = [
  {
    name: "Google Cloud Storage",
    server: "fake-gcs-server",
    start: startGcs,
    url: (_, prefix, parameters, bucket) => `gs://${bucket}/${prefix}?${new URLSearchParams(parameters)}`,
    environment: (proxy) => ({ STORAGE_EMULATOR_HOST: proxy.endpoint }),
  },
  {
    name: "S3",
    server: "versitygw",
    start: startS3,
    url: ({ endpoint }, prefix, parameters, bucket) =>
      `s3://${bucket}/${prefix}?${new URLSearchParams({ endpoint, ...parameters })}`,
    environment: () => S3_CREDENTIALS,
  },
];

/** A home whose configuration names remote stores. */
class RemoteHome extends Home {
  readonly #environment: NodeJS.ProcessEnv;

  constructor(kind: Kind, proxy: FaultProxy, parameters: Record<string, string> = {}, bucket = "datamon-test") {
    super();
    this.#environment = kind.environment(proxy);
    const [metadata, blob] = ["meta", "blob"].map((prefix) => kind.url(proxy, prefix, parameters, bucket));
    write(this.own("datamon.yaml"), `metadata: ${metadata}\nblob: ${blob}\n`);
  }

  override runWith(env: NodeJS.ProcessEnv, ...args: string[]): ReturnType<Home["runWith"]> {
    return super.runWith({ ...this.#environment, ...env }, ...args);
  }

  override startWith(env: NodeJS.ProcessEnv, ...args: string[]): Running {
    return super.startWith({ ...this.#environment, ...env }, ...args);
  }
}

// The proxy is served by this process: what waits for a mount's data must not block it.

/** How long the store is gone while somebody reads and commits. */
const OUTAGE_MS = Number(process.env.DATAMON_TEST_OUTAGE ?? 2) * 1000;

/**
 * Has the server killed at the so-manieth request of a kind, and started again at the same address and
 * with the same data after the outage. The answer waits for that, and fails where it did not come to it.
 */
function outage(proxy: FaultProxy, server: StoreServer, when: (seen: Seen) => boolean, nth: number) {
  let left = nth;
  const happened = Promise.withResolvers<void>();
  proxy.plan = (seen) => {
    if (when(seen) && --left === 0) {
      const passing = async () => {
        await server.stop();
        await delay(OUTAGE_MS);
        await server.start();
      };
      passing().then(happened.resolve, happened.reject);
    }
    return undefined;
  };
  return async () => {
    proxy.plan = () => undefined;
    assert.ok(left <= 0, "the store was never gone");
    await happened.promise;
  };
}

/** Every few requests one that fails, each time in another way. */
function trouble(): (seen: Seen) => Fault | undefined {
  const faults: Fault[] = [
    { cutAnswer: 0 },
    { status: 503 },
    { corruptAnswer: 20, corruptRequest: 400 },
    { cutAnswer: 500 },
    { latency: 100 },
    { cutRequest: 300 },
    { status: 500 },
    { status: 429 },
  ];
  let next = 0;
  return ({ number }) => (number % 7 === 3 ? faults[next++ % faults.length] : undefined);
}

// They wait for servers and for time to pass more than they work.
describe("remote stores", { concurrency: KINDS.length }, () => {
  for (const kind of KINDS) {
    describe(`on ${kind.name}`, { concurrency: 1, skip: serverMissing(kind.server) }, () => {
      let server: StoreServer;
      let proxy: FaultProxy;
      before(async () => {
        server = await kind.start();
        proxy = await FaultProxy.start(server.endpoint);
      });
      after(async () => {
        await proxy.down();
        await server.dispose();
      });

      it("uploads, lists, labels, downloads, mounts and commits, while the network fails now and then", async (t) => {
        const home = new RemoteHome(kind, proxy);
        t.after(() => home.end());
        t.after(() => {
          proxy.plan = () => undefined;
        });
        proxy.plan = trouble();
        await home.repo();
        const tree = home.path("tree");
        smallTree(tree);
        write(join(tree, "large"), randomBytes(9_000_000));
        for (let at = 0; at < 40; at++) write(join(tree, `d${at % 5}`, `f${at}`), pattern(40_000 + at, at));
        const first = await home.upload(tree, "--label", "v1");
        const listed = await home.json("bundle", "list", "--repo", "birds");
        assert.deepEqual(
          listed.map(({ id }: { id: string }) => id),
          [first],
        );
        await assertSame(tree, await home.download("--label", "v1"));

        const mnt = home.path("mnt");
        mkdirSync(mnt);
        rmSync(home.own("cache"), { recursive: true, force: true });
        await home.ok("mount", "--rw", "--message", "changed", "birds@v1", mnt);
        for (const name of ["large", "d1/f1", "d4/f39"]) {
          assert.deepEqual(await readFile(join(mnt, name)), readFileSync(join(tree, name)), name);
        }
        for (const directory of [tree, mnt]) write(join(directory, "more", "new"), pattern(3_000_000, 99));
        const second = await home.commit(mnt);
        await sh("diff", "-r", tree, await home.download("--bundle", second));
        assert.equal((await home.json("bundle", "list", "--repo", "birds")).length, 2);
      });

      it("makes a bundle of what lies in a bucket, and tells what was asked of stores", async (t) => {
        const home = new RemoteHome(kind, proxy);
        t.after(() => home.end());
        Object.assign(process.env, kind.environment(proxy));
        const url = kind.url(proxy, "source", {}, "datamon-test");
        const bucket = await openBucket(url);
        const objects = new Map([
          ["robin.csv", Buffer.from("robin,1")],
          ["2019/wren.csv", pattern(5_000_000, 3)],
        ]);
        for (const [key, content] of objects) await bucket.put(key, content);
        await home.repo("source");
        const upload = ["bundle", "upload", "--repo", "source", "--message", "m", "--path", url];
        const made = await home.json(...upload);
        assert.equal(made.files, 2);
        const gets = made.stores.find(({ request }: { request: string }) => request === "get");
        assert.ok(gets.count >= 3 && gets.bytes >= 5_000_007, JSON.stringify(made.stores));
        assert.equal((await home.json(...upload)).stats.bytesRead, 0);

        const mnt = home.path("mnt");
        mkdirSync(mnt);
        await home.ok("mount", "source", mnt);
        for (const [key, content] of objects) assert.deepEqual(await readFile(join(mnt, key)), content);
        const status = await home.json("mount", "status", mnt);
        assert.ok(
          status.stores.some(
            ({ request, bytes }: { request: string; bytes: number }) => request === "get" && bytes > 5_000_000,
          ),
        );
        assert.match(
          await home.ok("mount", "status", mnt),
          /sent to stores: \d+ get, 0 failures, 4\.\d MiB, .* ms on average/,
        );
        await home.ok("unmount", mnt);
      });

      it("says at once where the bucket is not there", async (t) => {
        const home = new RemoteHome(kind, proxy, {}, "no-such-bucket");
        t.after(() => home.end());
        const said = await home.fails(2, "repo", "list");
        assert.match(said, /there is no bucket no-such-bucket/);
        assert.match(said, /create the bucket/);
      });

      it("says in bounded time that the store does not answer, and goes on when it does", async (t) => {
        const home = new RemoteHome(kind, proxy, { timeout: "2" });
        t.after(() => home.end());
        await home.ok("repo", "create", "--repo", "dead", "--description", "d");
        const tree = home.path("tree");
        write(join(tree, "file"), randomBytes(100_000));
        const upload = ["bundle", "upload", "--repo", "dead", "--path", tree, "--message", "m"];
        await proxy.down();
        try {
          for (const args of [["repo", "list"], upload]) {
            const ended = await home.run(...args);
            assertFailed(ended, ended.code ?? 0, args.join(" "));
            assert.notEqual(ended.code, 0);
            assert.match(ended.stderr, /(gs|s3):\/\/datamon-test\/meta.*given up after \d+ tries/);
          }
        } finally {
          await proxy.up();
        }
        await home.ok(...upload);
      });

      it("keeps the changes of a mount where the store is gone at the commit", async (t) => {
        const home = new RemoteHome(kind, proxy, { timeout: "2" });
        t.after(() => home.end());
        await home.ok("repo", "create", "--repo", "kept", "--description", "d");
        const mnt = home.path("mnt");
        mkdirSync(mnt);
        await home.ok("mount", "--rw", "--message", "m", "kept", mnt);
        write(join(mnt, "file"), pattern(2_000_000, 5));
        await proxy.down();
        try {
          assert.match(await home.fails(1, "unmount", mnt), /scratch commit/);
        } finally {
          await proxy.up();
        }
        const [id] = readdirSync(home.own("scratch"));
        await home.ok("scratch", "commit", String(id));
        const destination = home.path("downloaded");
        await home.ok("bundle", "download", "--repo", "kept", "--destination", destination);
        assert.deepEqual(readFileSync(join(destination, "file")), pattern(2_000_000, 5));
      });

      it(`goes on with a read and a commit when the store was gone for ${OUTAGE_MS / 1000} s`, async (t) => {
        const home = new RemoteHome(kind, proxy);
        t.after(() => home.end());
        t.after(() => {
          proxy.plan = () => undefined;
        });
        await home.ok("repo", "create", "--repo", "outage", "--description", "d");
        const tree = home.path("tree");
        write(join(tree, "file"), randomBytes(40_000_000));
        await home.ok("bundle", "upload", "--repo", "outage", "--path", tree, "--message", "m");
        const mnt = home.path("mnt");
        mkdirSync(mnt);
        rmSync(home.own("cache"), { recursive: true, force: true });
        await home.ok("mount", "--rw", "--message", "changed", "outage", mnt);

        const gone = outage(proxy, server, ({ method, path }) => method === "GET" && path.includes("/blobs/"), 5);
        assert.deepEqual(await readFile(join(mnt, "file")), readFileSync(join(tree, "file")));
        await gone();

        for (const directory of [tree, mnt]) write(join(directory, "more"), pattern(30_000_000, 6));
        const again = outage(proxy, server, ({ method, path }) => method !== "GET" && path.includes("blobs/"), 3);
        const bundle = await home.commit(mnt);
        await again();
        const destination = home.path("downloaded");
        await home.ok("bundle", "download", "--repo", "outage", "--bundle", bundle, "--destination", destination);
        await sh("diff", "-r", tree, destination);
      });

      it("fails reads when a store is gone for too long, not before, and serves them when it is back", async (t) => {
        const home = new RemoteHome(kind, proxy, { timeout: "2" });
        t.after(() => home.end());
        await home.ok("repo", "create", "--repo", "back", "--description", "d");
        const tree = home.path("tree");
        write(join(tree, "file"), randomBytes(2_000_000));
        await home.ok("bundle", "upload", "--repo", "back", "--path", tree, "--message", "m");
        rmSync(home.own("cache"), { recursive: true, force: true });
        const mnt = home.path("mnt");
        mkdirSync(mnt);
        await home.ok("mount", "back", mnt);
        await server.stop();
        try {
          const began = performance.now();
          await assert.rejects(readFile(join(mnt, "file")), { code: "EIO" });
          // Waits are drawn at random, and the last of them is not begun where it would be too long.
          assert.ok(performance.now() - began > 900);
        } finally {
          await server.start();
        }
        assert.deepEqual(await readFile(join(mnt, "file")), readFileSync(join(tree, "file")));
        await home.ok("unmount", mnt);
      });

      it("serves and caches nothing that is corrupted each time", async (t) => {
        const home = new RemoteHome(kind, proxy, { timeout: "2" });
        t.after(() => home.end());
        t.after(() => {
          proxy.plan = () => undefined;
        });
        await home.ok("repo", "create", "--repo", "corrupt", "--description", "d");
        const tree = home.path("tree");
        write(join(tree, "file"), randomBytes(2_000_000));
        await home.ok("bundle", "upload", "--repo", "corrupt", "--path", tree, "--message", "m");
        rmSync(home.own("cache"), { recursive: true, force: true });
        proxy.plan = ({ method, path }) =>
          method === "GET" && path.includes("/blobs/") ? { corruptAnswer: 1_000_000 } : undefined;
        const destination = home.path("downloaded");
        const download = ["bundle", "download", "--repo", "corrupt", "--destination", destination];
        await home.fails(1, ...download);
        assert.equal(existsSync(join(destination, "file")), false);
        const mnt = home.path("mnt");
        mkdirSync(mnt);
        await home.ok("mount", "corrupt", mnt);
        await assert.rejects(readFile(join(mnt, "file")), { code: "EIO" });
        proxy.plan = () => undefined;
        assert.deepEqual(await readFile(join(mnt, "file")), readFileSync(join(tree, "file")));
        await home.ok("unmount", mnt);
        await home.ok(...download);
        await assertSame(tree, destination);
      });
    });
  }
});
