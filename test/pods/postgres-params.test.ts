import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { type PostgresParams, parseEntries, postgresParams } from "../../src/pods/index.ts";

const root = mkdtempSync(join(tmpdir(), "datamon-pg-params-"));
after(() => rmSync(root, { recursive: true, force: true }));

const OPTS = { dm_pg_opts: ";:c:/coord" };

async function refused(env: NodeJS.ProcessEnv, pattern: RegExp, stream = false): Promise<void> {
  await assert.rejects(postgresParams(env, stream), { code: "usage", message: pattern });
}

describe("entries of a variable", () => {
  it("are read as they were written, whatever the separators", () => {
    const separator = fc.string({ unit: "grapheme-ascii", minLength: 1, maxLength: 1 }).filter((one) => one !== ".");
    const word = fc.string({ unit: "grapheme" });
    fc.assert(
      fc.property(
        fc.uniqueArray(separator, { minLength: 2, maxLength: 2 }),
        fc.dictionary(word, fc.option(word)),
        ([between, assign], dictionary) => {
          const holds = (text: string, one: string | undefined) => one !== undefined && text.includes(one);
          const entries = Object.entries(dictionary).filter(
            ([key, value]) =>
              !holds(key, between) &&
              !holds(key, assign) &&
              !holds(value ?? "", between) &&
              `${key}${value}` !== "null",
          );
          const written = entries.map(([key, value]) => (value === null ? key : `${key}${assign}${value}`));
          const read = parseEntries(`${between}${assign}${written.join(between)}`, "x");
          assert.deepEqual(
            [...read],
            entries.map(([key, value]) => [key, value ?? "true"]),
          );
        },
      ),
    );
  });

  it("are those of the guide", () => {
    assert.deepEqual(
      [...parseEntries(";:a;b:c", "x")],
      [
        ["a", "true"],
        ["b", "c"],
      ],
    );
    assert.deepEqual([...parseEntries(";:", "x")], []);
    assert.deepEqual([...parseEntries(";:m:a: b;", "x")], [["m", "a: b"]]);
  });

  it("need two separators, of which none is a dot", () => {
    for (const text of ["", ";", ".:a", ";.a", ";;a"]) {
      assert.throws(() => parseEntries(text, "dm_pg_opts"), { code: "usage", message: /dm_pg_opts makes no sense/ });
    }
    assert.throws(() => parseEntries(";:a;a:b", "x"), { message: /a is given twice/ });
  });
});

describe("parameters in variables", () => {
  it("say which databases there are", async () => {
    const params = await postgresParams({
      dm_pg_opts: "/=c=/coord/V=true/S".replaceAll("/coord", "\\coord"),
      dm_pg_db_two: ";:p:5433;sr:source;sb:3MMh;st",
      dm_pg_db_one: ";:p:5432;m:a message: of it;l:v1;r:birds",
      dm_pg_dbx: "no database",
    });
    assert.deepEqual(params, {
      coordination: "\\coord",
      ignoreVersion: true,
      sleep: true,
      databases: [
        {
          id: "one",
          port: 5432,
          stream: false,
          destination: { repo: "birds", message: "a message: of it", label: "v1" },
        },
        { id: "two", port: 5433, stream: true, source: { repo: "source", bundle: "3MMh" } },
      ],
    } satisfies PostgresParams);
  });

  it("are refused by name where they make no sense", async () => {
    await refused({ dm_pg_opts: ";:V:true", dm_pg_db_a: ";:p:1" }, /^dm_pg_opts .*coordination directory \(c\)/);
    await refused({ dm_pg_opts: ";:c:/coord;V:yes", dm_pg_db_a: ";:p:1" }, /V is true or false/);
    await refused({ dm_pg_opts: ";:c:/coord;q", dm_pg_db_a: ";:p:1" }, /there is no q/);
    await refused(OPTS, /no database/);
    await refused({ ...OPTS, dm_pg_db_a: ";:r:x" }, /^dm_pg_db_a .*port/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:0" }, /0 is not a port/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:65536" }, /65536 is not a port/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:1;r:x" }, /needs a message/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:1;l:x" }, /without a repo/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:1;sr:x" }, /exactly one of/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:1;sr:x;sl:y;sb:z" }, /exactly one of/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:1;sl:y" }, /without the source's repo/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:1;st" }, /only a database with a source/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:1", dm_pg_db_b: ";:p:1" }, /a and b have the same port 1/);
    await refused({ ...OPTS, "dm_pg_db_../a": ";:p:1" }, /cannot be the name of a directory/);
    await refused({ ...OPTS, dm_pg_db_a: ";:p:1;sr:x;sl:y;r:z;m:m" }, /streamed database is saved to the repo/, true);
  });

  it("stream what has a source where all is to be streamed", async () => {
    const env = { ...OPTS, dm_pg_db_a: ";:p:1", dm_pg_db_b: ";:p:2;sr:x;sl:y" };
    assert.deepEqual(
      (await postgresParams(env, true)).databases.map(({ stream }) => stream),
      [false, true],
    );
  });
});

describe("parameters in YAML", () => {
  const file = join(root, "pgparams.yaml");
  const env = { SIDECAR_CONFIG: file };

  it("say the same for one database, and variables override them", async () => {
    writeFileSync(
      file,
      `globalOpts:
  coordPoint: /coord
  sleepInsteadOfExit: false
database:
  name: birds
  dataDir: /pg_stage
  pgPort: 5555
  srcRepo: from
  srcLabel: v1
  destRepo: to
  destMessage: saved
  destLabel:
  owner: ada
`,
    );
    const expected = {
      coordination: "/coord",
      ignoreVersion: false,
      sleep: false,
      dataRoot: "/pg_stage",
      databases: [
        {
          id: "birds",
          port: 5555,
          stream: false,
          source: { repo: "from", label: "v1" },
          destination: { repo: "to", message: "saved" },
          owner: "ada",
        },
      ],
    } satisfies PostgresParams;
    assert.deepEqual(await postgresParams(env), expected);
    const overridden = await postgresParams({
      ...env,
      SIDECAR_GLOBALOPTS_COORDPOINT: "/elsewhere",
      SIDECAR_DATABASE_SRCREPO: "",
      SIDECAR_DATABASE_SRCLABEL: "",
      SIDECAR_DATABASE_PGPORT: "5556",
      SIDECAR_DATABASE_DESTLABEL: "v2",
    });
    const [database] = expected.databases;
    const { source: _, ...fresh } = { ...database, port: 5556 };
    assert.deepEqual(overridden, {
      ...expected,
      coordination: "/elsewhere",
      databases: [{ ...fresh, destination: { repo: "to", message: "saved", label: "v2" } }],
    });
  });

  it("may be variables alone, with what is usual for the rest", async () => {
    assert.deepEqual(await postgresParams({ SIDECAR_CONFIG: join(root, "none"), SIDECAR_DATABASE_NAME: "birds" }), {
      coordination: "/tmp/coord",
      ignoreVersion: false,
      sleep: false,
      databases: [{ id: "birds", port: 5432, stream: false }],
    } satisfies PostgresParams);
  });

  it("are refused by file and key where they make no sense", async () => {
    await refused({ SIDECAR_CONFIG: join(root, "none") }, /nothing says which databases to run/);
    for (const [text, pattern] of [
      ["database: [", /pgparams.yaml make no sense/],
      ["databases:\n  name: x", /unknown key databases/],
      ["database:\n  nom: x", /there is no nom/],
      ["database:\n  name: [x]", /database.name is of the wrong kind/],
      ["database:\n  srcLabel: v1", /without the source's repo/],
      ["database:\n  srcRepo: x\n  srcLabel: v1\n  srcBundle: y", /not by both/],
    ] as const) {
      writeFileSync(file, text);
      await refused(env, pattern);
    }
  });
});
