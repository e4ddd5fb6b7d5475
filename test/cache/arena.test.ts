import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Arena } from "../../src/cache/arena.ts";
import { addressOf } from "../../src/cas/index.ts";

const KIB = 1024;

test("what is taken never overlaps, keeps its bytes, and comes back whole", () => {
  const step = fc.oneof(
    fc.record({
      kind: fc.constant("take" as const),
      length: fc.integer({ min: 0, max: 700 * KIB }),
      phase: fc.nat(4095),
    }),
    fc.record({ kind: fc.constant("give" as const), which: fc.nat() }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const arena = new Arena(2048 * KIB);
      const taken: { buffer: Buffer; mark: number }[] = [];
      for (const [mark, next] of steps.entries()) {
        if (next.kind === "take") {
          const buffer = arena.take(next.length, next.phase).fill(mark);
          assert.equal(buffer.length, next.length);
          taken.push({ buffer, mark });
        } else if (taken.length > 0) {
          const [{ buffer, mark: before }] = taken.splice(next.which % taken.length, 1) as [(typeof taken)[0]];
          assert.ok(buffer.every((byte) => byte === before));
          // Whoever gives back may have looked at a part only.
          arena.give(buffer.subarray(Math.min(8, buffer.length)));
        }
      }
      for (const { buffer, mark } of taken) {
        assert.ok(buffer.every((byte) => byte === mark));
        arena.give(buffer);
      }
      const all = arena.take(2048 * KIB);
      assert.equal(all.buffer, arena.memory);
    }),
    { numRuns: 50 },
  );
});

test("buffers begin where in a page they are asked to", () => {
  const arena = new Arena(1024 * KIB);
  for (const phase of [0, 1, 512, 4095]) {
    const buffer = arena.take(100 * KIB, phase);
    assert.equal(buffer.buffer, arena.memory);
    assert.equal(addressOf(buffer)! % 4096, phase);
  }
});

test("what is small or finds no room is ordinary memory", () => {
  const arena = new Arena(256 * KIB);
  const small = arena.take(1000);
  assert.notEqual(small.buffer, arena.memory);
  assert.equal(arena.sizeOf(small), 1000);
  arena.give(small);
  const large = arena.take(200 * KIB);
  assert.equal(arena.sizeOf(large.subarray(8)), 208 * KIB);
  const other = arena.take(200 * KIB);
  assert.notEqual(other.buffer, arena.memory);
  arena.give(other);
  arena.give(large);
  assert.equal(arena.take(256 * KIB).buffer, arena.memory);
});
