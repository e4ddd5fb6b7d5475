import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";
import { BlobStore, blobKey, hashOf, newStoreMetrics, type ObjectStore, openStore } from "../../src/cas/index.ts";
import { type Fault, FaultProxy } from "../support/fault-proxy.ts";

const MIB = 1024 * 1024;

/** A remote store behind a server of our own. */
export interface RemoteSubject {
  /** The server's own address. */
  readonly endpoint: string;
  /** The URL of a store below `prefix` in a bucket, reached at `endpoint`; sets what has to be set for it. */
  url(endpoint: string, prefix: string, parameters?: Record<string, string>, bucket?: string): string;
}

/** What a remote store must do when the network or the server does not, tried through a proxy that does harm. */
export function remoteStoreConformance(name: string, subject: () => RemoteSubject): void {
  describe(`remote store conformance: ${name}`, () => {
    let proxy: FaultProxy;
    let stalling: FaultProxy;
    let stalled: ReturnType<typeof stall>;
    let store: ObjectStore;
    let scratch: string;
    before(async () => {
      proxy = await FaultProxy.start(subject().endpoint);
      stalling = await FaultProxy.start(subject().endpoint);
      stalled = stall(await openStore(subject().url(stalling.endpoint, "faults")));
      // Heard of by the test, which is the last.
      stalled.catch(() => undefined);
      store = await openStore(subject().url(proxy.endpoint, "faults"));
      scratch = await mkdtemp(join(tmpdir(), "datamon-remote-"));
      assert.equal(await store.head("warm/up"), undefined);
    });
    afterEach(() => {
      proxy.plan = () => undefined;
    });
    after(async () => {
      await proxy.down();
      await stalling.down();
      await rm(scratch, { recursive: true });
    });

    /** Every request about `key` suffers the faults in turn, one each; later ones none. */
    function suffer(key: string, ...faults: Fault[]): void {
      const left = [...faults];
      proxy.plan = ({ path }) => (path.includes(key) ? left.shift() : undefined);
    }

    const bytes = randomBytes(2 * MIB + 5);

    /** A get and a put that stall once, which takes as long as a store is waited for: meanwhile there are other tests. */
    async function stall(through: ObjectStore) {
      await through.put("stalled/down", bytes);
      const left: [RegExp, Fault][] = [
        [/stalled\/down/, { stall: true, cutAnswer: MIB }],
        [/stalled\/up/, { stall: true }],
      ];
      stalling.plan = ({ path }) => {
        const index = left.findIndex(([key]) => key.test(path));
        return index < 0 ? undefined : left.splice(index, 1)[0]![1];
      };
      const [got, made] = await Promise.all([
        through.get("stalled/down"),
        through.put("stalled/up", bytes, { ifAbsent: true }),
      ]);
      return { got, made, left };
    }

    const FAULTS: [string, Fault[]][] = [
      ["latency", [{ latency: 50 }]],
      ["500 and 502", [{ status: 500 }, { status: 502 }]],
      ["answers that are cut off before they start", [{ cutAnswer: 0 }]],
    ];

    for (const [what, faults] of FAULTS) {
      it(`comes through ${what}`, async () => {
        const key = `through/${what.replaceAll(" ", "-")}`;
        suffer(key, ...faults);
        assert.equal(await store.put(key, bytes, { ifAbsent: true }), true);
        suffer(key, ...faults);
        assert.deepEqual(await store.get(key), bytes);
        suffer(key, ...faults);
        assert.deepEqual(await store.head(key), { key, size: bytes.length });
        suffer("through/", ...faults);
        assert.ok((await store.list("through/")).some((info) => info.key === key));
        suffer(key, ...faults);
        await store.delete(key);
        assert.equal(await store.head(key), undefined);
      });
    }

    it("comes back later where the store asks for fewer requests", async () => {
      suffer("throttled/a", { status: 429 }, { status: 503 });
      assert.equal(await store.put("throttled/a", bytes, { ifAbsent: true }), true);
      suffer("throttled/a", { status: 503 });
      assert.deepEqual(await store.get("throttled/a"), bytes);
    });

    it("comes through downloads that are cut off", async () => {
      await store.put("cut/down", bytes);
      suffer("cut/down", { cutAnswer: 1000 }, { cutAnswer: MIB });
      assert.deepEqual(await store.get("cut/down"), bytes);
      suffer("cut/down", { cutAnswer: 1000 });
      assert.deepEqual(await store.get("cut/down", { offset: 5, length: MIB }), bytes.subarray(5, 5 + MIB));
    });

    it("comes through uploads that are cut off, of memory and of files", async () => {
      const file = join(scratch, "file");
      await writeFile(file, bytes);
      suffer("cut/up", { cutRequest: 1000 }, { cutRequest: MIB });
      assert.equal(await store.put("cut/up", [bytes.subarray(0, 9), bytes.subarray(9)], { ifAbsent: true }), true);
      assert.deepEqual(await store.get("cut/up"), bytes);
      suffer("cut/file", { cutRequest: 1000 }, { cutRequest: MIB });
      assert.equal(await store.put("cut/file", { file }, { ifAbsent: true }), true);
      assert.deepEqual(await store.get("cut/file"), bytes);
    });

    it("knows its own object where the answer to the put got lost", async () => {
      suffer("lost/mine", { cutAnswer: 0 });
      const small = Buffer.from("a record");
      assert.equal(await store.put("lost/mine", small, { ifAbsent: true }), true);
      assert.deepEqual(await store.get("lost/mine"), small);
      assert.equal(await store.put("lost/mine", small, { ifAbsent: true }), false);
      suffer("lost/large", { cutAnswer: 0 });
      assert.equal(await store.put("lost/large", bytes, { ifAbsent: true }), true);
      assert.deepEqual(await store.get("lost/large"), bytes);
    });

    it("does not take another's object for its own, of the same size or not", async () => {
      const direct = await openStore(subject().url(proxy.endpoint, "faults"));
      for (const other of ["theirs", "others"]) {
        const key = `lost/${other}`;
        await direct.put(key, Buffer.from(other), { ifAbsent: true });
        suffer(key, { status: 503 });
        assert.equal(await store.put(key, Buffer.from("theirz"), { ifAbsent: true }), false);
        assert.equal((await store.get(key)).toString(), other);
      }
    });

    it("says of a large object that it is there, also where the server does not want to hear the rest", async () => {
      await store.put("there/large", bytes, { ifAbsent: true });
      for (let round = 0; round < 10; round++) {
        assert.equal(await store.put("there/large", randomBytes(4 * MIB), { ifAbsent: true }), false);
      }
      assert.deepEqual(await store.get("there/large"), bytes);
    });

    it("stores nothing that was corrupted on the way", async () => {
      for (const [index, offset] of [500_000, MIB].entries()) {
        suffer(`corrupt/up${index}`, { corruptRequest: offset });
        assert.equal(await store.put(`corrupt/up${index}`, bytes, { ifAbsent: true }), true);
        assert.deepEqual(await store.get(`corrupt/up${index}`), bytes);
      }
    });

    it("gives back nothing that was corrupted on the way", async () => {
      await store.put("corrupt/down", bytes);
      suffer("corrupt/down", { corruptAnswer: 0 }, { corruptAnswer: MIB });
      assert.deepEqual(await store.get("corrupt/down"), bytes);
      const record = bytes.subarray(0, 300);
      await store.put("corrupt/record", record);
      suffer("corrupt/record", { corruptAnswer: 0 }, { corruptAnswer: 299 });
      assert.deepEqual(await store.get("corrupt/record", { offset: 0, length: MIB }), record);
      assert.deepEqual(await store.get("corrupt/record", { offset: 0, length: 10 }), record.subarray(0, 10));
      const blobs = new BlobStore(store);
      const hash = hashOf(bytes);
      await blobs.put(hash, bytes);
      suffer(blobKey(hash), { corruptAnswer: 0 }, { corruptAnswer: MIB });
      assert.deepEqual(await blobs.get(hash), bytes);
    });

    it("calls a blob damaged that stays so", async () => {
      const blobs = new BlobStore(store);
      const hash = hashOf(Buffer.from("what it should be"));
      await store.put(blobKey(hash), Buffer.from("what it is"));
      await assert.rejects(blobs.get(hash), { code: "damaged" });
    });

    it("lets a caller end a request", async () => {
      await store.put("end/a", bytes);
      suffer("end/a", { stall: true });
      const ending = new AbortController();
      const getting = store.get("end/a", undefined, { signal: ending.signal });
      const ended = assert.rejects(getting, /enough/);
      while (!proxy.seen.some(({ path, method }) => method === "GET" && path.includes("end/a"))) {
        await new Promise((resolve) => setImmediate(resolve));
      }
      ending.abort(new Error("enough"));
      await ended;
      assert.deepEqual(await store.get("end/a"), bytes);
    });

    it("says in bounded time that a store does not answer, and works again when it does", async () => {
      const impatient = await openStore(subject().url(proxy.endpoint, "faults", { timeout: "1" }));
      await proxy.down();
      try {
        const failures = [
          impatient.get("dead/a"),
          impatient.put("dead/a", bytes),
          impatient.head("dead/a"),
          impatient.list("dead/"),
          impatient.delete("dead/a"),
        ];
        for (const { reason } of (await Promise.allSettled(failures)) as PromiseRejectedResult[]) {
          assert.equal(reason?.code, "unavailable");
          assert.match(reason.message, /dead\/.*given up after \d+ tries/);
          assert.ok(reason.message.includes(impatient.url));
        }
      } finally {
        await proxy.up();
      }
      assert.equal(await impatient.put("dead/a", bytes), true);
      assert.deepEqual(await impatient.get("dead/a"), bytes);
    });

    it("waits out a store that is gone for a while", async () => {
      await store.put("back/a", bytes);
      await proxy.down();
      const getting = store.get("back/a");
      const putting = store.put("back/b", bytes, { ifAbsent: true });
      await assert.rejects((await openStore(subject().url(proxy.endpoint, "x", { timeout: "0.5" }))).head("a"));
      await proxy.up();
      assert.deepEqual(await getting, bytes);
      assert.equal(await putting, true);
    });

    it("says which bucket is not there", async () => {
      const nowhere = await openStore(subject().url(proxy.endpoint, "x", {}, "no-such-bucket"));
      const requests = [
        () => nowhere.get("a"),
        () => nowhere.head("a"),
        () => nowhere.list(""),
        () => nowhere.put("a", bytes, { ifAbsent: true }),
      ];
      for (const request of requests) {
        const expected = { code: "not-found", message: /no bucket no-such-bucket/, hint: /create the bucket/ };
        await assert.rejects(request, expected, String(request));
      }
    });

    it("says so when access is denied, at once", async () => {
      suffer("denied/a", { status: 403 });
      await assert.rejects(store.get("denied/a"), { code: "denied", message: /denied\/a/, hint: /account/ });
    });

    it("keeps to a bandwidth, and counts", async () => {
      const metrics = newStoreMetrics();
      const slow = await openStore(subject().url(proxy.endpoint, "slow", { bandwidth: "4M" }), { metrics });
      const started = performance.now();
      for (const index of [1, 2, 3]) await slow.put(`a/${index}`, bytes);
      await slow.get("a/1");
      // Four times two megabytes, of which the first four are free.
      assert.ok(performance.now() - started > 900);
      assert.equal(metrics.put.requests, 3);
      assert.equal(metrics.put.bytes, 3 * bytes.length);
      assert.equal(metrics.get.bytes, bytes.length);
      assert.ok(metrics.get.time > 0 && metrics.get.slowest <= metrics.get.time);
      assert.equal(metrics.get.failures, 0);
    });

    it("refuses URLs that make no sense", async () => {
      const senseless: Record<string, string>[] = [{ timeout: "soon" }, { bandwidth: "much" }, { tiemout: "1" }];
      for (const parameters of senseless) {
        await assert.rejects(openStore(subject().url(proxy.endpoint, "x", parameters)), { code: "usage" });
      }
    });

    it("downloads a lot right where one request in thirty fails and one in fifty is corrupted", async () => {
      const blobs = new BlobStore(store);
      const contents = Array.from({ length: 60 }, (_, index) => Buffer.alloc(300_000 + index, randomBytes(997)));
      const put = async (content: Buffer) => void (await blobs.put(hashOf(content), content));
      proxy.plan = ({ number }) =>
        number % 30 === 0
          ? { cutAnswer: 0 }
          : number % 50 === 1
            ? { corruptAnswer: 1000, corruptRequest: 1000 }
            : undefined;
      await Promise.all(contents.map(put));
      const got = await Promise.all(contents.map((content) => blobs.get(hashOf(content))));
      assert.deepEqual(got, contents);
    });

    it("gives up a request in which nothing moves any more, and sends it again", async () => {
      const { got, made, left } = await stalled;
      assert.deepEqual(got, bytes);
      assert.equal(made, true);
      assert.deepEqual(await store.get("stalled/up"), bytes);
      assert.deepEqual(left, []);
    });
  });
}
