import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import type { Bundle } from "../../src/meta/index.ts";
import { bundleRecord, refRecord, repoRecord } from "../../src/meta/records.ts";

const bundle: Bundle = {
  id: "1INzQ5TV4vAAfU2PbRFgPfnzEwR",
  repo: "birds",
  message: "First: counts\n# of 1970",
  parents: ["1INzPyVV4vAAfU2PbRFgPfnzEwR"],
  timestamp: new Date("2026-02-03T04:05:06.789Z"),
  contributors: [{ name: "Ada", email: "ada@example.org" }],
  catalog: "ab".repeat(32),
  tree: "cd".repeat(32),
  files: 3,
  bytes: 2 ** 40,
};

describe("records", () => {
  it("have the pinned form", () => {
    assert.equal(
      bundleRecord.encode(bundle).toString(),
      `kind: bundle
version: 1
id: 1INzQ5TV4vAAfU2PbRFgPfnzEwR
repo: birds
message: |-
  First: counts
  # of 1970
parents:
  - 1INzPyVV4vAAfU2PbRFgPfnzEwR
timestamp: 2026-02-03T04:05:06.789Z
contributors:
  - name: Ada
    email: ada@example.org
catalog: ${"ab".repeat(32)}
tree: ${"cd".repeat(32)}
files: 3
bytes: 1099511627776
`,
    );
    const { timestamp } = bundle;
    const contributor = { name: "Ada", email: "" };
    assert.equal(
      repoRecord.encode({ name: "birds", description: "Counts", timestamp, contributor }).toString(),
      `kind: repo
version: 1
name: birds
description: Counts
timestamp: 2026-02-03T04:05:06.789Z
contributor:
  name: Ada
  email: ""
`,
    );
    assert.equal(
      refRecord.encode({ bundle: null, timestamp, contributor }).toString(),
      `kind: ref
version: 1
bundle: null
timestamp: 2026-02-03T04:05:06.789Z
contributor:
  name: Ada
  email: ""
`,
    );
  });

  it("give back any text", () => {
    const text = fc.oneof(
      fc.string({ unit: "grapheme" }),
      fc.string({
        unit: fc.constantFrom(
          " ",
          "\n",
          "\r",
          "\t",
          "#",
          ":",
          "-",
          "'",
          '"',
          "\0",
          "\u0085",
          "\u2028",
          "\ufeff",
          "a",
          "|",
          "é",
        ),
      }),
      fc.constantFrom(
        "null",
        "~",
        "true",
        "1e3",
        "0x1f",
        "2026-01-01",
        "--- a",
        "...",
        "[",
        "- ",
        "? ",
        "!!str",
        "&a *a",
        "%YAML",
      ),
    );
    fc.assert(
      fc.property(text, text, (message, name) => {
        const value = { ...bundle, message, contributors: [{ name, email: message }] };
        assert.deepEqual(bundleRecord.decode(bundleRecord.encode(value)), value);
      }),
      { numRuns: 300 },
    );
  });

  it("give back what they say about numbers, times and parents", () => {
    const value = { ...bundle, parents: [], files: 0, bytes: Number.MAX_SAFE_INTEGER, timestamp: new Date(0) };
    assert.deepEqual(bundleRecord.decode(bundleRecord.encode(value)), value);
  });

  it("refuse what is damaged or something else", () => {
    const good = bundleRecord.encode(bundle).toString();
    const changes: [string, string, RegExp][] = [
      [good, "", /not a bundle record/],
      [good, "kind: [", /not valid YAML/],
      [good, "some text", /not a bundle record/],
      ["kind: bundle", "kind: repo", /not a bundle record/],
      ["version: 1", "version: 0", /version: is not valid/],
      ["id: 1INzQ5TV4vAAfU2PbRFgPfnzEwR", "id: short", /id: is not valid/],
      ["id: 1INzQ5TV4vAAfU2PbRFgPfnzEwR", "id: zzzzzzzzzzzzzzzzzzzzzzzzzzz", /id: is not valid/],
      ["repo: birds\n", "", /repo: must be of type string/],
      ["files: 3", "files: -3", /files: is not valid/],
      ["files: 3", "files: 3.5", /files: /],
      ["files: 3", "files: 1e300", /files: /],
      ["files: 3", "files: three", /files: must be of type/],
      ["tree: cd", "tree: CD", /tree: has the wrong form/],
      ["2026-02-03T04:05:06.789Z", "2026-02-33", /timestamp: has the wrong form/],
      ["bytes:", "extra: 1\nbytes:", /unknown key extra/],
      ["    email: ada@example.org\n", "", /contributors\.0\.email: must be/],
    ];
    for (const [from, to, why] of changes) {
      const text = good.replace(from, to);
      assert.notEqual(text, good);
      assert.throws(() => bundleRecord.decode(Buffer.from(text)), why, to);
    }
    assert.throws(() => bundleRecord.decode(Buffer.from([0xff, 0xfe])), /not valid/);
    assert.throws(() => bundleRecord.decode(Buffer.alloc(2 ** 20 + 1, "#")), /too long/);
  });

  it("survive hostile YAML", () => {
    const bomb = `a: &a [${"x,".repeat(20)}]\n${Array.from("bcdefgh", (name, at) => `${name}: &${name} [${`*${"abcdefg"[at]},`.repeat(20)}]`).join("\n")}\n`;
    assert.throws(() => bundleRecord.decode(Buffer.from(bomb)), Error);
    assert.throws(() => bundleRecord.decode(Buffer.from("[".repeat(100_000))), Error);
    assert.throws(() => bundleRecord.decode(Buffer.from("kind: bundle\n__proto__: {a: 1}\n")), Error);
  });

  it("say that a later version wrote them", () => {
    const later = bundleRecord.encode(bundle).toString().replace("version: 1", "version: 2");
    assert.throws(() => bundleRecord.decode(Buffer.from(later)), { code: "unsupported", message: /version 2/ });
  });

  it("are not written where they would be too long to be read", () => {
    assert.throws(() => bundleRecord.encode({ ...bundle, message: "x".repeat(2 ** 20) }), { code: "usage" });
  });
});
