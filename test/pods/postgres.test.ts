/** The PostgreSQL sidecar and an application under its wrapper: real servers, and two processes that share a directory. */

import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { findPrograms, type Programs } from "../../src/pods/postgres/programs.ts";
import { CHECKOUT, Home, Running, until } from "../e2e/support.ts";
import { Wrapped } from "./wrapped.ts";

const programs: Programs | undefined = (await findPrograms().catch(() => []))[0];
const skip = programs === undefined && "PostgreSQL is not installed";
const PSQL = join(programs?.directory ?? "", "psql");
/** Seconds of silence: short, for the sake of the tests that wait for it. */
const TIMEOUT = "6";

/** The store that all pods share, and the sidecars' home. */
const home = new Home();
after(() => home.end());
// The server's user has to come through to the data directories.
chmodSync(home.root, 0o711);

/** A coordination directory with what takes part. */
class Pod {
  readonly coord = mkdtempSync(home.path("coord-"));
  readonly temporary = mkdtempSync(home.path("tmp-"));

  constructor() {
    chmodSync(this.temporary, 0o711);
  }

  /** Starts the sidecar under its old name. */
  sidecar(
    databases: Record<string, string>,
    options: { args?: string[]; env?: NodeJS.ProcessEnv; opts?: string } = {},
  ) {
    const env: NodeJS.ProcessEnv = { TMPDIR: this.temporary, ...options.env };
    env.dm_pg_opts = `;:c:${this.coord}${options.opts ?? ""}`;
    for (const [id, text] of Object.entries(databases)) env[`dm_pg_db_${id}`] = text;
    const launcher = join(CHECKOUT, "scripts", "wrap_datamon_pg.sh");
    const args = ["--timeout", TIMEOUT, ...(options.args ?? [])];
    return new Running(args, { launcher, home: home.root, cwd: home.root, env });
  }

  wrapper(...args: string[]): Wrapped {
    return new Wrapped(this.coord, ["-b", "postgres", "--timeout", TIMEOUT, ...args]);
  }

  /** What data directories are left. */
  left(): string[] {
    return readdirSync(this.temporary);
  }
}

/** Commands of an application, one psql for each database. */
function sql(...queries: [port: number, ...commands: string[]][]): string[] {
  const calls = queries.map(([port, ...commands]) =>
    [PSQL, "-h", "127.0.0.1", "-p", String(port), "-U", "postgres", "-XAtqv", "ON_ERROR_STOP=1"]
      .concat(commands.flatMap((command) => ["-c", `"${command}"`]))
      .join(" "),
  );
  return ["sh", "-c", calls.join(" && ")];
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, "127.0.0.1"));
  await Promise.all(servers.map((server) => new Promise((resolve) => server.once("listening", resolve))));
  const ports = servers.map((server) => (server.address() as { port: number }).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket: Socket = connect(port, "127.0.0.1");
    socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
    socket.unref().once("connect", () => socket.destroy());
  });
}

/** Waits until nothing listens on a port any more. */
async function stopped(port: number): Promise<void> {
  let there = true;
  const look = async () => {
    while (there) there = await answers(port);
  };
  void look();
  await until(
    () => !there,
    () => `a server still listens on ${port}`,
  );
}

const MAKE = "create table t as select i, md5(i::text) as s from generate_series(1, 5000) i";
const COUNT = "select count(*), max(s) from t";

describe("the PostgreSQL sidecar", { skip }, () => {
  it("saves fresh databases, restores, changes, discards and streams them", async () => {
    let pod = new Pod();
    const [a = 0, b = 0] = await freePorts(2);
    await home.repo("db");
    await home.repo("other");

    // Two fresh ones, each asked for in its own directory.
    let sidecar = pod.sidecar({
      a: `;:p:${a};r:db;m:first: a;l:a1`,
      b: `;:p:${b};r:other;m:first of b;l:b1`,
    });
    let wrapped = pod.wrapper("-d", "a b", "--", ...sql([a, MAKE, "create database second"], [b, MAKE, COUNT]));
    assert.equal(await wrapped.end(), 0, wrapped.stderr);
    assert.match(wrapped.stdout, /^5000\|/);
    let ended = await sidecar.end();
    assert.equal(ended.code, 0, ended.stderr);
    assert.deepEqual(
      ended.stdout
        .trimEnd()
        .split("\n")
        .map((line) => line.replace(/\w{27}/, "ID"))
        .sort(),
      ["a , db , ID , a1", "b , other , ID , b1"],
    );
    const first = await home.json("bundle", "get", "--repo", "db", "--label", "a1");
    assert.equal(first.message, "first: a");
    const names = (await home.lines("bundle", "list", "files", "--repo", "db", "--label", "a1")).map((line) =>
      line.replace(/^name:|, size:.*/g, ""),
    );
    assert.ok(names.includes("PG_VERSION"));
    assert.equal(names.filter((name) => name.startsWith("pg_wal/")).length, 1, "one transaction log, the last");
    assert.deepEqual(
      names.filter((name) => /postmaster|pg_internal|pgsql_tmp|^pg_(notify|subtrans|stat_tmp)\/./.test(name)),
      [],
    );
    assert.deepEqual(pod.left(), []);

    // One is restored, changed and saved, one restored, changed and discarded.
    pod = new Pod();
    const before = home.blobs().size;
    sidecar = pod.sidecar({
      a: `|=|p=${a}|sr=db|sl=a1|r=db|m=second|l=a2`,
      b: `;:p:${b};sr:other;sl:b1`,
    });
    const change = "update t set s = 'zz' where i = 7";
    wrapped = pod.wrapper("--", ...sql([a, change, COUNT], [b, change, COUNT]));
    assert.equal(await wrapped.end(), 0, wrapped.stderr);
    assert.equal(wrapped.stdout, "5000|zz\n5000|zz\n");
    ended = await sidecar.end();
    assert.equal(ended.code, 0, ended.stderr);
    assert.match(ended.stdout, /^a , db , \w{27} , a2\n$/);
    const second = await home.json("bundle", "get", "--repo", "db", "--label", "a2");
    assert.deepEqual(second.parents, [first.id]);
    assert.ok(home.blobs().size - before <= 6, "little more than what was changed is stored");
    assert.equal((await home.json("bundle", "list", "--repo", "other")).length, 1);

    // Streamed and saved; streamed and discarded; and both databases are as they were left.
    pod = new Pod();
    sidecar = pod.sidecar(
      { a: `;:p:${a};sr:db;sb:${second.id};r:db;m:third;l:a3`, b: `;:p:${b};sr:other;sl:b1` },
      { args: ["--stream"] },
    );
    wrapped = pod.wrapper("--", ...sql([a, COUNT, "insert into t values (0, 'zzz')"], [b, COUNT, "drop table t"]));
    assert.equal(await wrapped.end(), 0, wrapped.stderr);
    assert.match(wrapped.stdout, /^5000\|zz\n5000\|ff\w+\n$/);
    ended = await sidecar.end();
    assert.equal(ended.code, 0, ended.stderr);
    assert.deepEqual(await home.json("mount", "list"), []);
    assert.deepEqual(await home.json("scratch", "list"), []);
    const third = await home.json("bundle", "get", "--repo", "db", "--label", "a3");
    assert.deepEqual([third.message, third.parents], ["third", [second.id]]);

    // An application that fails takes its changes along, and both sides end.
    pod = new Pod();
    sidecar = pod.sidecar({
      a: `;:p:${a};sr:db;sl:a3;r:db;m:never;l:never`,
      b: `;:p:${b};sr:other;sl:b1;r:other;m:never;st`,
    });
    const query = sql([a, COUNT, "drop table t"], [b, COUNT, "drop table t"]).at(-1);
    wrapped = pod.wrapper("--", "sh", "-c", `${query}; exit 7`);
    assert.equal(await wrapped.end(), 7, wrapped.stderr);
    assert.match(wrapped.stdout, /^5001\|zzz\n5000\|ff\w+\n$/);
    ended = await sidecar.end();
    assert.equal(ended.code, 1, ended.stderr);
    assert.match(ended.stderr, /application failed.*exit status 7/);
    assert.equal((await home.json("bundle", "list", "--repo", "db")).length, 3);
    assert.equal((await home.json("bundle", "list", "--repo", "other")).length, 1);
    assert.deepEqual(await home.json("scratch", "list"), []);
    assert.deepEqual(pod.left(), []);
  });

  it("refuses what it cannot run, and the application hears why", async () => {
    let pod = new Pod();
    const [a = 0] = await freePorts(1);
    await home.repo();
    mkdirSync(home.path("old"));
    writeFileSync(home.path("old", "PG_VERSION"), "9.6\n");
    const old = await home.upload(home.path("old"), "--label", "old");
    mkdirSync(home.path("none"));
    await home.upload(home.path("none"), "--label", "none");
    const cases: [string, RegExp][] = [
      [
        `;:p:${a};sr:birds;sl:old`,
        new RegExp(`bundle ${old} of birds is of PostgreSQL 9.6, and here is ${programs?.major}`),
      ],
      [`;:p:${a};sr:birds;sl:none`, /holds no PostgreSQL data directory/],
      [`;:p:${a};sr:birds;sl:lost`, /label lost is not in repo birds/],
      [";:r:birds;m:x", /the port \(p\) is missing/],
    ];
    const refuse = async ([text, why]: [string, RegExp]) => {
      const pod = new Pod();
      const sidecar = pod.sidecar({ a: text });
      const wrapped = pod.wrapper("--", "echo", "ran");
      assert.equal(await wrapped.end(), 1, wrapped.stderr);
      assert.match(wrapped.stderr, why);
      assert.equal(wrapped.stdout, "");
      const ended = await sidecar.end();
      assert.equal(ended.code, 1, ended.stderr);
      assert.match(ended.stderr, why);
    };
    await Promise.all(cases.map(refuse));

    // Another server on the port is not taken for ours.
    const other = createServer().listen(0, "127.0.0.1");
    after(() => other.close());
    await new Promise((resolve) => other.once("listening", resolve));
    pod = new Pod();
    const refused = pod.sidecar({ a: `;:p:${(other.address() as { port: number }).port}` });
    const waiting = pod.wrapper("--", "echo", "ran");
    assert.equal(await waiting.end(), 1, waiting.stderr);
    assert.match(waiting.stderr, /PostgreSQL ended by itself.*[Aa]ddress already in use/);
    assert.equal((await refused.end()).code, 1);

    // A sidecar that is started again does not save databases that no application has seen.
    pod = new Pod();
    writeFileSync(join(pod.coord, "initdbupload"), "");
    const again = await pod.sidecar({ a: `;:p:${a};r:birds;m:empty;l:empty` }).end();
    assert.equal(again.code, 1);
    assert.match(again.stderr, /initdbupload is there already/);

    // Where mismatches are to be ignored, the database is a fresh one.
    pod = new Pod();
    const sidecar = pod.sidecar({ a: `;:p:${a};sr:birds;sl:old` }, { opts: ";V:true" });
    const wrapped = pod.wrapper("--", ...sql([a, "select 1"]));
    assert.equal(await wrapped.end(), 0, wrapped.stderr);
    assert.equal((await sidecar.end()).code, 0);
    assert.deepEqual(pod.left(), []);
  });

  describe("ends when the other side is killed", { concurrency: 7 }, () => {
    /** A pod of which the sidecar is ready and the application has changed a table and runs until it is let go on. */
    async function running(label: string, env: NodeJS.ProcessEnv = {}) {
      const pod = new Pod();
      const [port = 0] = await freePorts(1);
      const sidecar = pod.sidecar({ a: `;:p:${port};sr:db;sl:a1;r:db;m:saved;l:${label}` }, { env });
      const go = join(pod.temporary, "go");
      const [, , query] = sql([port, "insert into t values (0, 'zzz')", COUNT]);
      const wrapped = pod.wrapper("--", "sh", "-c", `${query} && until [ -e ${go} ]; do sleep 0.1; done`);
      return { pod, port, sidecar, wrapped, goOn: () => writeFileSync(go, "") };
    }
    const CHANGED = /5001\|zzz/;
    const isSaved = async (label: string) =>
      (await home.lines("label", "list", "--repo", "db")).some((line) => line.startsWith(`${label} ,`));

    it("the sidecar, while its database starts", async () => {
      const { pod, sidecar, wrapped } = await running("k1");
      await sidecar.says(/downloading/);
      sidecar.process.kill("SIGKILL");
      assert.equal(await wrapped.end(), 1, wrapped.stderr);
      assert.match(wrapped.stderr, /postgres sidecar has been silent.*not run/);
      assert.ok(!existsSync(join(pod.coord, "initdbupload")));
    });

    it("the sidecar, while the application runs", async () => {
      const { port, sidecar, wrapped } = await running("k2");
      await wrapped.says(CHANGED);
      sidecar.process.kill("SIGKILL");
      // Its server goes with it, and then the application.
      await stopped(port);
      assert.equal(await wrapped.end(), 1, wrapped.stderr);
      assert.match(wrapped.stderr, /postgres sidecar has been silent/);
      assert.ok(!(await isSaved("k2")));
    });

    it("the sidecar, during the upload", async () => {
      const { port, wrapped, goOn } = await running("k3", { DATAMON_FAULT: "put.bundles:1:kill" });
      await wrapped.says(CHANGED);
      goOn();
      assert.equal(await wrapped.end(), 1, wrapped.stderr);
      assert.match(wrapped.stderr, /postgres sidecar has been silent/);
      await stopped(port);
      assert.ok(!(await isSaved("k3")));
    });

    it("the wrapper, while the application runs", async () => {
      const { pod, port, sidecar, wrapped, goOn } = await running("k4");
      await wrapped.says(CHANGED);
      wrapped.process.kill("SIGKILL");
      const ended = await sidecar.end();
      goOn();
      assert.equal(ended.code, 1);
      assert.match(ended.stderr, /wrapper has been silent/);
      await stopped(port);
      // What the application had done is still there, and can be saved with the command that the log has.
      const command = /run: datamon (bundle upload .*)/.exec(ended.stderr)?.[1];
      assert.ok(command, ended.stderr);
      await home.ok(...command.split(" "));
      assert.ok(await isSaved("k4"));
      assert.equal(pod.left().filter((name) => name !== "go").length, 1);
    });

    it("the wrapper, during the upload, which is finished", async () => {
      const { sidecar, wrapped, goOn } = await running("k5");
      await wrapped.says(CHANGED);
      goOn();
      await sidecar.says(/VACUUM/);
      wrapped.process.kill("SIGKILL");
      assert.equal((await sidecar.end()).code, 0);
      assert.ok(await isSaved("k5"));
    });

    it("the server, which the application hears of", async () => {
      const { pod, sidecar, wrapped } = await running("k6");
      await wrapped.says(CHANGED);
      const [place = ""] = pod.left();
      const [pid] = readFileSync(join(pod.temporary, place, "a", "postmaster.pid"), "utf8").split("\n");
      process.kill(Number(pid), "SIGKILL");
      assert.equal((await sidecar.end()).code, 1);
      assert.equal(await wrapped.end(), 1, wrapped.stderr);
      assert.match(wrapped.stderr, /PostgreSQL ended by itself, with SIGKILL/);
    });

    it("the pod, by SIGTERM, and keeps the data", async () => {
      const { pod, sidecar, wrapped, goOn } = await running("k7");
      await wrapped.says(CHANGED);
      wrapped.process.kill("SIGKILL");
      sidecar.process.kill("SIGTERM");
      const ended = await sidecar.end();
      goOn();
      assert.equal(ended.code, 143, ended.stderr);
      assert.match(ended.stderr, /not saved; kept in .*: to save it, run: datamon bundle upload/);
      assert.equal(pod.left().filter((name) => name !== "go").length, 1);
    });
  });
});
