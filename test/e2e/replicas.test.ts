/** The command line on two servers that hold the same, one of which is killed in the middle of things. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, describe, it, type TestContext } from "node:test";
import { pattern } from "../fs/transfer/support.ts";
import { FaultProxy } from "../support/fault-proxy.ts";
import { S3_CREDENTIALS, type StoreServer, serverMissing, startGcs, startS3 } from "../support/servers.ts";
import { assertSame, Home, type Running, sh, write } from "./support.ts";

const FILES = 14;
const SIZE = 1_500_000;

/** A server, and the proxy that notices what it is asked. */
interface Side {
  readonly server: StoreServer;
  readonly proxy: FaultProxy;
  readonly name: string;
}

class ReplicatedHome extends Home {
  readonly #environment: NodeJS.ProcessEnv;
  static #made = 0;

  constructor(t: TestContext, [gcs, s3]: readonly [Side, Side]) {
    super();
    t.after(() => this.end());
    this.#environment = { ...S3_CREDENTIALS, STORAGE_EMULATOR_HOST: gcs.proxy.endpoint };
    const prefix = `home-${ReplicatedHome.#made++}`;
    const urls = (kind: string) => [
      `gs://${gcs.server.bucket}/${prefix}/${kind}?timeout=1`,
      `s3://${s3.server.bucket}/${prefix}/${kind}?timeout=1&endpoint=${s3.proxy.endpoint}`,
    ];
    const lines = ["meta", "blob"].map(
      (kind) =>
        `[${urls(kind)
          .map((url) => JSON.stringify(url))
          .join(", ")}]`,
    );
    write(this.own("datamon.yaml"), `metadata: ${lines[0]}\nblob: ${lines[1]}\n`);
  }

  override runWith(env: NodeJS.ProcessEnv, ...args: string[]): ReturnType<Home["runWith"]> {
    return super.runWith({ ...this.#environment, ...env }, ...args);
  }

  override startWith(env: NodeJS.ProcessEnv, ...args: string[]): Running {
    return super.startWith({ ...this.#environment, ...env }, ...args);
  }

  /** A tree of random files, each a blob of its own. */
  tree(): string {
    const root = this.path("tree");
    for (let at = 0; at < FILES; at++) write(join(root, `d${at % 3}`, `f${at}`), randomBytes(SIZE));
    write(join(root, "small"), pattern(1000, 1));
    return root;
  }

  forgetCache(): void {
    rmSync(this.own("cache"), { recursive: true, force: true });
  }
}

/** Has the server killed when it is asked for the nth time with one of these methods. */
function killAt({ server, proxy }: Side, nth: number, ...methods: string[]): Promise<void> {
  const killed = Promise.withResolvers<void>();
  let seen = 0;
  proxy.plan = ({ method }) => {
    if (methods.includes(method) && ++seen === nth) server.stop().then(killed.resolve, killed.reject);
    return undefined;
  };
  return killed.promise;
}

const skip = serverMissing("fake-gcs-server") || serverMissing("versitygw");

describe("on two servers, one of which is killed", { skip }, () => {
  let sides: [Side, Side];
  before(async () => {
    const [gcs, s3] = await Promise.all([startGcs(), startS3()]);
    sides = [
      { server: gcs, proxy: await FaultProxy.start(gcs.endpoint), name: "gs://" },
      { server: s3, proxy: await FaultProxy.start(s3.endpoint), name: "s3://" },
    ];
  });
  after(async () => {
    for (const { proxy, server } of sides ?? []) {
      await proxy.down();
      await server.dispose();
    }
  });

  afterEach(async () => {
    for (const { proxy, server } of sides) {
      proxy.plan = () => undefined;
      await server.stop();
      await server.start();
    }
  });

  for (const [index, which] of ["first", "second"].entries()) {
    it(`an upload goes on without the ${which}, and a repair brings it level`, async (t) => {
      const [dead, other] = [sides[index]!, sides[1 - index]!];
      const home = new ReplicatedHome(t, sides);
      await home.repo();
      const tree = home.tree();
      const killed = killAt(dead, 6, "POST", "PUT");
      const upload = home.start(
        "bundle",
        "upload",
        "--repo",
        "birds",
        "--path",
        tree,
        "--message",
        "m",
        "--label",
        "v1",
      );
      await killed;
      const { code, stderr } = await upload.end();
      assert.equal(code, 0, stderr);
      // The metadata store and the blob store, once each.
      const told = [...stderr.matchAll(/^store (\S+) does not answer/gm)].map(([, url]) => url!);
      assert.ok(told.length > 0 && told.every((url) => url.startsWith(dead.name)), stderr);
      assert.equal(new Set(told).size, told.length);
      if (which === "first") {
        home.forgetCache();
        await assertSame(tree, await home.download("--label", "v1"));
      }
      await dead.server.start();
      const found = await home.run("store", "check", "-o", "json");
      assert.equal(found.code, 1);
      const findings: { kind: string; store: string }[] = JSON.parse(found.stdout);
      assert.ok(findings.length >= 5);
      for (const { kind, store } of findings) assert.ok(kind === "missing" && store.startsWith(dead.name), kind);
      const repaired = await home.run("store", "repair");
      assert.equal(repaired.code, 0, repaired.stderr);
      assert.match(repaired.stderr, /nothing is left/);
      assert.equal(await home.ok("store", "check", "--read-data"), "");
      if (which === "second") return;
      await other.server.stop();
      home.forgetCache();
      await assertSame(tree, await home.download("--label", "v1"));
    });
  }

  it("a mount is read and committed as if nothing were", async (t) => {
    const [first] = sides;
    const home = new ReplicatedHome(t, sides);
    await home.repo();
    const tree = home.tree();
    await home.upload(tree);
    const mnt = home.path("mnt");
    mkdirSync(mnt);
    home.forgetCache();
    await home.ok("mount", "--rw", "--message", "m", "birds", mnt);
    const killed = killAt(first, 3, "GET");
    const reading = Array.from({ length: FILES }, async (_, at) => {
      const name = join(`d${at % 3}`, `f${at}`);
      assert.ok((await readFile(join(mnt, name))).equals(readFileSync(join(tree, name))), name);
    });
    await Promise.all(reading);
    await killed;
    await sh("diff", "-r", tree, mnt);
    // That a store which was slow is dead is found out in the background.
    const told = /^store gs:\S+\/blob\S*: does not answer, \d+ failures?/m;
    for (let turns = 0; !told.test(await home.ok("mount", "status", mnt)); turns++) {
      assert.ok(turns < 20, "mount status tells that the store is dead");
    }
    for (const directory of [tree, mnt]) write(join(directory, "more"), pattern(2_000_000, 9));
    await sh("diff", "-r", tree, await home.download("--bundle", await home.commit(mnt)));
  });

  it("readers do not wait for a store that stands still", async (t) => {
    const [first] = sides;
    const home = new ReplicatedHome(t, sides);
    await home.repo();
    const tree = home.tree();
    await home.upload(tree);
    home.forgetCache();
    first.proxy.plan = ({ path }) => (path.includes("/blobs/") ? { stall: true } : undefined);
    await assertSame(tree, await home.download());
  });
});
