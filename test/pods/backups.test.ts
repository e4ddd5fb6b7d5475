import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { after, describe, test } from "node:test";
import fc from "fast-check";
import { bytesOf, toBuffer } from "../../src/cas/index.ts";
import { LocalTree } from "../../src/fs/index.ts";
import { localFiles } from "../../src/pods/backup/path-order.ts";
import { parseMoment } from "../../src/pods/index.ts";
import { Home, uploadedId, write } from "../e2e/support.ts";

const home = new Home();
after(() => home.end());

const LISTS = ["upload", "uploaded", "removable"] as const;

function lists(directory: string): Record<(typeof LISTS)[number], string[]> {
  const read = (name: string) =>
    readFileSync(join(directory, `${name}.list`), "utf8")
      .split("\n")
      .slice(0, -1);
  return { upload: read("upload"), uploaded: read("uploaded"), removable: read("removable") };
}

function old(path: string): void {
  utimesSync(path, new Date("2020-01-01"), new Date("2020-01-01"));
}

/** A folder with a file of 2020 and others of today. */
function someFiles(root: string): string {
  write(join(root, "a", "old.csv"), "1\n");
  write(join(root, "a.txt"), "2\n");
  write(join(root, "a-b", "c"), "3\n");
  write(join(root, "a", "b", "new.csv"), "4\n");
  symlinkSync("a.txt", join(root, "link"));
  old(join(root, "a", "old.csv"));
  return root;
}

describe("datamover", () => {
  test("lists, uploads, and unlinks what is old and in the bundle", async () => {
    const data = someFiles(home.path("moved"));
    const all = ["a-b/c", "a.txt", "a/b/new.csv", "a/old.csv", "link"].map((path) => join(data, path));
    const told = home.path("lists");
    const stdout = await home.ok("datamover", "-d", data, "-l", "june", "-t", "2024-Jan-01", "-f", told, "-u");
    assert.deepEqual(lists(told), { upload: all, uploaded: all, removable: [join(data, "a/old.csv")] });
    assert.ok(!existsSync(join(data, "a/old.csv")));
    assert.ok(existsSync(join(data, "a/b/new.csv")));
    const [label] = await home.json("label", "list", "--repo", "datamover");
    assert.equal(label.label, "june");
    assert.equal(label.bundle, uploadedId(stdout));

    const stderr = await home.fails(1, "datamover", "-d", data, "-f", told);
    assert.match(stderr, /upload\.list is there already/);
    assert.deepEqual(lists(told).upload, all, "the lists are as they were");
  });

  test("keeps everything without -u, and stores nothing in a dry run", async () => {
    const data = someFiles(home.path("kept"));
    const before = readdirSync(data, { recursive: true }).length;
    await home.ok("datamover", "-d", data, "--repo", "kept", "-t", "300101000000", "-f", home.path("dry"), "--dry-run");
    assert.equal(lists(home.path("dry")).removable.length, 5);
    assert.equal((await home.run("repo", "get", "--repo", "kept")).code, 2);
    await home.ok("datamover", "-d", data, "--repo", "kept", "-t", "3001010000", "-f", home.path("kept-lists"));
    assert.equal(lists(home.path("kept-lists")).removable.length, 5);
    assert.equal(readdirSync(data, { recursive: true }).length, before);
  });

  test("a failure leaves neither lists nor changes", async () => {
    const data = someFiles(home.path("failing"));
    write(join(data, "unheard"), "of\n");
    const told = home.path("failed-lists");
    for (const args of [
      ["-t", "2024-Foo-01"],
      ["-t", "2023-Feb-29"],
      ["-l", "no/label"],
      ["-d", join(data, "nowhere")],
    ]) {
      await home.fails(args[0] === "-d" ? 2 : 1, "datamover", "-d", data, "-f", told, "-u", ...args);
      assert.ok(!existsSync(told) || readdirSync(told).length === 0, `${args}`);
    }
    const broken = { DATAMON_FAULT: "put.blobs:1:error" };
    const ended = await home.runWith(
      broken,
      "datamover",
      "-d",
      data,
      "--repo",
      "f",
      "-f",
      told,
      "-u",
      "-t",
      "3001010000",
    );
    assert.equal(ended.code, 1, ended.stderr);
    assert.deepEqual(readdirSync(told), []);
    assert.ok(existsSync(join(data, "a/old.csv")));
  });

  test("unlinks nothing that the bundle does not hold, whatever changes meanwhile", async (t) => {
    const files = 300;
    const seed = Date.now() % 1_000_000;
    t.diagnostic(`seed ${seed}`);
    const data = home.path("churned");
    for (let directory = 0; directory < 10; directory++) {
      for (let i = 0; i < files; i++) write(join(data, String(directory), String(i)), String(1e9 - 1 - i));
    }
    const churn = spawn(process.execPath, [join(import.meta.dirname, "churn.ts"), data, String(files), String(seed)], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    const printed = text(churn.stdout);
    const told = home.path("churned-lists");
    const ended = await home.run("datamover", "-d", data, "--repo", "churned", "-t", "3001010000", "-f", told, "-u");
    churn.stdin.end();
    const left: Record<string, string | null> = JSON.parse(await printed);
    assert.ok(Object.keys(left).length > 20, "files changed");
    const id = uploadedId(ended.stdout);
    const bundle = home.path("churned-bundle");
    await home.ok("bundle", "download", "--repo", "churned", "--bundle", id, "--destination", bundle);
    let gone = 0;
    for (let directory = 0; directory < 10; directory++) {
      for (let i = 0; i < files; i++) {
        const name = `${directory}/${i}`;
        const expected = name in left ? left[name] : String(1e9 - 1 - i);
        if (expected === null || existsSync(join(data, name))) continue;
        gone++;
        assert.equal(readFileSync(join(bundle, name), "utf8"), expected, name);
      }
    }
    assert.ok(gone > 0, "something was unlinked");
    const { uploaded, removable } = lists(told);
    const known = new Set(uploaded);
    assert.ok(removable.length > 0 && removable.every((path) => known.has(path)));
  });
});

/** What `backup -o json` prints of a bundle, as far as it matters here. */
interface Part {
  label: string;
  bundle: { id: string };
  unlinked: number;
}

describe("backup", () => {
  test("a bundle for each folder, one for the files beside them; old files go", async () => {
    const shared = home.path("shared");
    write(join(shared, "birds", "old.csv"), "1\n");
    write(join(shared, "birds", "new.csv"), "2\n");
    write(join(shared, "odd name", "x"), "3\n");
    write(join(shared, "beside"), "4\n");
    old(join(shared, "birds", "old.csv"));
    old(join(shared, "beside"));

    const list = home.path("unlinkable.list");
    await home.ok("backup", "-d", shared, "-u", list);
    assert.deepEqual(readFileSync(list, "utf8"), `${join(shared, "beside")}\n${join(shared, "birds/old.csv")}\n`);
    const labels = (await home.json("label", "list", "--repo", "backup")) as { label: string }[];
    const kinds = labels.map(({ label }) => label.replace(/^\d{4}-[a-z]{3}-\d\d-/, ""));
    assert.deepEqual(kinds.sort(), ["birds-1", "odd-name-2", "shared-0"]);

    const blobs = home.blobs();
    const parts: Part[] = await home.json("backup", "-d", shared);
    assert.deepEqual(
      parts.map(({ unlinked }) => unlinked),
      [1, 1, 0],
    );
    assert.deepEqual(home.blobs(), blobs, "what is unchanged is not stored again");
    assert.deepEqual(readdirSync(shared, { recursive: true }).sort(), [
      "birds",
      "birds/new.csv",
      "odd name",
      "odd name/x",
    ]);
    const restored = home.path("restored");
    const bundle = parts.find(({ label }) => label.endsWith("birds-1"))?.bundle.id ?? "";
    await home.ok("bundle", "download", "--repo", "backup", "--bundle", bundle, "--destination", restored);
    assert.equal(readFileSync(join(restored, "old.csv"), "utf8"), "1\n");
  });

  test("a list of files, the test repo, and a dry run", async () => {
    const shared = someFiles(home.path("listed"));
    const list = home.path("files.list");
    write(list, `${join(shared, "a/old.csv")}\n${join(shared, "link")}\nlisted/a/../a/b/new.csv\n`);
    const [dry] = await home.json("backup", "-f", list, "--dry-run");
    assert.equal(dry.files, 3);
    assert.equal(dry.bundle, undefined);
    const [part] = await home.json("backup", "-f", list, "-t", "true");
    assert.equal(part.bundle.repo, "backup-test");
    assert.equal(part.unlinked, 1);
    assert.ok(!existsSync(join(shared, "a/old.csv")));
    assert.ok(lstatSync(join(shared, "link")).isSymbolicLink());
    write(list, `${join(shared, "a")}\n`);
    assert.match(await home.fails(1, "backup", "-f", list), /names a directory/);
    await home.fails(1, "backup");
    await home.fails(1, "backup", "-f", list, "-d", shared);
  });
});

test("files of a folder come in the byte order of their paths", () => {
  const name = fc.stringMatching(/^[ -.0-~éa]{1,4}$/).filter((text) => text !== "." && text !== "..");
  fc.assert(
    fc.property(fc.uniqueArray(fc.array(name, { minLength: 1, maxLength: 3 }), { maxLength: 12 }), (paths) => {
      const root = home.path("ordered");
      try {
        for (const path of paths) {
          try {
            write(join(root, ...path), "");
          } catch {
            // A file is in the way of a directory, or the other way round.
          }
        }
        mkdirSync(root, { recursive: true });
        const files = [...localFiles(LocalTree.open(root), (error) => assert.fail(String(error)))];
        const expected = (readdirSync(root, { recursive: true, encoding: "utf8" }) as string[])
          .filter((path) => lstatSync(join(root, path)).isFile())
          .map(bytesOf)
          .sort((a, b) => Buffer.compare(toBuffer(a), toBuffer(b)));
        assert.deepEqual(
          files.map(({ path }) => path),
          expected,
        );
      } finally {
        rmSync(root, { recursive: true, force: true });
      }
    }),
    { numRuns: 100 },
  );
});

test("moments are those of earlier versions' formats", () => {
  assert.deepEqual(parseMoment("2006-Jan-02"), new Date(2006, 0, 2));
  assert.deepEqual(parseMoment("0601021504"), new Date(2006, 0, 2, 15, 4));
  assert.deepEqual(parseMoment("060102150405"), new Date(2006, 0, 2, 15, 4, 5));
  assert.deepEqual(parseMoment("691231235959"), new Date(1969, 11, 31, 23, 59, 59));
  for (const text of [
    "",
    "2006-01-02",
    "2006-Foo-02",
    "2006-Feb-30",
    "0613021504",
    "0601022504",
    "06010215",
    "060102150460",
  ]) {
    assert.throws(() => parseMoment(text), { code: "usage" }, text);
  }
});
