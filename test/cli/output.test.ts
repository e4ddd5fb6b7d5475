import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type ByteString, bytesFrom, bytesOf } from "../../src/cas/index.ts";
import { parseSize, wholeNumber } from "../../src/cli/context.ts";
import { parseBundleSpec } from "../../src/cli/mount.ts";
import { formatBytes, formatTime, jsonName, plural } from "../../src/cli/output.ts";

describe("times", () => {
  const zones: [zone: string, expected: string][] = [
    ["America/Los_Angeles", "2019-03-12 22:10:24.159 -0700 PDT"],
    ["UTC", "2019-03-13 05:10:24.159 +0000 UTC"],
    ["Asia/Kolkata", "2019-03-13 10:40:24.159 +0530 GMT+5:30"],
  ];
  for (const [zone, expected] of zones) {
    it(`are printed in the machine's zone, such as ${zone}`, (t) => {
      const before = process.env.TZ;
      t.after(() => {
        if (before === undefined) delete process.env.TZ;
        else process.env.TZ = before;
      });
      process.env.TZ = zone;
      assert.equal(formatTime(new Date("2019-03-13T05:10:24.159Z")), expected);
    });
  }

  it("have no zeros at the end of their fraction", (t) => {
    const before = process.env.TZ;
    t.after(() => {
      if (before === undefined) delete process.env.TZ;
      else process.env.TZ = before;
    });
    process.env.TZ = "UTC";
    assert.equal(formatTime(new Date("2019-03-13T05:10:20.100Z")), "2019-03-13 05:10:20.1 +0000 UTC");
    assert.equal(formatTime(new Date("2019-03-13T05:10:20.000Z")), "2019-03-13 05:10:20 +0000 UTC");
  });
});

describe("sizes", () => {
  it("are printed in units of 1024", () => {
    const sizes = [0, 1023, 1024, 1536, 5 * 1024 ** 3, 2 ** 60].map(formatBytes);
    assert.deepEqual(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB", "1024.0 PiB"]);
  });

  it("are understood with and without a unit", () => {
    assert.deepEqual(["512", "1k", "500M", "2GiB", "1.5 tb"].map(parseSize), [
      512,
      1024,
      500 * 1024 ** 2,
      2 * 1024 ** 3,
      1.5 * 1024 ** 4,
    ]);
    for (const text of ["", "lots", "-1", "1x", "1e3"]) assert.throws(() => parseSize(text), /Write a size like/);
  });
});

describe("numbers", () => {
  it("are whole and not too small", () => {
    assert.equal(wholeNumber(1)("12"), 12);
    for (const text of ["0", "-3", "1.5", "many", ""]) assert.throws(() => wholeNumber(1)(text), /whole number/);
  });

  it("of things are printed with the thing", () => {
    assert.deepEqual(
      [plural(0, "file"), plural(1, "file"), plural(1234, "file"), plural(2, "entry", "entries")],
      ["0 files", "1 file", "1,234 files", "2 entries"],
    );
  });
});

describe("names in JSON", () => {
  it("are exact where they are UTF-8, and as displayed otherwise", () => {
    const names: ByteString[] = [bytesOf("a/ü\n\\.csv"), bytesFrom(Buffer.from([0x66, 0xff])), bytesOf("")];
    assert.deepEqual(names.map(jsonName), ["a/ü\n\\.csv", "f\\xff", ""]);
  });
});

describe("what is to be mounted", () => {
  it("is a repo, or a repo and what follows the first @", () => {
    assert.deepEqual(parseBundleSpec("birds"), { repo: "birds" });
    assert.deepEqual(parseBundleSpec("birds@v1"), { repo: "birds", reference: "v1" });
    for (const spec of ["@v1", "birds@"]) assert.throws(() => parseBundleSpec(spec), { code: "usage" });
  });
});
