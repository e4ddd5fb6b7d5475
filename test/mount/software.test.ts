/** Programs that ask much of a file system, on a writable mount: what they did is right, and still is after the daemon was killed. */

import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import Database from "better-sqlite3";
import { Fixture, type Mounted } from "./fixture.ts";
import { noise } from "./reading.ts";

const DIRECTORIES = 20;
const FILES = 50;

/** Why a test of these programs cannot run here; undefined where it can. */
function missing(...programs: string[]): string | undefined {
  const absent = programs.filter((name) => spawnSync(name, ["--version"], { stdio: "ignore" }).status !== 0);
  return absent.length === 0 ? undefined : `not installed: ${absent.join(", ")}`;
}

interface Place {
  /** An empty directory on a writable mount. */
  readonly inside: string;
  /** A directory on the disk. */
  readonly outside: string;
  /** Kills the daemon and mounts what it left. */
  again(): Promise<void>;
}

async function place(t: TestContext): Promise<Place> {
  const fixture = new Fixture(t);
  const spec = fixture.overlay();
  let mounted: Mounted = await fixture.mount("kernel", spec);
  const outside = join(fixture.root, "outside");
  mkdirSync(outside);
  return {
    inside: mounted.directory,
    outside,
    async again() {
      mounted.process.kill("SIGKILL");
      await mounted.ended;
      mounted = await fixture.mount("kernel", spec);
    },
  };
}

/** A tree of a thousand files, with links of both kinds, an empty directory and a file with a hole. */
function makeTree(directory: string): void {
  for (let index = 0; index < DIRECTORIES; index++) {
    mkdirSync(join(directory, `d${index}`), { recursive: true });
    for (let file = 0; file < FILES; file++) {
      writeFileSync(join(directory, `d${index}/f${file}`), noise(index * FILES + file, 10 + file * 37));
    }
  }
  mkdirSync(join(directory, "empty"), { mode: 0o2750 });
  symlinkSync("d1/f1", join(directory, "soft"));
  execFileSync("ln", [join(directory, "d1/f1"), join(directory, "hard")]);
  execFileSync("sh", ["-c", 'truncate -s 3M "$1/sparse" && printf end >> "$1/sparse"', "sh", directory]);
  writeFileSync(join(directory, "large"), noise(7, 3_000_001));
}

function run(directory: string, program: string, ...args: string[]): string {
  const environment = { ...process.env, GIT_CONFIG_GLOBAL: "/dev/null", GIT_CONFIG_NOSYSTEM: "1" };
  return execFileSync(program, args, { cwd: directory, env: environment, encoding: "utf8", stdio: "pipe" });
}

const GIT_USER = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "gc.auto=0"];

/** Commits ten rows at a time and prints how many there are. */
const WRITER = `
  import Database from "better-sqlite3";
  const [file, mode] = process.argv.slice(1);
  const database = new Database(file);
  database.pragma("journal_mode = " + mode);
  database.pragma("synchronous = FULL");
  database.exec("CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT)");
  const insert = database.prepare("INSERT INTO entry (text) VALUES (?)");
  const ten = database.transaction(() => { for (let row = 0; row < 10; row++) insert.run("x".repeat(500)); });
  for (let rows = 10; ; rows += 10) { ten(); process.stdout.write(rows + "\\n"); }
`;

describe("on a writable mount", () => {
  it("git clones, commits, packs and finds nothing wrong", { skip: missing("git") }, async (t) => {
    const { inside, outside, again } = await place(t);
    makeTree(outside);
    run(outside, "git", "init", "--quiet");
    run(outside, "git", "add", "--all");
    run(outside, "git", ...GIT_USER, "commit", "--quiet", "--message", "one");
    run(inside, "git", "clone", "--quiet", outside, "clone");
    const clone = join(inside, "clone");
    const check = (): void => {
      run(clone, "git", "fsck", "--full", "--strict");
      assert.equal(run(clone, "git", "status", "--porcelain"), "");
    };
    check();
    writeFileSync(join(clone, "d2/f2"), "changed");
    rmSync(join(clone, "d3/f3"));
    run(clone, "git", "mv", "d4", "moved");
    run(clone, "git", ...GIT_USER, "commit", "--quiet", "--all", "--message", "two");
    check();
    run(clone, "git", "gc", "--quiet");
    check();
    await again();
    check();
    assert.equal(run(clone, "git", "log", "--format=%s"), "two\none\n");
    run(outside, "git", "fetch", "--quiet", clone);
  });

  for (const mode of ["wal", "delete", "persist"]) {
    it(`SQLite keeps a database in journal mode ${mode}`, async (t) => {
      const { inside, again } = await place(t);
      const file = join(inside, "database");
      const open = (): Database.Database => {
        const database = new Database(file);
        assert.equal(database.pragma(`journal_mode = ${mode}`, { simple: true }), mode);
        database.pragma("synchronous = FULL");
        return database;
      };
      const database = open();
      database.exec("CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT); CREATE INDEX by_text ON entry (text)");
      const insert = database.prepare("INSERT INTO entry (text) VALUES (?)");
      for (let batch = 0; batch < 10; batch++) {
        database.transaction(() => {
          for (let row = 0; row < 1000; row++) insert.run(`row ${(row * 7919) % 1000} of ${batch}`);
        })();
      }
      database.prepare("UPDATE entry SET text = text || '!' WHERE id % 3 = 0").run();
      const other = new Database(file);
      assert.equal(other.prepare("SELECT count(*) FROM entry").pluck().get(), 10_000);
      database.exec("BEGIN IMMEDIATE");
      assert.throws(() => other.exec("PRAGMA busy_timeout = 0; BEGIN IMMEDIATE"), { code: "SQLITE_BUSY" });
      database.exec("ROLLBACK");
      database.prepare("DELETE FROM entry WHERE id % 5 = 0").run();
      other.close();
      database.close();
      await again();
      const reopened = open();
      assert.equal(reopened.pragma("integrity_check", { simple: true }), "ok");
      assert.equal(reopened.prepare("SELECT count(*) FROM entry").pluck().get(), 8000);
      reopened.exec("VACUUM");
      assert.equal(reopened.pragma("integrity_check", { simple: true }), "ok");
      reopened.close();
    });
  }

  for (const mode of ["wal", "delete"]) {
    it(`SQLite in journal mode ${mode} recovers where the mount died in the middle`, async (t) => {
      const { inside, again } = await place(t);
      const file = join(inside, "database");
      const writer = spawn(process.execPath, ["--input-type=module", "-e", WRITER, file, mode], {
        cwd: import.meta.dirname,
        stdio: ["ignore", "pipe", "ignore"],
      });
      let printed = "";
      const enough = new Promise<void>((resolve) => {
        writer.stdout.on("data", (text) => {
          printed += text;
          if (printed.split("\n").length > 60) resolve();
        });
      });
      await enough;
      const closed = once(writer, "close");
      await again();
      writer.kill("SIGKILL");
      await closed;
      const committed = Number(printed.trimEnd().split("\n").at(-1));
      const database = new Database(file);
      assert.equal(database.pragma("integrity_check", { simple: true }), "ok");
      const rows = database.prepare("SELECT count(*) FROM entry").pluck().get() as number;
      assert.ok(rows % 10 === 0 && rows >= committed, `${rows} rows, ${committed} of them known to be committed`);
      database.close();
    });
  }

  it("tar brings a tree in and out", { skip: missing("tar", "diff") }, async (t) => {
    const { inside, outside, again } = await place(t);
    makeTree(join(outside, "tree"));
    run(outside, "tar", "--create", "--sparse", "--file", join(inside, "archive.tar"), "tree");
    run(inside, "tar", "--extract", "--sparse", "--file", "archive.tar");
    run(outside, "tar", "--compare", "--file", join(inside, "archive.tar"));
    await again();
    run(inside, "tar", "--compare", "--file", "archive.tar");
    run(outside, "diff", "--recursive", "--no-dereference", "tree", join(inside, "tree"));
    run(inside, "tar", "--create", "--sparse", "--file", join(outside, "back.tar"), "tree");
    run(outside, "tar", "--compare", "--file", "back.tar");
  });

  it("rsync brings a tree there and back with all it has", { skip: missing("rsync") }, async (t) => {
    const { inside, outside, again } = await place(t);
    const tree = join(outside, "tree");
    makeTree(tree);
    const copy = (from: string, to: string): string => run(outside, "rsync", "-aHAX", "--delete", `${from}/`, `${to}/`);
    const differences = (from: string, to: string): string =>
      run(outside, "rsync", "-aHAX", "--checksum", "--dry-run", "--itemize-changes", "--delete", `${from}/`, `${to}/`);
    copy(tree, join(inside, "tree"));
    await again();
    assert.equal(differences(tree, join(inside, "tree")), "");
    copy(join(inside, "tree"), join(outside, "back"));
    assert.equal(differences(tree, join(outside, "back")), "");
    rmSync(join(tree, "d5"), { recursive: true });
    writeFileSync(join(tree, "large"), noise(8, 3_000_002));
    copy(tree, join(inside, "tree"));
    assert.equal(existsSync(join(inside, "tree/d5")), false);
    assert.equal(differences(tree, join(inside, "tree")), "");
  });
});
