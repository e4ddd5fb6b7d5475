/** Every command: its flags, its lines, its JSON, its exit status. */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { assertFailed, assertSame, Home, LAUNCHER, run, smallTree, uploadedId, write } from "./support.ts";

const ID = "[0-9A-Za-z]{27}";
const TIME = "\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d(?:\\.\\d+)? \\+0000 UTC";
const HASH = "[0-9a-f]{64}";

let home: Home;
let tree: string;
/** Ids of the bundles labelled v1 and v2; in v2, one file is added, one changed, one gone. */
let v1: string;
let v2: string;

before(async () => {
  home = new Home();
  tree = smallTree(home.path("tree"));
  await home.repo();
  v1 = await home.upload("tree", "--label", "v1");
  const next = smallTree(home.path("next"));
  write(`${next}/robin.csv`, "robin,10\n");
  write(`${next}/lark.csv`, "lark,3\n");
  writeFileSync(`${next}/2024/notes.txt`, "");
  v2 = await home.upload("next", "--label", "v2", "--name-filter", "^(robin|lark|2024/wren)");
});
after(() => home.end());

/** A line of the given parts, as most lists have them. */
function line(...parts: string[]): RegExp {
  return new RegExp(`^${parts.join(" , ")}$`);
}

function assertLines(actual: string[], expected: RegExp[]): void {
  assert.equal(actual.length, expected.length, actual.join("\n"));
  for (const [at, pattern] of expected.entries()) assert.match(actual[at] as string, pattern);
}

describe("repo", () => {
  it("create is silent, and refuses a name that is taken or impossible", async () => {
    const made = await home.run("repo", "create", "--repo=trees", "--description=oaks and others");
    assert.deepEqual([made.code, made.stdout, made.stderr], [0, "", ""]);
    assert.match(
      await home.fails(1, "repo", "create", "--repo", "trees", "--description", "x"),
      /trees exists already/,
    );
    assert.match(await home.fails(1, "repo", "create", "--repo", "a b", "--description", "x"), /"a b" cannot be/);
    assert.match(await home.fails(1, "repo", "create", "--repo", "x"), /required option '--description/);
  });

  it("list and get print name , description , contributor , e-mail , time", async () => {
    const birds = line("birds", "counts", "Ada", "ada@example\\.org", TIME);
    assert.ok((await home.lines("repo", "list")).some((text) => birds.test(text)));
    assertLines(await home.lines("repo", "get", "--repo", "birds"), [birds]);
  });

  it("list and get print JSON", async () => {
    const found = await home.json("repo", "get", "--repo", "birds");
    assert.deepEqual(
      { ...found, timestamp: 0 },
      {
        name: "birds",
        description: "counts",
        timestamp: 0,
        contributor: { name: "Ada", email: "ada@example.org" },
      },
    );
    assert.ok(
      (await home.json("repo", "list")).some((repo: unknown) => JSON.stringify(repo) === JSON.stringify(found)),
    );
  });

  it("get and delete of one that is not there exit with 2", async () => {
    assert.match(await home.fails(2, "repo", "get", "--repo", "none"), /repo none is not in file:/);
    assert.match(await home.fails(2, "repo", "delete", "--repo", "none"), /repo none is not in file:/);
  });

  it("delete takes the repo with its bundles and labels", async () => {
    await home.ok("repo", "create", "--repo", "gone", "--description", "x");
    await home.ok("bundle", "upload", "--repo", "gone", "--path", tree, "--message", "m", "--label", "l");
    const deleted = await home.run("repo", "delete", "--repo", "gone", "--force");
    assert.deepEqual([deleted.code, deleted.stdout], [0, ""]);
    await home.fails(2, "repo", "get", "--repo", "gone");
    await home.ok("repo", "create", "--repo", "gone", "--description", "anew");
    assert.equal(await home.ok("bundle", "list", "--repo", "gone"), "");
    assert.equal(await home.ok("label", "list", "--repo", "gone"), "");
  });
});

describe("bundle upload", () => {
  it("prints the id last, and says on stderr what it did", async () => {
    const ended = await home.run(
      "bundle",
      "upload",
      "--repo",
      "birds",
      "--folder",
      "tree",
      "--message",
      "again",
      "--label",
      "x",
    );
    assert.equal(ended.code, 0, ended.stderr);
    assert.match(ended.stdout, new RegExp(`^Uploaded bundle id:${ID}\n$`));
    assert.match(
      ended.stderr,
      /^Uploaded 3 files, 28 B in [\d.]+ s \(.*\/s\); \d+ B new in the store\nset label 'x'\n$/,
    );
  });

  it("takes only the paths of a list, or those that match", async () => {
    writeFileSync(home.path("list"), "2024/wren.csv\nrobin.csv\n");
    const listed = uploadedId(
      await home.ok(
        "bundle",
        "upload",
        "--repo=birds",
        `--path=${tree}`,
        "--message=some",
        `--files=${home.path("list")}`,
      ),
    );
    const names = (await home.json("bundle", "list", "files", "--repo", "birds", "--bundle", listed)).map(nameOf);
    assert.deepEqual(names, ["robin.csv", "2024/wren.csv"]);
    const filtered = await home.upload("tree", "--name-filter", "\\.txt$");
    assert.deepEqual(
      (await home.json("bundle", "list", "files", "--repo", "birds", "--bundle", filtered)).map(nameOf),
      ["2024/notes.txt"],
    );
  });

  it("fails by name on what is missing in a list, or leaves it out", async () => {
    writeFileSync(home.path("more"), "robin.csv\nraven.csv\n");
    const args = ["bundle", "upload", "--repo", "birds", "--path", "tree", "--message", "m", "--files", "more"];
    assert.match(await home.fails(2, ...args), /raven\.csv/);
    const skipped = await home.run(...args, "--skip-on-error", "--concurrency-factor", "3");
    assert.equal(skipped.code, 0, skipped.stderr);
    assert.match(skipped.stderr, /raven\.csv/);
    assert.match(skipped.stderr, /left out 1 entry/);
  });

  it("prints the bundle as JSON", async () => {
    const made = await home.json("bundle", "upload", "--repo", "birds", "--path", "tree", "--message", "as JSON");
    assert.match(made.id, new RegExp(`^${ID}$`));
    assert.deepEqual([made.repo, made.message, made.files, made.bytes, made.failed], ["birds", "as JSON", 3, 28, 0]);
  });

  it("refuses what makes no sense, before it stores anything", async () => {
    const before = await home.json("bundle", "list", "--repo", "birds");
    const upload = ["bundle", "upload", "--repo", "birds", "--message", "m"];
    assert.match(await home.fails(1, ...upload), /upload needs the folder/);
    assert.match(await home.fails(1, ...upload, "--path", "tree/robin.csv"), /robin\.csv is not a directory/);
    assert.match(await home.fails(2, ...upload, "--path", "nowhere"), /nowhere/);
    assert.match(await home.fails(1, ...upload, "--path", "tree", "--label", "a/b"), /"a\/b" cannot be a label/);
    assert.match(await home.fails(1, ...upload, "--path", "tree", "--name-filter", "("), /--name-filter \( is not/);
    assert.match(await home.fails(2, ...upload, "--path", "tree", "--files", "nolist"), /read the file list nolist/);
    assert.match(
      await home.fails(1, ...upload, "--path", "tree", "--concurrency-factor", "0"),
      /--concurrency-factor <number>' argument '0' is invalid\. It must be a whole number/,
    );
    assert.match(
      await home.fails(2, "bundle", "upload", "--repo", "none", "--path", "tree", "--message", "m"),
      /repo none/,
    );
    assert.deepEqual(await home.json("bundle", "list", "--repo", "birds"), before);
  });
});

describe("bundle list and get", () => {
  it("print id , time , message, oldest first", async () => {
    const lines = await home.lines("bundle", "list", "--repo", "birds");
    assertLines(lines.slice(0, 2), [line(v1, TIME, "counted"), line(v2, TIME, "counted")]);
    assert.deepEqual(lines, lines.toSorted());
    assertLines(await home.lines("bundle", "get", "--repo", "birds", "--bundle", v1), [line(v1, TIME, "counted")]);
    assertLines(await home.lines("bundle", "get", "--repo", "birds", "--label", "v2"), [line(v2, TIME, "counted")]);
  });

  it("print JSON", async () => {
    const [first, second] = await home.json("bundle", "list", "--repo", "birds");
    assert.deepEqual(await home.json("bundle", "get", "--repo", "birds", "--label", "v1"), first);
    assert.deepEqual([first.id, first.files, first.bytes, first.parents], [v1, 3, 28, []]);
    assert.deepEqual(second.parents, [v1]);
  });

  it("take an id's beginning where only one has it", async () => {
    const ids: string[] = (await home.json("bundle", "list", "--repo", "birds")).map(
      (bundle: { id: string }) => bundle.id,
    );
    const unique = [...v1].findIndex((_, at) => ids.filter((id) => id.startsWith(v1.slice(0, at))).length === 1);
    const short = v1.slice(0, Math.max(unique, 4));
    assert.equal((await home.json("bundle", "get", "--repo", "birds", "--bundle", short)).id, v1);
    assert.match(await home.fails(1, "bundle", "get", "--repo", "birds", "--bundle", v1.slice(0, 4)), /more than one/);
    assert.match(await home.fails(1, "bundle", "get", "--repo", "birds", "--bundle", "1a"), /too short/);
  });

  it("take the newest where nothing is said, and not both an id and a label", async () => {
    const ids = (await home.json("bundle", "list", "--repo", "birds")).map((bundle: { id: string }) => bundle.id);
    assert.equal((await home.json("bundle", "get", "--repo", "birds")).id, ids.at(-1));
    assert.match(await home.fails(1, "bundle", "get", "--repo", "birds", "--bundle", v1, "--label", "v1"), /either/);
  });

  it("exit with 2 for what is not there", async () => {
    const missing = "1INzQ5TV4vAAfU2PbRFgPfnzEwR";
    assert.match(
      await home.fails(2, "bundle", "get", "--repo", "birds", "--bundle", missing),
      /bundle 1INz\w+ is not in/,
    );
    assert.match(await home.fails(2, "bundle", "get", "--repo", "birds", "--bundle", "1INz"), /bundle 1INz is not in/);
    assert.match(await home.fails(2, "bundle", "get", "--repo", "birds", "--label", "none"), /label none is not in/);
    assert.match(await home.fails(2, "bundle", "get", "--repo", "none"), /repo none is not in/);
    assert.match(await home.fails(2, "bundle", "list", "--repo", "none"), /repo none is not in/);
    await home.ok("repo", "create", "--repo", "bare", "--description", "x");
    assert.match(await home.fails(2, "bundle", "get", "--repo", "bare"), /repo bare has no bundles yet/);
    assert.deepEqual(await home.json("bundle", "list", "--repo", "bare"), []);
  });
});

describe("bundle list files", () => {
  it("prints Using bundle, then name, size and hash", async () => {
    assertLines(await home.lines("bundle", "list", "files", "--repo", "birds", "--label", "v1"), [
      new RegExp(`^Using bundle: ${v1}$`),
      new RegExp(`^name:robin\\.csv, size:8, hash:${HASH}$`),
      new RegExp(`^name:2024/notes\\.txt, size:13, hash:${HASH}$`),
      new RegExp(`^name:2024/wren\\.csv, size:7, hash:${HASH}$`),
    ]);
  });

  it("prints an array as JSON, with names as they are", async () => {
    const odd = home.path("odd");
    write(`${odd}/new\nline`, "");
    const id = await home.upload("odd");
    const found = await home.json("bundle", "list", "files", "--repo", "birds", "--bundle", id);
    assert.deepEqual(found.map(nameOf), ["new\nline"]);
    assert.match(
      (await home.lines("bundle", "list", "files", "--repo", "birds", "--bundle", id))[1] as string,
      /name:new\\nline, /,
    );
  });

  it("shows only what begins with a prefix", async () => {
    const found = await home.json("bundle", "list", "files", "--repo", "birds", "--label", "v1", "--prefix", "2024/w");
    assert.deepEqual(found.map(nameOf), ["2024/wren.csv"]);
  });
});

describe("bundle download", () => {
  it("prints Using bundle and writes the tree", async () => {
    const ended = await home.run("bundle", "download", "--repo", "birds", "--label", "v1", "--destination", "d1");
    assert.deepEqual([ended.code, ended.stdout], [0, `Using bundle: ${v1}\n`]);
    assert.match(ended.stderr, /^Downloading done: 3 files, 28 B/);
    await assertSame(home.path("d1"), tree);
  });

  it("leaves a folder that is not empty alone, unless forced", async () => {
    write(home.path("d2/mine"), "kept");
    write(home.path("d2/robin.csv"), "old");
    const args = ["bundle", "download", "--repo", "birds", "--bundle", v1, "--destination", home.path("d2")];
    assertFailedAfter(await home.run(...args), /d2 is not empty/);
    assert.equal(readFileSync(home.path("d2/robin.csv"), "utf8"), "old");
    await home.ok(...args, "--force-dest");
    assert.equal(readFileSync(home.path("d2/robin.csv"), "utf8"), "robin,1\n");
    assert.equal(readFileSync(home.path("d2/mine"), "utf8"), "kept");
  });

  it("takes only what matches", async () => {
    const folder = await home.download("--label", "v1", "--name-filter", "^2024/.*csv$", "--concurrency-factor=2");
    assert.deepEqual(readdirSync(folder, { recursive: true }).sort(), ["2024", "2024/wren.csv"]);
  });

  it("file gets one file", async () => {
    const ended = await home.run(
      "bundle",
      "download",
      "file",
      "--repo",
      "birds",
      "--label",
      "v1",
      "--file",
      "2024/wren.csv",
      "--destination=d3",
    );
    assert.deepEqual([ended.code, ended.stdout], [0, `Using bundle: ${v1}\n`], ended.stderr);
    assert.equal(readFileSync(home.path("d3/2024/wren.csv"), "utf8"), "wren,2\n");
    assert.deepEqual(readdirSync(home.path("d3"), { recursive: true }).sort(), ["2024", "2024/wren.csv"]);
    const args = ["bundle", "download", "file", "--repo", "birds", "--destination", "d4", "--file"];
    const missing = await home.run(...args, "raven.csv");
    assert.equal(missing.code, 2);
    assert.match(missing.stderr, /raven\.csv is not in bundle/);
    assertFailedAfter(await home.run(...args, "../robin.csv"), /robin\.csv/, 2);
    assert.equal(existsSync(home.path("robin.csv")), false);
  });
});

describe("bundle diff", () => {
  it("prints kind , name , remote size and hash , local size and hash", async () => {
    const folder = await home.download("--label", "v1");
    assert.deepEqual(
      await home.lines("bundle", "diff", "--repo", "birds", "--label", "v1", "--destination", folder),
      [],
    );
    write(`${folder}/robin.csv`, "robin,12\n");
    write(`${folder}/new`, "new");
    writeFileSync(`${folder}/2024/wren.csv`, "wren,3\n");
    rmSync(`${folder}/2024/notes.txt`);
    const lines = await home.lines("bundle", "diff", "--repo", "birds", "--label", "v1", "--folder", folder);
    assertLines(lines, [
      new RegExp(`^D , new ,  ,  , 3 , ${HASH}$`),
      new RegExp(`^U , robin\\.csv , 8 , ${HASH} , 9 , ${HASH}$`),
      new RegExp(`^A , 2024/notes\\.txt , 13 , ${HASH} ,  , $`),
      new RegExp(`^U , 2024/wren\\.csv , 7 , ${HASH} , 7 , ${HASH}$`),
    ]);
    const json = await home.json("bundle", "diff", "--repo", "birds", "--label", "v1", "--path", folder);
    assert.deepEqual(
      json.map(({ kind, name, remote, local }: Record<string, { size: number } | null>) => [
        kind,
        name,
        remote?.size,
        local?.size,
      ]),
      [
        ["D", "new", undefined, 3],
        ["U", "robin.csv", 8, 9],
        ["A", "2024/notes.txt", 13, undefined],
        ["U", "2024/wren.csv", 7, 7],
      ],
    );
  });

  it("compares two bundles, and tells by its exit status when asked to", async () => {
    const args = ["bundle", "diff", "--repo", "birds", "--label", "v1", "--to"];
    const lines = await home.lines(...args, "v2");
    assert.deepEqual(
      lines.map((text) => text.split(" , ").slice(0, 2).join(" ")),
      ["D 2024/notes.txt", "D empty", "A lark.csv", "U robin.csv"],
    );
    assert.deepEqual(await home.lines(...args, v2), lines, "by its id");
    assert.equal((await home.run(...args, "v2", "--exit-code")).code, 1);
    assert.equal((await home.run(...args, "v1", "--exit-code")).code, 0);
    assert.deepEqual(await home.json(...args, "v1"), []);
    assert.match(await home.fails(2, ...args, "none"), /none/);
  });

  it("wants one thing to compare with", async () => {
    const args = ["bundle", "diff", "--repo", "birds"];
    assert.match(await home.fails(1, ...args), /Give either --destination DIR or --to/);
    assert.match(await home.fails(1, ...args, "--to", "v1", "--destination", "tree"), /Give either/);
  });
});

describe("bundle update", () => {
  it("brings a folder to a bundle, and overwrites edits only when forced", async () => {
    const folder = await home.download("--label", "v1");
    const update = ["bundle", "update", "--repo", "birds", "--label", "v2", "--destination", folder];
    const updated = await home.run(...update);
    assert.deepEqual([updated.code, updated.stdout], [0, `Using bundle: ${v2}\n`], updated.stderr);
    assert.deepEqual(
      await home.lines("bundle", "diff", "--repo", "birds", "--label", "v2", "--destination", folder),
      [],
    );
    write(`${folder}/robin.csv`, "mine\n");
    assertFailedAfter(await home.run(...update), /local edits in .* would be lost: robin\.csv/);
    assert.equal(readFileSync(`${folder}/robin.csv`, "utf8"), "mine\n");
    await home.ok(...update, "--force");
    assert.equal(readFileSync(`${folder}/robin.csv`, "utf8"), "robin,10\n");
  });
});

describe("label", () => {
  it("set, get, list and delete", async () => {
    const set = await home.run("label", "set", "--repo", "birds", "--label", "best", "--bundle", v1);
    assert.deepEqual([set.code, set.stdout], [0, ""]);
    assertLines(await home.lines("label", "get", "--repo", "birds", "--label", "best"), [line("best", v1, TIME)]);
    await home.ok("label", "set", "--repo", "birds", "--label", "best", "--bundle", v2);
    const list = ["label", "list", "--repo", "birds", "--prefix", "be"];
    assertLines(await home.lines(...list), [line("best", v2, TIME)]);
    await home.ok("label", "delete", "--repo", "birds", "--label", "best");
    assert.deepEqual(await home.lines(...list), []);
    assert.match(await home.fails(2, "label", "get", "--repo", "birds", "--label", "best"), /label best is not in/);
    assert.match(await home.fails(2, "label", "delete", "--repo", "birds", "--label", "best"), /label best is not in/);
    assertLines(await home.lines(...list, "--with-versions"), [
      line("best", v1, TIME),
      line("best", v2, TIME),
      line("best", "\\(deleted\\)", TIME),
    ]);
  });

  it("prints JSON", async () => {
    const found = await home.json("label", "get", "--repo", "birds", "--label", "v1");
    assert.deepEqual([found.label, found.bundle, found.version], ["v1", v1, 1]);
    const listed = await home.json("label", "list", "--repo", "birds", "--prefix", "v");
    assert.deepEqual(
      listed.map(({ label }: { label: string }) => label),
      ["v1", "v2"],
    );
    assert.deepEqual(listed[0], found);
  });

  it("names only bundles and repos that are there", async () => {
    const set = ["label", "set", "--label", "l", "--bundle", "1INzQ5TV4vAAfU2PbRFgPfnzEwR", "--repo"];
    assert.match(await home.fails(2, ...set, "birds"), /bundle 1INz\w+ is not in repo birds/);
    assert.match(await home.fails(2, ...set, "none"), /repo none/);
    assert.match(await home.fails(2, "label", "list", "--repo", "none"), /repo none/);
    assert.match(await home.fails(2, "label", "get", "--repo", "none", "--label", "v1"), /repo none/);
  });
});

describe("cache", () => {
  it("status and clear", async () => {
    await home.ok("bundle", "list", "files", "--repo", "birds");
    const status = await home.json("cache", "status");
    assert.equal(status.directory, home.own("cache"));
    assert.ok(status.catalogs > 0);
    assert.match(await home.ok("cache", "status"), /^directory: .*\ndata: .* of .*, \d+ containers?\ncatalogs: /);
    const cleared = await home.run("cache", "clear");
    assert.deepEqual([cleared.code, cleared.stdout], [0, ""]);
    assert.match(cleared.stderr, /^freed /);
    assert.equal((await home.json("cache", "status")).catalogs, 0);
    assert.equal((await home.json("cache", "status", "--cache-dir", "elsewhere")).containers, 0);
  });
});

describe("what was mistyped", () => {
  for (const [args, why] of [
    [["bundel"], /unknown command 'bundel'/],
    [["bundle", "lst"], /unknown command 'lst'/],
    [["bundle", "list", "--repo", "birds", "--nonsense"], /unknown option '--nonsense'/],
    [["bundle", "list", "fils", "--repo", "birds"], /too many arguments/],
    [["bundle", "list", "files"], /required option '--repo/],
    [["repo", "list", "-o", "xml"], /'xml' is invalid\. Allowed choices are text, json/],
    [["mount", "birds"], /missing required argument 'dir'/],
    [["mount", "birds@", "m"], /birds@ names no bundle/],
    [["mount", "birds", "m", "--message", "x"], /Add --rw/],
    [["mount", "birds", "m", "--rw", "--label", "a/b"], /"a\/b" cannot be a label/],
    [["mount", "birds", "m", "--cache-size", "big"], /Write a size like/],
    [["mount", "birds", "m", "--channel", "smoke"], /Allowed choices are kernel, fuse-native/],
    [["completion", "tcsh"], /no completion for the shell tcsh/],
  ] as const) {
    it(`is explained: ${args.join(" ")}`, async () => {
      assert.match(await home.fails(1, ...args), why);
      assert.equal(existsSync(home.path("m")), false);
    });
  }

  it("a command without its noun's verb shows the help and fails", async () => {
    for (const args of [[], ["bundle"], ["label"]]) {
      const { code, stdout, stderr } = await home.run(...args);
      assert.deepEqual([code, stdout], [1, ""]);
      assert.match(stderr, /^Usage: datamon/);
    }
  });

  it("help is no failure", async () => {
    assert.match(await home.ok("--help"), /^Usage: datamon.*A first tour:/s);
    assert.match(await home.ok("bundle", "list", "files", "--help"), /^Usage: datamon bundle list files/);
    assert.match(await home.ok("help", "bundle"), /^Usage: datamon bundle/);
  });
});

describe("a listing", () => {
  it("that is cut off by its reader is no failure", async () => {
    mkdirSync(home.path("many"));
    for (let at = 0; at < 3000; at++) writeFileSync(home.path("many", `${at}`.repeat(20)), "");
    await home.upload("many", "--label", "many");
    const listing = home.start("bundle", "list", "files", "--repo", "birds", "--label", "many");
    listing.process.stdout?.once("data", () => listing.process.stdout?.destroy());
    const { code, stderr } = await listing.end();
    assert.deepEqual([code, stderr], [0, ""]);
  });

  it("comes whole to a reader that takes its time", async () => {
    mkdirSync(home.path("long"));
    for (let at = 0; at < 3000; at++) writeFileSync(home.path("long", `${at}`.repeat(20)), "");
    await home.upload("long", "--label", "long");
    const sh = ["-c", '"$0" "$@" | (sleep 1; cat)', LAUNCHER, "bundle", "list", "files", "--repo", "birds"];
    const { stdout } = await run([...sh, "--label", "long"], { home: home.root, cwd: home.root, launcher: "sh" });
    assert.equal(stdout.trimEnd().split("\n").length, 3001);
  });

  it("that cannot be written is a failure that is told", async () => {
    const sh = ["-c", 'exec "$0" "$@" >/dev/full', LAUNCHER, "repo", "list"];
    const ended = await run(sh, { home: home.root, launcher: "sh" });
    assertFailed(ended, 1, "repo list");
    assert.match(ended.stderr, /cannot write to the standard output: the disk is full/);
  });
});

function nameOf({ name }: { name: string }): string {
  return name;
}

/** Like a failure, but of a command that has said already which bundle it uses. */
function assertFailedAfter(ended: Parameters<typeof assertFailed>[0], why: RegExp, code = 1): void {
  assertFailed(ended, code, "");
  assert.match(ended.stderr, why);
}
