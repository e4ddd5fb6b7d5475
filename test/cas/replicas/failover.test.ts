import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, it } from "node:test";
import {
  BlobStore,
  DamagedObjectError,
  encodeFrame,
  hashOf,
  listAll,
  ObjectNotFoundError,
  UnavailableError,
} from "../../../src/cas/index.ts";
import { ReplicatedStore } from "../../../src/cas/replicas/replicated-store.ts";
import { MemoryStore } from "../../support/memory-store.ts";

interface Pair {
  readonly a: MemoryStore;
  readonly b: MemoryStore;
  readonly both: ReplicatedStore;
  readonly told: string[];
}

function pair(copies?: number): Pair {
  const [a, b] = [new MemoryStore("a"), new MemoryStore("b")];
  const told: string[] = [];
  const onTrouble = (_url: string, message: string) => void told.push(message);
  const both = new ReplicatedStore([a, b], { copies, onTrouble, patience: { patience: 300 } });
  return { a, b, both, told };
}

const text = (value: string) => Buffer.from(value);
const hashKey = (name: string) => `blobs/${createHash("sha256").update(name).digest("hex")}`;

describe("several stores as one", () => {
  it("put to all, and to those that answer where one does not, which they tell", async () => {
    const { a, b, both, told } = pair();
    for (const key of [hashKey("x"), "refs/x"]) {
      assert.equal(await both.put(key, text("1"), { ifAbsent: true }), true);
      assert.deepEqual([a.objects.get(key), b.objects.get(key)], [text("1"), text("1")]);
      assert.equal(await both.put(key, text("2"), { ifAbsent: true }), false);
    }
    for (const away of [a, b]) {
      const other = away === a ? b : a;
      away.state = "away";
      for (const key of [hashKey(away.url), `refs/${away.url.slice(-1)}`]) {
        assert.equal(await both.put(key, text("1"), { ifAbsent: true }), true);
        assert.equal(await both.put(key, text("1"), { ifAbsent: true }), false);
        assert.deepEqual([away.objects.has(key), other.objects.get(key)], [false, text("1")]);
      }
      away.state = "well";
    }
    assert.match(told[0]!, /^store memory:\/\/a does not answer: memory:\/\/a is away/);
    assert.equal(both.statuses[0]?.missed, 2);
  });

  it("fail where fewer have an object than is asked for, and go on when they are back", async () => {
    const { b, both } = pair(2);
    b.state = "away";
    for (const key of [hashKey("x"), "refs/x"]) {
      await assert.rejects(both.put(key, text("1"), { ifAbsent: true }), {
        code: "unavailable",
        message: /in 1 of the 2 stores it has to be in/,
      });
    }
    const waiting = both.put(hashKey("y"), text("1"), { ifAbsent: true });
    b.state = "well";
    assert.equal(await waiting, true);
    assert.ok(b.objects.has(hashKey("y")));
  });

  it("fail with what each of them says, where no one can", async () => {
    const { a, b, both } = pair();
    a.state = b.state = "away";
    const requests = [both.get("k"), both.head("k"), both.list(""), both.put("k", text("1"))];
    await Promise.all(
      requests.map((request) => {
        return assert.rejects(request, { code: "unavailable", message: /memory:\/\/. is away; given up/ });
      }),
    );
    a.state = b.state = "full";
    await assert.rejects(both.put("k", text("1"), { ifAbsent: true }), { code: "no-space" });
    b.state = "well";
    assert.equal(await both.put("k", text("1"), { ifAbsent: true }), true);
  });

  it("read from the first that answers and has it", async () => {
    const { a, b, both } = pair();
    b.objects.set("only-b", text("1"));
    assert.deepEqual(await both.get("only-b"), text("1"));
    assert.deepEqual(await both.head("only-b"), { key: "only-b", size: 1 });
    await assert.rejects(both.get("none"), (error) => error instanceof ObjectNotFoundError);
    assert.equal(await both.head("none"), undefined);
    a.state = "away";
    assert.deepEqual(await both.get("only-b"), text("1"));
    // It may be in the one that does not answer.
    await assert.rejects(both.get("none"), { code: "unavailable", message: /not in memory:\/\/b, and memory:\/\/a/ });
    assert.equal(await both.head("none"), undefined);
  });

  it("do not ask one that did not answer, until some time has passed", async () => {
    const { a, b, both } = pair();
    for (const key of ["k", "l"]) for (const store of [a, b]) store.objects.set(key, text("1"));
    a.state = "away";
    await both.get("k");
    a.log.length = 0;
    for (let round = 0; round < 100; round++) await both.get("k");
    await both.list("");
    await both.put(hashKey("x"), text("1"), { ifAbsent: true });
    assert.deepEqual(a.log, []);
    a.state = "well";
    while (!both.statuses[0]!.answers) {
      await both.get("k");
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert.deepEqual(a.log.slice(0, 1), ["head probe"]);
    await both.get("k");
    assert.equal(a.log.at(-1), "get k");
  });

  it("do not give a store up for one request that fails", async () => {
    const { a, b, both, told } = pair();
    for (const store of [a, b]) store.objects.set("k", text("1"));
    const put = a.put.bind(a);
    a.put = async (key, body, options) => {
      await both.get("k");
      if (key === hashKey("bad")) throw new UnavailableError("a bad day for this key");
      return await put(key, body, options);
    };
    assert.equal(await both.put(hashKey("bad"), text("1"), { ifAbsent: true }), true);
    assert.equal(both.statuses[0]!.answers, true);
    assert.deepEqual(told, ["store memory://a fails: a bad day for this key"]);
    assert.equal(both.statuses[0]!.missed, 1);
  });

  it("ask a second one where the first keeps waiting", async () => {
    const { a, b, both } = pair();
    for (const store of [a, b]) store.objects.set("k", text(store.url));
    a.state = "still";
    assert.deepEqual(await both.get("k"), text("memory://b"));
    a.log.length = 0;
    assert.deepEqual(await both.get("k"), text("memory://b"));
    assert.deepEqual(a.log, []);
  });

  it("end what is under way where a store is found dead", async () => {
    const { a, b, both } = pair();
    a.state = "still";
    const putting = both.put(hashKey("x"), text("1"), { ifAbsent: true });
    while (a.log.length === 0) await new Promise(setImmediate);
    a.state = "away";
    await both.put(hashKey("y"), text("1"), { ifAbsent: true });
    assert.equal(await putting, true);
    assert.deepEqual([...b.objects.keys()].sort(), [hashKey("x"), hashKey("y")].sort());
  });

  it("take a signal for the end", async () => {
    const { a, b, both } = pair();
    a.state = b.state = "still";
    const end = new AbortController();
    const { signal } = end;
    const requests = [
      both.get("k", undefined, { signal }),
      both.put(hashKey("x"), text("1"), { ifAbsent: true, signal }),
    ];
    while (b.log.length === 0) await new Promise(setImmediate);
    end.abort(new Error("enough"));
    await Promise.all(requests.map((request) => assert.rejects(request, /enough/)));
    assert.deepEqual(
      both.statuses.map(({ failures }) => failures),
      [0, 0],
    );
  });

  it("list what any of them has, in order, in pages of any size", async () => {
    const { a, b, both } = pair();
    const keys = Array.from({ length: 40 }, (_, index) => `k/${String((index * 7) % 40).padStart(2, "0")}`);
    for (const [index, key] of keys.entries()) {
      if (index % 3 !== 0) a.objects.set(key, text("1"));
      if (index % 3 !== 1 && index < 30) b.objects.set(key, text("1"));
    }
    const union = [...new Set([...a.objects.keys(), ...b.objects.keys()])].sort();
    const listed = async () => {
      const found: string[] = [];
      for await (const { key } of listAll(both, "k/")) found.push(key);
      return found;
    };
    assert.deepEqual(await listed(), union);
    assert.equal((await both.list("k/", { limit: 2 })).length, 2);
    a.state = "away";
    assert.deepEqual(await listed(), [...b.objects.keys()].sort());
  });

  it("delete from all or say that they cannot", async () => {
    const { a, b, both } = pair();
    for (const store of [a, b]) store.objects.set("k", text("1"));
    b.state = "away";
    await assert.rejects(both.delete("k"), { code: "unavailable", hint: /bring it back/ });
    b.state = "well";
    await both.delete("k");
    assert.equal(a.objects.size + b.objects.size, 0);
  });

  it("serve no damaged blob while there is a good copy, and tell of it", async () => {
    const { a, b, both, told } = pair();
    const content = text("a blob");
    const blobs = new BlobStore(both);
    const hash = hashOf(content);
    await blobs.put(hash, content);
    const [key] = a.objects.keys();
    const flipped = Buffer.from(a.objects.get(key!)!);
    flipped[flipped.length - 1]! ^= 1;
    a.objects.set(key!, flipped);
    assert.deepEqual(await blobs.get(hash), content);
    assert.match(told[0]!, new RegExp(`object ${key} in memory://a is damaged`));
    b.objects.set(key!, Buffer.concat(await encodeFrame(text("another"))));
    await assert.rejects(blobs.get(hash), (error) => error instanceof DamagedObjectError);
  });

  it("get a blob that another one has, when it is put again", async () => {
    const { a, b, both } = pair();
    const content = text("a blob");
    b.state = "away";
    await new BlobStore(both).put(hashOf(content), content);
    b.state = "well";
    assert.equal(b.objects.size, 0);
    const later = new BlobStore(new ReplicatedStore([a, b]));
    assert.equal(await later.put(hashOf(content), content), 0);
    assert.deepEqual(b.objects, a.objects);
  });

  it("let the first of the list decide who created an object, and tell where another one holds something else", async () => {
    const { a, b, both, told } = pair();
    a.state = "away";
    assert.equal(await both.put("refs/1", text("later store"), { ifAbsent: true }), true);
    a.state = "well";
    // Someone to whom the other store is away.
    b.state = "away";
    const elsewhere = new ReplicatedStore([a, b], { patience: { patience: 300 } });
    assert.equal(await elsewhere.put("refs/1", text("first store"), { ifAbsent: true }), true);
    b.state = "well";
    assert.equal(await both.put("refs/1", text("third"), { ifAbsent: true }), false);
    assert.deepEqual(await elsewhere.get("refs/1"), text("first store"));
    a.objects.delete("refs/1");
    assert.equal(await elsewhere.put("refs/1", text("first store"), { ifAbsent: true }), true);
    assert.equal(told.filter((message) => /holds another object/.test(message)).length, 0);
    const third = new ReplicatedStore([a, b], { onTrouble: (_, message) => told.push(message) });
    a.objects.delete("refs/1");
    assert.equal(await third.put("refs/1", text("x"), { ifAbsent: true }), true);
    assert.ok(told.some((message) => /memory:\/\/b holds another object refs\/1/.test(message)));
  });
});
