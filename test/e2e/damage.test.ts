/** Damaged objects are named and never served; a damaged cache heals. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync, readlinkSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { pattern } from "../fs/transfer/support.ts";
import { assertFailed, assertSame, Home, smallTree, write } from "./support.ts";

let template: Home;
let home: Home;
let tree: string;
let mnt: string;

before(async () => {
  template = new Home();
  tree = smallTree(template.path("tree"));
  write(join(tree, "large"), pattern(5_000_000));
  await template.repo();
  await template.upload(tree, "--label", "v1");
  await template.ok("mount", "birds", template.path("mnt"));
  await assertSame(template.path("mnt"), tree);
  await template.ok("unmount", template.path("mnt"));
});
after(() => template.end());

beforeEach(() => {
  home = template.copy();
  mnt = home.path("mnt");
});
afterEach(() => home.end());

/** Changes one byte in the middle of a file. */
function flip(path: string): void {
  const content = readFileSync(path);
  const middle = content.length >> 1;
  content[middle] = (content[middle] as number) ^ 0x20;
  writeFileSync(path, content);
}

/** Leaves the first bytes of a file only. */
function cut(path: string): void {
  truncateSync(path, 10);
}

/** The one object below this directory of the store. */
function only(...names: string[]): string {
  const [path, ...others] = home.objects(...names);
  assert.deepEqual(others, []);
  return path as string;
}

/** The key of an object. */
function keyOf(path: string): string {
  return path.replace(/^.*\/store\/(?:blob|meta)\//, "");
}

/** Asserts that each command fails with 1, naming the object. */
async function assertAllName(path: string, ...commands: string[][]): Promise<void> {
  for (const args of commands) assert.ok((await home.fails(1, ...args)).includes(keyOf(path)), args.join(" "));
}

/** Asserts that the files of a folder are a part of the tree, none of them with other content. */
function assertNothingWrong(folder: string): void {
  for (const name of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
    if (!statSync(join(folder, name)).isFile()) continue;
    assert.ok(readFileSync(join(folder, name)).equals(readFileSync(join(tree, name))), `${name} is whole`);
  }
}

function inBirds(...words: string[]): string[] {
  return [...words, "--repo", "birds"];
}

describe("a blob", () => {
  const damages: [what: string, damage: (path: string) => void][] = [
    ["with a flipped byte", flip],
    ["cut short", (path) => truncateSync(path, statSync(path).size - 100)],
    ["lost", (path) => rmSync(path)],
  ];
  for (const [what, damage] of damages) {
    it(`${what} fails the download and the read by name, and is never served`, async () => {
      const blobs = home.objects("blob", "blobs");
      const largest = blobs.toSorted((one, other) => statSync(other).size - statSync(one).size)[0] as string;
      damage(largest);
      rmSync(home.own("cache"), { recursive: true });
      const download = await home.run(...inBirds("bundle", "download"), "--destination", "out");
      assertFailed(download, 1, "bundle download");
      assert.ok(download.stderr.includes(keyOf(largest)), download.stderr);
      assert.doesNotMatch(download.stderr, /Downloading done/);
      assertNothingWrong(home.path("out"));
      const file = await home.run(...inBirds("bundle", "download", "file"), "--destination", "one", "--file", "large");
      assertFailed(file, 1, "bundle download file");

      await home.ok("mount", "birds", mnt);
      assert.throws(() => readFileSync(join(mnt, "large")), { code: "EIO" });
      assert.equal(readFileSync(join(mnt, "robin.csv"), "utf8"), "robin,1\n", "the rest is read");
      const log = readFileSync(home.own("mounts", readdirSync(home.own("mounts"))[0] as string, "log"), "utf8");
      assert.ok(log.includes(keyOf(largest)), log);
      await home.ok("unmount", mnt);
    });
  }
});

describe("a catalog", () => {
  const others = [
    inBirds("bundle", "list", "files"),
    inBirds("bundle", "diff", "--destination", "tree"),
    ["mount", "birds", "mnt"],
  ];
  for (const [what, damage] of [
    ["with a flipped byte", flip],
    ["cut short", (path: string) => truncateSync(path, statSync(path).size - 10)],
    ["lost", (path: string) => rmSync(path)],
  ] as const) {
    it(`${what} is named by whatever needs it`, async () => {
      const catalog = only("meta", "catalogs");
      damage(catalog);
      rmSync(home.own("cache"), { recursive: true });
      await assertAllName(catalog, ["mount", "--rw", "--message", "m", "birds", mnt]);
      await assertAllName(catalog, ...(damage === flip ? others : []));
      const download = await home.run(...inBirds("bundle", "download", "--destination", "out"));
      assertFailed(download, 1, "bundle download");
      assert.ok(download.stderr.includes(keyOf(catalog)), download.stderr);
      assert.deepEqual(await home.json("mount", "list"), []);
      assert.deepEqual(await home.json("scratch", "list"), []);
      await home.ok(...inBirds("bundle", "list"));
      const again = await home.run(...inBirds("bundle", "upload"), "--path", tree, "--message", "again");
      assert.ok(again.code === 0 ? again.stderr.includes(keyOf(catalog)) : again.code === 1, again.stderr);
    });
  }
});

describe("a record", () => {
  /** Kinds of records, where they lie, and the commands that need them. */
  const kinds: [kind: string, place: string[], commands: string[][]][] = [
    [
      "of a bundle",
      ["meta", "bundles"],
      [
        inBirds("bundle", "get"),
        inBirds("bundle", "list"),
        inBirds("bundle", "get", "--label", "v1"),
        inBirds("bundle", "download", "--destination", "out"),
        ["mount", "birds", "mnt"],
      ],
    ],
    [
      "of a label",
      ["meta", "refs"],
      [
        inBirds("label", "get", "--label", "v1"),
        inBirds("label", "list"),
        inBirds("bundle", "get", "--label", "v1"),
        ["mount", "birds@v1", "mnt"],
      ],
    ],
    ["of a repo", ["meta", "repos"], [inBirds("repo", "get"), ["repo", "list"]]],
  ];
  const damages: [what: string, damage: (path: string) => void][] = [
    ["that is no YAML", (path) => writeFileSync(path, "{{{")],
    ["of something else", (path) => writeFileSync(path, "kind: cat\nversion: 1\n")],
    ["that is empty", (path) => truncateSync(path, 0)],
    ["that is binary", (path) => writeFileSync(path, Buffer.from([0xff, 0xfe, 0x00]))],
  ];
  for (const [kind, place, commands] of kinds) {
    for (const [what, damage] of damages) {
      it(`${kind} ${what} is named by whatever needs it`, async () => {
        const record = only(...place);
        damage(record);
        const [first, ...others] = commands as [string[], ...string[][]];
        await assertAllName(record, first, ...(what === "that is no YAML" ? others : []));
      });
    }
  }

  it("of a later version asks for a newer Datamon", async () => {
    const record = only("meta", "repos");
    writeFileSync(record, readFileSync(record, "utf8").replace("version: 1", "version: 2"));
    const said = await home.fails(1, ...inBirds("repo", "get"));
    assert.ok(said.includes(keyOf(record)));
    assert.match(said, /version 2.*\n\s+Use a newer version/);
  });

  it("of a bundle that is another's is refused", async () => {
    const record = only("meta", "bundles");
    writeFileSync(record, readFileSync(record, "utf8").replace("repo: birds", "repo: trees"));
    await assertAllName(record, inBirds("bundle", "get"));
  });

  it("of a bundle whose catalog's hash is wrong names the catalog that is not there", async () => {
    const record = only("meta", "bundles");
    const wrong = "ab".repeat(32);
    writeFileSync(record, readFileSync(record, "utf8").replace(/catalog: .*/, `catalog: ${wrong}`));
    assert.ok((await home.fails(1, "mount", "birds", mnt)).includes(`catalogs/ab/${wrong}`));
  });
});

describe("the cache", () => {
  /** Every file below a directory of the cache. */
  function files(...names: string[]): string[] {
    const root = home.own("cache", ...names);
    return readdirSync(root, { recursive: true, encoding: "utf8" })
      .map((name) => join(root, name))
      .filter((path) => statSync(path).isFile());
  }

  const damages: [what: string, damage: () => void][] = [
    [
      "index that is garbage",
      () => writeFileSync(home.own("cache", readlinkSync(home.own("cache", "index.sqlite"))), "garbage"),
    ],
    ["index with a flipped byte", () => flip(home.own("cache", readlinkSync(home.own("cache", "index.sqlite"))))],
    ["index that is gone", () => rmSync(home.own("cache", "index.sqlite"))],
    ["containers with a flipped byte", () => files("containers").forEach(flip)],
    ["containers that are cut short", () => files("containers").forEach(cut)],
    ["containers that are gone", () => rmSync(home.own("cache", "containers"), { recursive: true })],
    ["catalogs with a flipped byte", () => files("catalogs").forEach(flip)],
    ["catalogs that are cut short", () => files("catalogs").forEach(cut)],
    ["directory that is gone", () => rmSync(home.own("cache"), { recursive: true })],
  ];
  for (const [what, damage] of damages) {
    it(`heals: ${what}`, async () => {
      damage();
      await home.ok("mount", "birds", mnt);
      await assertSame(mnt, tree);
      await home.ok("unmount", mnt);
      assert.ok((await home.json("cache", "status")).containers > 0, "it is filled again");
    });
  }

  it("heals under a mount that is in use", async () => {
    await home.ok("mount", "birds", mnt);
    assert.equal(readFileSync(join(mnt, "robin.csv"), "utf8"), "robin,1\n");
    files("containers").forEach(flip);
    await assertSame(mnt, tree);
    await home.ok("unmount", mnt);
    assert.deepEqual(await home.json("mount", "list"), []);
  });
});
