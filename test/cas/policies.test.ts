import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BlobStore, hashOf, type ObjectInfo, type ObjectStore, UnavailableError } from "../../src/cas/index.ts";
import { AdaptiveStore } from "../../src/cas/policies/concurrency.ts";
import { DeadlineStore } from "../../src/cas/policies/deadline.ts";
import { RetryingStore } from "../../src/cas/policies/retry.ts";
import { crc32c, encodeChecksum } from "../../src/cas/stores/crc32c.ts";

/** Objects in memory; each request waits for `turn`. */
class MemoryStore implements ObjectStore {
  readonly url = "memory://";
  readonly objects = new Map<string, Buffer>();
  readonly log: string[] = [];
  underWay = 0;
  most = 0;
  turn: (verb: string, signal?: AbortSignal) => Promise<void> = async () => {};

  async get(key: string, _range?: unknown, options: { signal?: AbortSignal } = {}): Promise<Buffer> {
    return await this.#during("get", options.signal, () => this.objects.get(key) ?? Buffer.alloc(0));
  }
  async put(key: string, body: Parameters<ObjectStore["put"]>[1]): Promise<boolean> {
    return await this.#during("put", undefined, () => {
      if (this.objects.has(key)) return false;
      this.objects.set(key, Buffer.concat(Array.isArray(body) ? body : [body as Uint8Array]));
      return true;
    });
  }
  async head(key: string): Promise<ObjectInfo | undefined> {
    return await this.#during("head", undefined, () => {
      const object = this.objects.get(key);
      return object === undefined ? undefined : { key, size: object.length };
    });
  }
  async list(): Promise<ObjectInfo[]> {
    return [];
  }
  async delete(key: string): Promise<void> {
    this.objects.delete(key);
  }

  async #during<T>(verb: string, signal: AbortSignal | undefined, result: () => T): Promise<T> {
    this.log.push(verb);
    this.most = Math.max(this.most, ++this.underWay);
    try {
      await this.turn(verb, signal);
      return result();
    } finally {
      this.underWay--;
    }
  }
}

const soon = () => new Promise<void>((resolve) => setImmediate(resolve));

describe("adaptive concurrency", () => {
  it("grows while all places are in use, and never over its most", async () => {
    const memory = new MemoryStore();
    memory.turn = soon;
    const store = new AdaptiveStore(memory, { start: 2, most: 6 });
    await Promise.all(Array.from({ length: 2000 }, (_, index) => store.get(`k${index}`)));
    assert.ok(memory.most > 2 && memory.most <= 6, String(memory.most));
  });

  it("halves once where the store asks for fewer requests, however many fail at the same time", async () => {
    const memory = new MemoryStore();
    memory.turn = async () => {
      await soon();
      throw new UnavailableError("slow down", { throttled: true });
    };
    const store = new AdaptiveStore(memory, { start: 16 });
    await Promise.allSettled(Array.from({ length: 16 }, () => store.get("k")));
    assert.equal(store.limit, 8);
  });

  it("does not grow where there is nothing to do", async () => {
    const store = new AdaptiveStore(new MemoryStore(), { start: 4 });
    for (let round = 0; round < 50; round++) await store.get("k");
    assert.equal(store.limit, 4);
  });
});

describe("retry", () => {
  it("does not try again what cannot pass", async () => {
    const memory = new MemoryStore();
    memory.turn = async () => {
      throw new Error("broken");
    };
    await assert.rejects(new RetryingStore(memory).get("k"), /broken/);
    assert.deepEqual(memory.log, ["get"]);
  });

  it("looks before it sends a create-only put again", async () => {
    const memory = new MemoryStore();
    let lost = true;
    memory.turn = async (verb) => {
      if (verb !== "put" || !lost) return;
      lost = false;
      memory.objects.set("k", Buffer.from("mine"));
      throw new UnavailableError("the answer got lost");
    };
    assert.equal(await new RetryingStore(memory).put("k", Buffer.from("mine"), { ifAbsent: true }), true);
    assert.equal(memory.log.filter((verb) => verb === "put").length, 1);
  });

  it("gives a store that never answered less time", async () => {
    const memory = new MemoryStore();
    memory.turn = async () => {
      throw new UnavailableError("gone");
    };
    const store = new RetryingStore(memory, { patience: 600_000, firstPatience: 300 });
    await assert.rejects(store.head("k"), { code: "unavailable", message: /^gone; given up after [2-4] tries/ });
  });
});

describe("deadline", () => {
  it("ends a request that comes to nothing", async () => {
    const memory = new MemoryStore();
    memory.turn = (_, signal) =>
      new Promise((_resolve, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
    const get = new DeadlineStore(memory, 20).get("k", { offset: 0, length: 10 });
    await assert.rejects(get, { code: "unavailable", message: /it takes too long/ });
  });
});

describe("puts of blobs", () => {
  it("ask whether a blob is there only where the one before was", async () => {
    const memory = new MemoryStore();
    const blobs = new BlobStore(memory);
    const contents = ["a", "b", "c", "d"].map((text) => Buffer.from(text));
    const put = (index: number) => blobs.put(hashOf(contents[index]!), contents[index]!);
    for (const index of [0, 1, 2]) assert.ok((await put(index)) > 0);
    assert.deepEqual(memory.log.splice(0), ["head", "put", "put", "put"]);
    for (const index of [0, 1, 2]) assert.equal(await put(index), 0);
    assert.deepEqual(memory.log.splice(0), ["put", "head", "head"]);
    assert.ok((await put(3)) > 0);
    assert.deepEqual(memory.log, ["head", "put"]);
  });
});

describe("CRC-32C", () => {
  it("is that of the standard's examples, in one piece or several", () => {
    assert.equal(crc32c(Buffer.from("123456789")), 0xe3069283);
    assert.equal(crc32c(Buffer.alloc(32)), 0x8a9136aa);
    assert.equal(crc32c(Buffer.alloc(32, 0xff)), 0x62a8ab43);
    const ascending = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
    assert.equal(crc32c(ascending), 0x46dd794e);
    for (let cut = 0; cut <= 32; cut++) {
      assert.equal(crc32c(ascending.subarray(cut), crc32c(ascending.subarray(0, cut))), 0x46dd794e, `cut at ${cut}`);
    }
    assert.equal(encodeChecksum(0x46dd794e), "Rt15Tg==");
  });
});
