/** Where the configuration comes from, and what is said where it makes no sense. */

import assert from "node:assert/strict";
import { readFileSync, statSync } from "node:fs";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Home, run, write } from "./support.ts";

let home: Home;

beforeEach(() => {
  home = new Home();
});
afterEach(() => home.end());

/** A configuration whose metadata store is of that name below the home directory. */
function stores(name: string): string {
  return `metadata: ${home.path(name, "meta")}\nblob: ${home.path(name, "blob")}\n`;
}

async function metadataInForce(cwd: string, env: NodeJS.ProcessEnv = {}): Promise<string> {
  const shown = await run(["config", "show", "-o", "json"], { home: home.root, cwd, env });
  assert.equal(shown.code, 0, shown.stderr);
  return JSON.parse(shown.stdout).metadata.replace(`file://${home.root}/`, "");
}

describe("config create", () => {
  it("writes a file for its owner alone, and prints nothing on stdout", async () => {
    const made = await home.run("config", "create", "--email", "ada@example.org", "--name", "Ada Lovelace");
    assert.deepEqual([made.code, made.stdout], [0, ""]);
    const file = home.own("datamon.yaml");
    assert.match(made.stderr, new RegExp(`^wrote ${file}\n$`));
    assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.equal(readFileSync(file, "utf8"), "email: ada@example.org\nname: Ada Lovelace\n");
  });

  it("keeps what the file said of other things, and writes where $DATAMON_CONFIG says", async () => {
    const DATAMON_CONFIG = home.path("own.yaml");
    const create = ["config", "create", "--name", "Ada", "--email"];
    await home.runWith({ DATAMON_CONFIG }, ...create, "old@example.org", "--cache", home.path("cache"));
    const again = await home.runWith({ DATAMON_CONFIG }, ...create, "new@example.org", "--credential=/etc/key.json");
    assert.equal(again.code, 0, again.stderr);
    const text = readFileSync(DATAMON_CONFIG, "utf8");
    assert.deepEqual(text.trim().split("\n").sort(), [
      `cache: ${home.path("cache")}`,
      "credential: /etc/key.json",
      "email: new@example.org",
      "name: Ada",
    ]);
  });

  it("refuses what no configuration can say", async () => {
    const create = ["config", "create", "--email", "a@example.org", "--name", "A"];
    assert.match(await home.fails(1, ...create, "--metadata", "file:///x"), /metadata without blob/);
    assert.match(
      await home.fails(1, ...create, "--cache", "not/absolute"),
      /cache: not\/absolute is not an absolute path/,
    );
    assert.match(await home.fails(1, "config", "create", "--name", "A"), /required option '--email/);
  });

  it("names who makes things from then on", async () => {
    await home.ok("config", "create", "--email", "ada@example.org", "--name", "Ada");
    await home.ok("repo", "create", "--repo", "birds", "--description", "counts");
    assert.match(await home.ok("repo", "get", "--repo", "birds"), /^birds , counts , Ada , ada@example\.org , /);
  });
});

describe("the configuration", () => {
  it("is $DATAMON_CONFIG's, else the working directory's, else the home directory's", async () => {
    write(home.own("datamon.yaml"), stores("of-home"));
    write(home.path("work/datamon.yaml"), stores("of-directory"));
    write(home.path("named.yaml"), stores("of-variable"));
    assert.equal(
      await metadataInForce(home.path("work"), { DATAMON_CONFIG: home.path("named.yaml") }),
      "of-variable/meta",
    );
    assert.equal(await metadataInForce(home.root, { DATAMON_CONFIG: "work/datamon.yaml" }), "of-directory/meta");
    assert.equal(await metadataInForce(home.path("work")), "of-directory/meta");
    assert.equal(await metadataInForce("/"), "of-home/meta");
  });

  it("is shown on stdout, and its file named on stderr", async () => {
    write(home.own("datamon.yaml"), `${stores("data")}email: ada@example.org\n`);
    const shown = await home.run("config", "show");
    assert.equal(shown.stderr, `Using config file: ${home.own("datamon.yaml")}\n`);
    assert.deepEqual(shown.stdout.trim().split("\n").sort(), [
      `blob: file://${home.path("data/blob")}`,
      "email: ada@example.org",
      `metadata: file://${home.path("data/meta")}`,
    ]);
  });

  it("decides where data goes", async () => {
    write(home.own("datamon.yaml"), `${stores("data")}cache: ${home.path("cached")}\n`);
    await home.repo();
    write(home.path("tree/file"), "content");
    await home.upload("tree");
    assert.equal(readFileSync(home.path("data/meta/repos/birds/repo.yaml"), "utf8").includes("name: birds"), true);
    assert.equal((await home.json("cache", "status")).directory, home.path("cached"));
  });

  it("where there is none, is a local store, which is said once and on stderr", async () => {
    const first = await home.run("repo", "list");
    assert.deepEqual([first.code, first.stdout], [0, ""]);
    assert.match(first.stderr, new RegExp(`^No configuration found: using a local store in ${home.own("store")}\\.\n`));
    const second = await home.run("repo", "list");
    assert.deepEqual([second.code, second.stdout, second.stderr], [0, "", ""]);
  });

  it("with a bucket's name means Google Cloud Storage", async () => {
    write(
      home.own("datamon.yaml"),
      "metadata: datamon-meta-data\nblob: datamon-blob-data\ncredential: /no/such.json\n",
    );
    assert.match(await home.fails(1, "repo", "list"), /gs:\/\/datamon-meta-data: .*\/no\/such\.json/);
  });

  for (const [what, text, why] of [
    ["broken YAML", "metadata: [\n", /it is not valid YAML: /],
    ["an unknown key", "metadat: x\n", /unknown key metadat/],
    ["a value of the wrong kind", "email: [a, b]\n", /email: must be of type string/],
    ["half the stores", "blob: /data\n", /blob without metadata/],
    ["a store that is none", "metadata: ./here\nblob: /data\n", /metadata: \.\/here is neither/],
    ["something else altogether", "just text\n", /must be a mapping of keys to values/],
  ] as const) {
    it(`that has ${what} is named, and so is what is wrong`, async () => {
      const file = home.own("datamon.yaml");
      write(file, text);
      const commands = [
        ["repo", "list"],
        ["config", "show"],
        ["mount", "birds", "mnt"],
      ];
      for (const args of what === "broken YAML" ? commands : commands.slice(0, 1)) {
        const said = await home.fails(1, ...args);
        assert.match(said, new RegExp(`configuration file ${file} makes no sense: `));
        assert.match(said, why);
      }
    });
  }

  it("that $DATAMON_CONFIG names in vain is an error", async () => {
    const ended = await home.runWith({ DATAMON_CONFIG: "/nowhere.yaml" }, "repo", "list");
    assert.equal(ended.code, 1);
    assert.match(ended.stderr, /\/nowhere\.yaml, named by \$DATAMON_CONFIG, is not there/);
  });
});
