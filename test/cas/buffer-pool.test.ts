import assert from "node:assert/strict";
import { test } from "node:test";
import { BufferPool } from "../../src/cas/index.ts";

const MIB = 1024 * 1024;

test("memory that was given back is used again, the smallest that will do", () => {
  const pool = new BufferPool(16 * MIB);
  const [large, small] = [pool.take(3 * MIB - 5), pool.take(MIB + 1)];
  assert.equal(large.length, 3 * MIB - 5);
  assert.equal(pool.sizeOf(large.subarray(8)), 3 * MIB);
  pool.give(large.subarray(8));
  pool.give(small);
  assert.equal(pool.take(2 * MIB).buffer, small.buffer);
  assert.equal(pool.take(2 * MIB).buffer, large.buffer);
  assert.notEqual(pool.take(2 * MIB).buffer, large.buffer);
});

test("a small object takes no large buffer, and what is not the pool's is left alone", () => {
  const pool = new BufferPool(16 * MIB);
  const large = pool.take(8 * MIB);
  pool.give(large);
  pool.give(Buffer.alloc(MIB));
  assert.notEqual(pool.take(1000).buffer, large.buffer);
  assert.equal(pool.sizeOf(Buffer.alloc(10)), 10);
  assert.equal(pool.take(8 * MIB).buffer, large.buffer);
});

test("no more memory is kept free than it may", () => {
  const pool = new BufferPool(4 * MIB);
  const taken = [1, 2, 3].map(() => pool.take(2 * MIB));
  for (const buffer of taken) pool.give(buffer);
  const again = [1, 2, 3].map(() => pool.take(2 * MIB).buffer);
  assert.equal(again.filter((buffer) => taken.some((before) => before.buffer === buffer)).length, 2);
});
