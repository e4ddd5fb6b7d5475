import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, it } from "node:test";
import fc from "fast-check";
import {
  DatamonError,
  listAll,
  ObjectNotFoundError,
  type ObjectStore,
  openStore,
  type StoreUrls,
} from "../../src/cas/index.ts";

/** A store to try: an empty place for objects. */
export interface StoreSubject {
  /** What `openStore` takes, in this process and in others. */
  readonly url: StoreUrls;
  /** Variables that other processes need to reach it. */
  readonly environment?: NodeJS.ProcessEnv;
  dispose(): Promise<void>;
}

const MIB = 1024 * 1024;

/**
 * What every object store must do. A store joins by calling this from its test with a way to make
 * an empty one:
 *
 *     objectStoreConformance("local", async () => {
 *       const directory = await mkdtemp(join(tmpdir(), "store-"));
 *       return { url: pathToFileURL(directory).href, dispose: () => rm(directory, { recursive: true }) };
 *     });
 */
export function objectStoreConformance(name: string, makeSubject: () => Promise<StoreSubject>): void {
  describe(`object store conformance: ${name}`, () => {
    let subject: StoreSubject;
    let store: ObjectStore;
    let scratch: string;
    before(async () => {
      subject = await makeSubject();
      store = await openStore(subject.url);
      scratch = await mkdtemp(join(tmpdir(), "datamon-conformance-"));
    });
    after(async () => {
      await rm(scratch, { recursive: true });
      await subject.dispose();
    });

    it("is empty at first, whatever is asked of it", async () => {
      assert.deepEqual(await store.list(""), []);
      assert.deepEqual(await store.list("no/such/"), []);
      assert.equal(await store.head("no/such"), undefined);
      await store.delete("no/such");
      assert.equal(store.url, [subject.url].flat().join(" and "));
    });

    it("gives back what was put", async () => {
      const bytes = randomBytes(3 * MIB + 17);
      assert.equal(await store.put("plain/a", bytes, { ifAbsent: true }), true);
      assert.deepEqual(await store.get("plain/a"), bytes);
      assert.deepEqual(await store.head("plain/a"), { key: "plain/a", size: bytes.length });
    });

    it("takes a view into a larger buffer for just its bytes", async () => {
      const whole = randomBytes(1000);
      await store.put("plain/view", whole.subarray(100, 200));
      await store.put("plain/array", new Uint8Array(whole.buffer, whole.byteOffset + 300, 50));
      assert.deepEqual(await store.get("plain/view"), whole.subarray(100, 200));
      assert.deepEqual(await store.get("plain/array"), whole.subarray(300, 350));
    });

    it("takes shared memory, and does not look at a body once it is stored", async () => {
      const bytes = randomBytes(MIB);
      const shared = Buffer.from(new SharedArrayBuffer(MIB));
      bytes.copy(shared);
      assert.equal(await store.put("plain/shared", shared, { ifAbsent: true }), true);
      shared.fill(0);
      bytes.copy(shared);
      const putting = store.put("plain/pieces", [shared.subarray(0, 8), shared.subarray(8)], { ifAbsent: true });
      assert.equal(await putting, true);
      shared.fill(0);
      assert.deepEqual(await store.get("plain/shared"), bytes);
      assert.deepEqual(await store.get("plain/pieces"), bytes);
    });

    it("keeps empty objects", async () => {
      assert.equal(await store.put("empty/a", Buffer.alloc(0), { ifAbsent: true }), true);
      assert.equal((await store.get("empty/a")).length, 0);
      assert.equal((await store.get("empty/a", { offset: 0, length: 10 })).length, 0);
      assert.deepEqual(await store.list("empty/"), [{ key: "empty/a", size: 0 }]);
      assert.equal(await store.put("empty/a", Buffer.from("x"), { ifAbsent: true }), false);
    });

    it("stores files", async () => {
      const file = join(scratch, "body");
      const bytes = randomBytes(9 * MIB + 1);
      await writeFile(file, bytes);
      assert.equal(await store.put("files/a", { file }, { ifAbsent: true }), true);
      await writeFile(file, "");
      assert.equal(await store.put("files/a", { file }, { ifAbsent: true }), false);
      assert.equal(await store.put("files/empty", { file }, { ifAbsent: true }), true);
      assert.deepEqual(await store.get("files/a"), bytes);
      assert.equal((await store.get("files/empty")).length, 0);
    });

    it("stores nothing where the file to store is not there", async () => {
      await assert.rejects(store.put("files/missing", { file: join(scratch, "missing") }), isAbout("files/missing"));
      assert.equal(await store.head("files/missing"), undefined);
    });

    it("reads ranges, clipped at the object's end", async () => {
      const bytes = randomBytes(100_000);
      await store.put("range/a", bytes);
      const ranges = [
        [0, 1],
        [0, 100_000],
        [99_999, 1],
        [50_000, 1_000_000],
        [100_000, 1],
        [200_000, 10],
        [10, 0],
      ] as const;
      for (const [offset, length] of ranges) {
        const got = await store.get("range/a", { offset, length });
        assert.deepEqual(got, bytes.subarray(offset, offset + length), `${offset}+${length}`);
      }
    });

    it("says so when an object is not there", async () => {
      await store.put("there/a", Buffer.from("a"));
      for (const key of ["there/b", "there/a/b", "there"]) {
        await assert.rejects(
          store.get(key),
          (error) => error instanceof ObjectNotFoundError && error.code === "not-found" && error.key === key,
        );
        assert.equal(await store.head(key), undefined, key);
        await store.delete(key);
      }
      assert.equal((await store.get("there/a")).toString(), "a");
    });

    it("refuses keys that are no keys", async () => {
      for (const key of ["", "/a", "a/", "a//b", "../a", "a/../../b", "a/./b", "a\0b", ".hidden"]) {
        await assert.rejects(store.put(key, Buffer.from("x")), { code: "usage" }, JSON.stringify(key));
        await assert.rejects(store.get(key), { code: "usage" }, JSON.stringify(key));
      }
    });

    it("leaves an object as it is where it was to be absent, and replaces it where not", async () => {
      await store.put("once/a", Buffer.from("first"), { ifAbsent: true });
      assert.equal(await store.put("once/a", Buffer.from("second"), { ifAbsent: true }), false);
      assert.equal((await store.get("once/a")).toString(), "first");
      assert.equal(await store.put("once/a", Buffer.from("third")), true);
      assert.equal((await store.get("once/a")).toString(), "third");
    });

    it("deletes, and takes the key again", async () => {
      await store.put("gone/a", Buffer.from("1"), { ifAbsent: true });
      await store.delete("gone/a");
      await store.delete("gone/a");
      assert.equal(await store.head("gone/a"), undefined);
      assert.deepEqual(await store.list("gone/"), []);
      assert.equal(await store.put("gone/a", Buffer.from("2"), { ifAbsent: true }), true);
    });

    it("lets one of twenty concurrent writers win", async () => {
      for (const size of [0, 10, 2 * MIB]) {
        const bodies = Array.from({ length: 20 }, (_, writer) => Buffer.alloc(size, writer + 1));
        const key = `race/${size}`;
        const won = await Promise.all(bodies.map((body) => store.put(key, body, { ifAbsent: true })));
        assert.equal(won.filter(Boolean).length, 1);
        assert.deepEqual(await store.get(key), bodies[won.indexOf(true)]);
      }
    });

    it("never shows an object in part", async () => {
      const body = randomBytes(6 * MIB);
      for (const ifAbsent of [true, false]) {
        const key = `whole/${ifAbsent}`;
        let finished = false;
        const putting = store.put(key, body, { ifAbsent }).finally(() => {
          finished = true;
        });
        while (!finished) {
          const sizes = [(await store.head(key))?.size, ...(await store.list("whole/")).map((info) => info.size)];
          for (const size of sizes) assert.ok(size === undefined || size === body.length, `saw ${size} bytes`);
        }
        await putting;
      }
      assert.equal((await store.list("whole/")).length, 2);
    });

    it("lets one of several processes win each key", async () => {
      const keys = Array.from({ length: 40 }, (_, index) => `processes/${index % 7}/${index}`);
      const names = ["p", "q", "r"];
      const won = await raceProcesses(subject, names, keys);
      assert.deepEqual(won.flat().sort(), [...keys].sort());
      for (const [index, name] of names.entries()) {
        for (const key of won[index]!) assert.equal((await store.get(key)).toString(), `${key} of ${name}`);
      }
      assert.equal((await keysOf(store, "processes/")).length, keys.length);
    });

    it("lists in the byte order of whole keys, page by page", async () => {
      // Each of - + . ! sorts before the slash, digits and letters after it.
      const keys = [
        ...["o/a-/x", "o/a-b", "o/a-b/x", "o/a.b/1", "o/a/b", "o/a/b-c", "o/a/b/c", "o/a/b0", "o/a0", "o/a0/b"],
        ...["o/B", "o/a!", "o/a+", "o/ab/c", "o/b/x/y/z", "o/~"],
      ].filter((key, _, all) => !all.some((other) => other.startsWith(`${key}/`)));
      for (const key of [...keys].reverse()) await store.put(key, Buffer.from(key));
      const expected = [...keys].sort();
      for (const limit of [1, 2, 3, 100]) {
        const found: string[] = [];
        for (let last: string | undefined; ; ) {
          const page = await store.list("o/", last === undefined ? { limit } : { limit, after: last });
          if (page.length === 0) break;
          assert.ok(page.length <= limit);
          for (const { key, size } of page) assert.equal(size, key.length);
          found.push(...page.map((info) => info.key));
          last = found.at(-1);
        }
        assert.deepEqual(found, expected, `pages of ${limit}`);
      }
    });

    it("lists what any prefix and any start call for", async () => {
      const segment = fc.stringMatching(/^[ab0-]{1,2}$/);
      const someKeys = fc.uniqueArray(
        fc.array(segment, { minLength: 1, maxLength: 3 }).map((parts) => parts.join("/")),
        { minLength: 1, maxLength: 12 },
      );
      let run = 0;
      await fc.assert(
        fc.asyncProperty(
          someKeys,
          fc.stringMatching(/^[ab0/-]{0,3}$/),
          fc.stringMatching(/^[ab0/-]{0,4}$/),
          fc.nat(5),
          async (drawn, prefix, start, limit) => {
            fc.pre(!`/${prefix}`.includes("//"));
            const base = `any/${run++}/`;
            const keys = drawn.filter((key) => !drawn.some((other) => other.startsWith(`${key}/`)));
            for (const key of keys) await store.put(base + key, Buffer.from("x"));
            const page = await store.list(base + prefix, { after: base + start, limit: limit + 1 });
            const expected = keys.filter((key) => key.startsWith(prefix) && key > start).sort();
            assert.deepEqual(
              page.map((info) => info.key.slice(base.length)),
              expected.slice(0, limit + 1),
            );
          },
        ),
        { numRuns: 40 },
      );
    });

    it("does not stop short where objects vanish during a listing", async () => {
      const keys = Array.from({ length: 300 }, (_, index) => `vanish/${String(index).padStart(3, "0")}`);
      await Promise.all(keys.map((key) => store.put(key, Buffer.from("x"))));
      const deleting = Promise.all(keys.slice(0, 290).map((key) => store.delete(key)));
      const found = new Set<string>();
      for (let last = ""; ; ) {
        const page = await store.list("vanish/", { limit: 10, after: last });
        if (page.length === 0) break;
        for (const { key } of page) found.add(key);
        last = page.at(-1)!.key;
      }
      await deleting;
      for (const key of keys.slice(290)) assert.ok(found.has(key), `${key} was not listed`);
    });
  });
}

function isAbout(key: string): (error: unknown) => boolean {
  return (error) => error instanceof DatamonError && error.message.includes(key);
}

async function keysOf(store: ObjectStore, prefix: string): Promise<string[]> {
  const keys: string[] = [];
  for await (const { key } of listAll(store, prefix)) keys.push(key);
  return keys;
}

/** Has one process a name put all the keys, all at the same moment; answers with the keys that each won. */
async function raceProcesses(subject: StoreSubject, names: string[], keys: string[]): Promise<string[][]> {
  const script = join(import.meta.dirname, "object-store-writer.ts");
  const writers = names.map((name) => {
    const child = spawn(process.execPath, [script, JSON.stringify(subject.url), name, ...keys], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, ...subject.environment },
    });
    return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
  });
  for (const { lines } of writers) assert.equal((await lines.next()).value, "ready");
  for (const { child } of writers) child.stdin.write("go\n");
  return await Promise.all(
    writers.map(async ({ lines }) => {
      const { value } = await lines.next();
      assert.ok(value !== undefined, "a writer ended without an answer");
      return JSON.parse(value) as string[];
    }),
  );
}
