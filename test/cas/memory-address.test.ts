import assert from "node:assert/strict";
import { closeSync, openSync, readSync } from "node:fs";
import { test } from "node:test";
import { addressOf } from "../../src/cas/index.ts";
import { pseudoRandom } from "./pseudo-random.ts";

test("at the address of a buffer lie its bytes", (t) => {
  const memory = openSync("/proc/self/mem", "r");
  t.after(() => closeSync(memory));
  const shared = Buffer.from(new SharedArrayBuffer(100_000));
  pseudoRandom(1, 100_000).copy(shared);
  const own = pseudoRandom(2, 100_000);
  const samples = [shared, shared.subarray(4097, 9000), own, own.subarray(99_999), Buffer.from("pooled")];
  for (const bytes of [...samples, new Uint8Array(shared.buffer, 77, 1000), new Uint8Array([1, 2, 3])]) {
    const found = Buffer.alloc(bytes.length);
    assert.equal(readSync(memory, found, 0, found.length, addressOf(bytes)!), bytes.length);
    assert.ok(found.equals(bytes));
  }
  assert.equal(addressOf(Buffer.alloc(0)), undefined);
});
