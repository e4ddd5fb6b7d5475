import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, realpath, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { loadConfig, writeConfig } from "../../src/meta/index.ts";

describe("configuration", () => {
  const { HOME, DATAMON_CONFIG } = process.env;
  const directory = process.cwd();
  let root: string;
  let home: string;
  let work: string;
  let homeFile: string;
  beforeEach(async () => {
    root = await realpath(await mkdtemp(join(tmpdir(), "datamon-config-")));
    home = join(root, "home");
    work = join(root, "work");
    homeFile = join(home, ".datamon", "datamon.yaml");
    await mkdir(home);
    await mkdir(work);
    process.env.HOME = home;
    delete process.env.DATAMON_CONFIG;
    process.chdir(work);
  });
  afterEach(async () => {
    process.chdir(directory);
    restore("HOME", HOME);
    restore("DATAMON_CONFIG", DATAMON_CONFIG);
    await rm(root, { recursive: true });
  });

  function restore(name: string, value: string | undefined): void {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }

  async function load(text: string) {
    await writeFile(join(work, "datamon.yaml"), text);
    return await loadConfig();
  }

  it("is a local store below the home directory where there is no file", async () => {
    const store = `file://${home}/.datamon/store`;
    assert.deepEqual(await loadConfig(), { metadata: `${store}/meta`, blob: `${store}/blob`, file: undefined });
    assert.deepEqual(await readdir(home), []);
  });

  it("comes from the first file in the order of places", async () => {
    await writeConfig({ name: "home" });
    assert.deepEqual([(await loadConfig()).name, (await loadConfig()).file], ["home", homeFile]);
    await writeFile(join(work, "datamon.yaml"), "name: work\n");
    assert.deepEqual([(await loadConfig()).name, (await loadConfig()).file], ["work", join(work, "datamon.yaml")]);
    await writeFile(join(root, "chosen.yaml"), "name: chosen\n");
    process.env.DATAMON_CONFIG = "../chosen.yaml";
    assert.deepEqual([(await loadConfig()).name, (await loadConfig()).file], ["chosen", join(root, "chosen.yaml")]);
    process.env.DATAMON_CONFIG = join(root, "missing.yaml");
    await assert.rejects(loadConfig(), { code: "usage", message: /missing\.yaml.*DATAMON_CONFIG.*not there/ });
  });

  it("is written for its owner only, into a directory for its owner only", async () => {
    assert.equal(await writeConfig({ name: "Ada", email: "ada@example.org" }), homeFile);
    assert.equal((await stat(homeFile)).mode & 0o777, 0o600);
    assert.equal((await stat(join(home, ".datamon"))).mode & 0o777, 0o700);
    assert.equal(await readFile(homeFile, "utf8"), "email: ada@example.org\nname: Ada\n");
    assert.deepEqual(await readdir(join(home, ".datamon")), ["datamon.yaml"]);
  });

  it("keeps what is written again without mention", async () => {
    await writeConfig({ name: "Ada", metadata: "file:///m", blob: "file:///b" });
    await writeConfig({ name: "Grace", email: "grace@example.org" });
    const config = await loadConfig();
    const { file, ...values } = config;
    const expected = { name: "Grace", email: "grace@example.org", metadata: "file:///m", blob: "file:///b" };
    assert.deepEqual(values, expected);
    assert.equal(file, homeFile);
  });

  it("is written with several stores", async () => {
    await writeConfig({ metadata: ["file:///m", "file:///n"], blob: "file:///b", copies: 2 });
    const { metadata, blob, copies } = await loadConfig();
    assert.deepEqual(
      { metadata, blob, copies },
      { metadata: ["file:///m", "file:///n"], blob: "file:///b", copies: 2 },
    );
  });

  it("writes to the file that $DATAMON_CONFIG names, and nothing that makes no sense", async () => {
    process.env.DATAMON_CONFIG = join(root, "new", "config.yaml");
    assert.equal(await writeConfig({ name: "Ada" }), process.env.DATAMON_CONFIG);
    await assert.rejects(writeConfig({ metadata: "file:///m" }), { code: "usage" });
    assert.equal(await readFile(process.env.DATAMON_CONFIG, "utf8"), "name: Ada\n");
    assert.deepEqual(await readdir(join(root, "new")), ["config.yaml"]);
  });

  it("takes stores as URLs, paths and names of buckets", async () => {
    for (const [written, url] of [
      ["file:///data/meta", "file:///data/meta"],
      ["file:///data/meta/", "file:///data/meta"],
      ["/data/my store", "file:///data/my%20store"],
      ["~/store", `file://${home}/store`],
      ["gs://bucket/prefix/", "gs://bucket/prefix"],
      ["s3://bucket", "s3://bucket"],
      ["my-bucket_1.example", "gs://my-bucket_1.example"],
    ] as const) {
      const config = await load(`metadata: ${written}\nblob: /b\n`);
      assert.equal(config.metadata, url);
      assert.equal(config.blob, "file:///b");
    }
  });

  it("takes several stores as a list, and how many copies a put must have", async () => {
    const config = await load("metadata: [/m, 'gs://bucket/m/']\nblob:\n  - /b\n  - s3://bucket\n  - ~/b\ncopies: 2\n");
    assert.deepEqual(config.metadata, ["file:///m", "gs://bucket/m"]);
    assert.deepEqual(config.blob, ["file:///b", "s3://bucket", `file://${home}/b`]);
    assert.equal(config.copies, 2);
    assert.equal((await load("metadata: [/m]\nblob: /b\n")).metadata, "file:///m");
  });

  it("makes files and directories absolute", async () => {
    const config = await load("cache: ~/cache\ncredential: /etc/../key.json\n");
    assert.equal(config.cache, join(home, "cache"));
    assert.equal(config.credential, "/key.json");
  });

  it("may be empty", async () => {
    for (const text of ["", "# nothing yet\n", "{}\n"]) {
      const config = await load(text);
      assert.equal(config.file, join(work, "datamon.yaml"));
      assert.equal(config.metadata, `file://${home}/.datamon/store/meta`);
    }
  });

  it("says which file makes no sense, and why", async () => {
    for (const [text, why] of [
      ["name: [unclosed", /not valid YAML/],
      ["name: a\nname: b", /not valid YAML/],
      ["nmae: Ada", /unknown key nmae/],
      ["name: 5", /name: must be of type string/],
      ["- a", /must be a mapping of keys to values/],
      ["just text", /must be a mapping/],
      ["metadata: /m", /metadata without blob/],
      ["blob: /m", /blob without metadata/],
      ["metadata: ./m\nblob: /b", /metadata: \.\/m is neither/],
      ["metadata: /m\nblob: UPPER", /blob: UPPER is neither/],
      ["metadata: [/m, /m/]\nblob: /b", /metadata: file:\/\/\/m stands there twice/],
      ["metadata: []\nblob: /b", /metadata is a list of nothing/],
      ["metadata: {}\nblob: /b", /metadata: must be a text or a list of texts/],
      ["metadata: [/m, /n]\nblob: /b\ncopies: 3", /copies: 3 is more than the 2 stores of metadata/],
      ["copies: 0", /copies: is not valid/],
      ["cache: relative/path", /cache: relative\/path is not an absolute path/],
    ] as const) {
      await assert.rejects(load(text), (error: Error & { code?: string }) => {
        assert.equal(error.code, "usage", text);
        assert.match(error.message, why);
        assert.ok(error.message.includes(join(work, "datamon.yaml")));
        return true;
      });
    }
  });
});
