/** Uploads whose source is a bucket, on real servers. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";
import { bytesOf, type DatamonError, type ObjectStore, openBucket } from "../../../src/cas/index.ts";
import type { UploadProgress } from "../../../src/fs/transfer/upload.ts";
import { FaultProxy } from "../../support/fault-proxy.ts";
import { S3_CREDENTIALS, type StoreServer, serverMissing, startGcs, startS3 } from "../../support/servers.ts";
import { pattern, snapshot, Workplace } from "./support.ts";

const MIB = 1024 * 1024;
/** More than a page of a listing has. With `DATAMON_TEST_FULL` as many as a day's data. */
const [OBJECTS, LARGE_MIB] = process.env.DATAMON_TEST_FULL ? [5000, 300] : [1100, 24];

interface Kind {
  readonly name: string;
  readonly server: "fake-gcs-server" | "versitygw";
  start(): Promise<StoreServer>;
  /** The URL of what lies below `prefix`; sets what has to be set to reach it. */
  url(endpoint: string, prefix: string): string;
}

const KINDS: Kind[] = [
  {
    name: "Google Cloud Storage",
    server: "fake-gcs-server",
    start: () => startGcs("memory"),
    url(endpoint, prefix) {
      process.env.STORAGE_EMULATOR_HOST = endpoint;
      return `gs://datamon-test/${prefix}`;
    },
  },
  {
    name: "S3",
    server: "versitygw",
    start: startS3,
    url(endpoint, prefix) {
      Object.assign(process.env, S3_CREDENTIALS);
      return `s3://datamon-test/${prefix}?endpoint=${endpoint}`;
    },
  },
];

for (const kind of KINDS) {
  describe(`upload from ${kind.name}`, { skip: serverMissing(kind.server) }, () => {
    let server: StoreServer;
    let proxy: FaultProxy;
    before(async () => {
      server = await kind.start();
      proxy = await FaultProxy.start(server.endpoint);
    });
    afterEach(() => {
      proxy.plan = () => undefined;
    });
    after(async () => {
      await proxy.down();
      await server.dispose();
    });

    /** Puts objects below a prefix, straight into the server. */
    async function fill(prefix: string, objects: Iterable<[string, Buffer]>): Promise<ObjectStore> {
      const bucket = await openBucket(kind.url(server.endpoint, prefix));
      const left = objects[Symbol.iterator]();
      const put = async () => {
        for (let next = left.next(); next.done !== true; next = left.next()) await bucket.put(...next.value);
      };
      await Promise.all(Array.from({ length: 32 }, put));
      return bucket;
    }

    it(`brings ${OBJECTS} objects and a large one, and does not read them again`, async () => {
      const content = (index: number) => Buffer.from(`object ${index} `.repeat(index % 100));
      const keys = Array.from({ length: OBJECTS }, (_, index) => `d${index % 7}/e${index % 3}/f-${index}`);
      const large = Buffer.alloc(LARGE_MIB * MIB);
      for (let at = 0; at < large.length; at += 3 * MIB) randomBytes(2 * MIB).copy(large, at);
      const bucket = await fill("many", [
        ...keys.map((key, index): [string, Buffer] => [key, content(index)]),
        ["large", large],
      ]);
      using place = await Workplace.make();
      const path = kind.url(server.endpoint, "many");
      let progress: UploadProgress = { files: 0, bytes: 0 };
      const onProgress = (state: UploadProgress) => {
        progress = { ...state };
      };
      const first = await place.upload({ path, onProgress });
      assert.equal(first.bundle.files, OBJECTS + 1);
      const { files, bytes } = progress;
      assert.deepEqual(progress, { files, bytes, totalFiles: files, totalBytes: bytes });
      assert.equal(first.stats.bytesRead, first.bundle.bytes);

      const downloaded = await place.download(first.bundle, "out");
      keys.forEach((key, index) => {
        assert.ok(readFileSync(join(downloaded, key)).equals(content(index)), key);
      });
      assert.ok(readFileSync(join(downloaded, "large")).equals(large));
      const { mode, mtimeMs } = statSync(join(downloaded, "large"));
      assert.equal(mode, 0o100644);
      assert.equal(mtimeMs, (await bucket.head("large"))?.state?.modified);

      const second = await place.upload({ path });
      assert.equal(second.unchanged, true);
      assert.equal(second.stats.bytesRead, 0);

      await bucket.put(keys[5]!, Buffer.from("another"));
      const third = await place.upload({ path });
      assert.equal(third.stats.bytesRead, 7);
      assert.equal(third.reusedFiles, OBJECTS);
      const only = await place.upload({ path, files: [bytesOf(keys[5]!), bytesOf("d1/nothing")], skipOnError: true });
      assert.equal(only.bundle.files, 1);
      assert.equal(only.failed, 1);
    });

    it("comes through failing requests and corrupted bytes", async () => {
      const objects = Array.from({ length: 200 }, (_, index): [string, Buffer] => [`f${index}`, pattern(3000, index)]);
      objects.push(["large", pattern(20 * MIB, 999)]);
      await fill("faults", objects);
      using place = await Workplace.make();
      proxy.plan = ({ number }) =>
        number % 9 === 0 ? { cutAnswer: 0 } : number % 25 === 7 ? { corruptAnswer: 1000 } : undefined;
      const { bundle } = await place.upload({ path: kind.url(proxy.endpoint, "faults") });
      proxy.plan = () => undefined;
      const downloaded = await place.download(bundle, "out");
      for (const [key, content] of objects) assert.ok(readFileSync(join(downloaded, key)).equals(content), key);
    });

    it("reads an object again that changes meanwhile, and names one that does not stand still", async () => {
      const bucket = await fill("moving", [
        ["large", pattern(6 * MIB, 1)],
        ["small", pattern(1000, 1)],
      ]);
      // S3 does not tell the same bytes put again from those that were there.
      let seed = 1;
      const changeWhile = (times: number) => {
        let left = times;
        proxy.plan = ({ method, path }) => {
          const key = /moving\/(large|small)(\?|$)/.exec(path)?.[1];
          if (method !== "GET" || key === undefined || left-- <= 0) return undefined;
          return { until: bucket.put(key, pattern(key === "large" ? 6 * MIB : 1000, ++seed)) };
        };
      };
      using place = await Workplace.make();
      changeWhile(2);
      const { bundle } = await place.upload({ path: kind.url(proxy.endpoint, "moving") });
      proxy.plan = () => undefined;
      const downloaded = await place.download(bundle, "out");
      for (const key of ["large", "small"]) {
        assert.ok(readFileSync(join(downloaded, key)).equals(await bucket.get(key)), key);
      }
      changeWhile(Number.POSITIVE_INFINITY);
      const path = kind.url(proxy.endpoint, "moving");
      await assert.rejects(place.upload({ path }), (error: DatamonError) => {
        assert.equal(error.code, "changed");
        assert.match(error.message, /large|small/);
        return true;
      });
    });

    it("says so where there is nothing", async () => {
      using place = await Workplace.make();
      const path = kind.url(server.endpoint, "nothing");
      await assert.rejects(place.upload({ path }), { code: "not-found", message: /nothing below/, hint: /prefix/ });
      const nowhere = path.replace("datamon-test", "no-such-bucket");
      await assert.rejects(place.upload({ path: nowhere }), { code: "not-found", message: /no bucket no-such-bucket/ });
    });

    it("takes odd keys for what they are", async () => {
      const objects = ["with space", "a+b", "ünï/码", "100%/#?&=", "tilde~'\"<>", ".hidden", "dir/.x"];
      await fill(
        "odd",
        objects.map((key): [string, Buffer] => [key, Buffer.from(key)]),
      );
      await fill("odd", [
        ["empty/", Buffer.alloc(0)],
        ["dir/", Buffer.alloc(0)],
      ]);
      using place = await Workplace.make();
      const { bundle } = await place.upload({ path: kind.url(server.endpoint, "odd") });
      const downloaded = await place.download(bundle, "out");
      for (const key of objects) assert.equal(readFileSync(join(downloaded, key), "utf8"), key);
      assert.ok(statSync(join(downloaded, "empty")).isDirectory());
      assert.equal(bundle.files, objects.length);
    });
  });
}

describe("keys that no file can have", { skip: serverMissing("fake-gcs-server") }, () => {
  it("are told of one by one, or end the upload", async (t) => {
    const server = await startGcs("memory");
    t.after(() => server.dispose());
    process.env.STORAGE_EMULATOR_HOST = server.endpoint;
    const path = "gs://datamon-test/bad keys";
    const bucket = await openBucket(path);
    const bad = ["a/../b", "./c", "d//e", "/f", "both", `${"long".repeat(64)}/x`, "full/"];
    for (const key of [...bad, "both/below", "good"]) await bucket.put(key, Buffer.from(key));
    using place = await Workplace.make();
    await assert.rejects(place.upload({ path }), { code: "unsupported", message: /no file can be made/, hint: /skip/ });
    const result = await place.upload({ path, skipOnError: true });
    assert.equal(result.failed, bad.length);
    assert.equal(place.warnings.length, bad.length);
    for (const key of bad)
      assert.ok(
        place.warnings.some((line) => line.includes(`bad keys/${key}: `)),
        key,
      );
    const downloaded = await place.download(result.bundle, "out");
    assert.equal(readFileSync(join(downloaded, "both/below"), "utf8"), "both/below");
    assert.deepEqual([...snapshot(downloaded).keys()].filter(Boolean).sort(), ["both", "both/below", "good"]);
  });
});
