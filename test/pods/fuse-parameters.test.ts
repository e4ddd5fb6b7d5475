/** What a fuse sidecar is asked for: command lines in quotes, and YAML. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import fc from "fast-check";
import { planOf, readFuseParams, splitWords } from "../../src/pods/index.ts";

describe("words of a command line", () => {
  it("are split as in the guide's example", () => {
    assert.deepEqual(splitWords('config create --name "Coord" --email coord-bot@oneconcern.com'), [
      "config",
      "create",
      "--name",
      "Coord",
      "--email",
      "coord-bot@oneconcern.com",
    ]);
    assert.deepEqual(splitWords("upload --message='result of it' --path /a\\ b\t''\n"), [
      "upload",
      "--message=result of it",
      "--path",
      "/a b",
      "",
    ]);
    assert.deepEqual(splitWords('"a\\"b\\\\c\\d $x"'), ['a"b\\c\\d $x']);
  });

  it("are those of a shell", () => {
    const piece = fc.constantFrom("a", "Z", "7", " ", "\t", "'", '"', "\\", "\\\\", '\\"', "=", "--", "é", "\\n");
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
        const line = pieces.join("");
        let expected: string[] | undefined;
        try {
          const script = `set -f; for word in ${line}\ndo printf '%s\\0' "$word"; done`;
          const out = execFileSync("/bin/sh", ["-c", script], { stdio: ["ignore", "pipe", "ignore"] });
          expected = out.toString().split("\0").slice(0, -1);
        } catch {
          expected = undefined;
        }
        // What is left open joins with the script's own next line, so a shell may see no error there.
        let actual: string[];
        try {
          actual = splitWords(line);
        } catch {
          return;
        }
        assert.deepEqual(actual, expected);
      }),
      { numRuns: 60 },
    );
  });

  it("must close their quotes", () => {
    for (const line of ["a 'b", 'a "b', "a\\", 'a "b\\']) {
      assert.throws(() => splitWords(line), { code: "usage", message: /left open in: a/ });
    }
  });
});

describe("the plan", () => {
  const upload = { kind: "upload", words: ["u"], directory: "/out" } as const;
  const writable = { kind: "writable", words: ["w"], directory: "/rw", repo: "r", label: undefined } as const;
  const source = { kind: "source", words: ["s"], directory: "/in" } as const;

  it("has the bundle id file with the one result", () => {
    assert.equal(planOf([source, upload], "/id").uploads[0]?.bundleIdFile, "/id");
    assert.equal(planOf([source, writable], "/id").writable[0]?.bundleIdFile, "/id");
    for (const commands of [[source], [upload, upload], [upload, writable]]) {
      assert.throws(() => planOf(commands, "/id"), { code: "usage", message: /exactly one/ });
    }
  });

  it("refuses what cannot be", () => {
    const config = { kind: "config", words: [] } as const;
    assert.throws(() => planOf([config, config]), { message: /at most one config/ });
    assert.throws(() => planOf([source, { ...writable, directory: "/in/" }]), { message: /two commands mount on/ });
    assert.throws(() => planOf([source, { ...upload, directory: "/in" }]), { message: /mounted by one command/ });
  });
});

describe("parameters in YAML", () => {
  const head = "globalOpts:\n  coordPoint: /coord\n";

  it("become command lines", () => {
    const params = readFuseParams(`${head}  sleepInsteadOfExit: true
  scratchDir: /keep
bundles:
  - name: in
    srcPath: /in
    srcRepo: birds
    srcLabel: v1
  - name: out
    destPath: /out
    destRepo: totals
    destMessage: "it's done"
    destLabel: latest
    destBundleID: /coord/id
  - srcPath: /both
    srcRepo: birds
    srcBundle: 1abc
    destPath: /both/
    destMessage: edited
`);
    assert.deepEqual(params, {
      directory: "/coord",
      sleep: true,
      commands: [
        { words: ["bundle", "mount", "--repo", "birds", "--label", "v1", "--mount", "/in"] },
        {
          words: [
            ...["bundle", "upload", "--repo", "totals", "--path", "/out"],
            ...["--message", "it's done", "--label", "latest"],
          ],
          bundleIdFile: "/coord/id",
        },
        { words: ["mount", "--rw", "--message", "edited", "--scratch-dir", "/keep", "--", "birds@1abc", "/both"] },
      ],
    });
  });

  it("may have what earlier versions wrote and left empty", () => {
    const params = readFuseParams(`${head}  configBucketName: b
  contextName: c
bundles:
  - {name: s, srcPath: /in, srcRepo: r, srcLabel: l, srcBundle: "", destPath: "", destRepo: "", destMessage: "", destBundleID: ""}
  - {name: d, srcPath: "", srcRepo: "", srcLabel: , srcBundle: , destPath: /o, destRepo: r, destMessage: m, destBundleID: /id}
`);
    assert.deepEqual(
      params.commands.map(({ words }) => words.join(" ")),
      ["bundle mount --repo r --label l --mount /in", "bundle upload --repo r --path /o --message m"],
    );
  });

  it("may be in a file", (t) => {
    const root = mkdtempSync(join(tmpdir(), "datamon-params-"));
    t.after(() => rmSync(root, { recursive: true }));
    const file = join(root, "fuse.yaml");
    writeFileSync(file, `${head}bundles:\n  - {srcPath: /in, srcRepo: birds}\n`);
    assert.equal(readFuseParams(file).commands.length, 1);
    writeFileSync(file, "a: [");
    assert.throws(() => readFuseParams(file), { code: "usage", message: /fuse\.yaml: not YAML/ });
    assert.throws(() => readFuseParams(join(root, "other.yaml")), { code: "not-found" });
  });

  const wrong: [string, RegExp][] = [
    ["bundles: []\n", /globalOpts: must be object.*bundles/],
    [`${head}bundles:\n  - {srcPath: /in}\n`, /bundles\[0\]\.srcRepo: missing/],
    [`${head}bundles:\n  - {name: x, destPath: /o, destRepo: r}\n`, /bundles\[0\] \(x\)\.destMessage: missing/],
    [`${head}bundles:\n  - {destPath: /o, destRepo: r, destMessage: m, srcRepo: x}\n`, /srcPath: missing; srcRepo/],
    [`${head}bundles:\n  - {name: x}\n`, /srcPath or destPath is missing/],
    [`${head}bundles:\n  - {srcPath: /in, srcRepo: 7}\n`, /bundles\[0\]\.srcRepo: must be string/],
    [`${head}bundles:\n  - {srcPath: /in, srcRepo: r, scrLabel: l}\n`, /bundles\[0\]: unknown key scrLabel/],
    [`${head}bundles:\n  - {srcPath: /in, srcRepo: r, srcLabel: l, srcBundle: b}\n`, /srcLabel and srcBundle/],
    [`${head}bundles:\n  - {srcPath: /a, srcRepo: r, destPath: /a, destRepo: s, destMessage: m}\n`, /destRepo/],
  ];
  for (const [text, pattern] of wrong) {
    it(`are refused with the key's name: ${pattern.source}`, () => {
      assert.throws(() => readFuseParams(text), { code: "usage", message: pattern });
    });
  }
});
