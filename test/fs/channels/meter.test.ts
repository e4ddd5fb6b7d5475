import assert from "node:assert/strict";
import { describe, it } from "node:test";
import * as fc from "fast-check";
import { Meter } from "../../../src/fs/channels/meter.ts";

describe("a meter", () => {
  it("tells percentiles to within an eighth, and never below the truth", () => {
    // From a tenth of a microsecond to two minutes.
    const time = fc.double({ min: -4, max: 5, noNaN: true }).map((exponent) => 10 ** exponent);
    fc.assert(
      fc.property(fc.array(time, { minLength: 1, maxLength: 200 }), (times) => {
        const meter = new Meter(3);
        for (const one of times) meter.note(1, one);
        const sorted = times.toSorted((a, b) => a - b);
        const { count, ...percentiles } = meter.latencies(1);
        assert.equal(count, times.length);
        for (const [name, share] of [
          ["p50Us", 0.5],
          ["p90Us", 0.9],
          ["p99Us", 0.99],
        ] as const) {
          const exact = sorted[Math.max(0, Math.ceil(times.length * share) - 1)]! * 1000;
          // A tenth of a microsecond is lost to the unit, and to rounding.
          assert.ok(percentiles[name] >= exact - 0.05, `${name}: ${percentiles[name]} for ${exact}`);
          assert.ok(percentiles[name] <= exact * 1.126 + 0.12, `${name}: ${percentiles[name]} for ${exact}`);
        }
      }),
    );
  });

  it("keeps kinds apart, and takes those that it does not know for the first", () => {
    const meter = new Meter(3);
    meter.note(1, 1);
    meter.note(2, 1);
    meter.note(2, 1);
    meter.note(4096, 1);
    assert.deepEqual(
      [0, 1, 2].map((kind) => meter.latencies(kind).count),
      [1, 1, 2],
    );
  });

  it("takes any number for a time", () => {
    const meter = new Meter(1);
    for (const time of [-1, 0, Number.NaN, Number.MAX_VALUE, Number.POSITIVE_INFINITY]) meter.note(0, time);
    const { count, p50Us, p99Us } = meter.latencies(0);
    assert.equal(count, 5);
    assert.ok(p50Us < 1);
    assert.equal(p99Us, 131_072_000);
  });

  it("has nothing to tell of what did not come", () => {
    assert.deepEqual(new Meter(1).latencies(0), { count: 0, p50Us: 0, p90Us: 0, p99Us: 0 });
  });

  it("is read from another thread's side", () => {
    const meter = new Meter(2);
    new Meter(2, meter.shared).note(1, 2);
    assert.equal(meter.latencies(1).count, 1);
  });
});
