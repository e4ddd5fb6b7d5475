/** Mounts whose daemons die: programs that use them see a pause and no error. */

import assert from "node:assert/strict";
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  realpathSync,
  renameSync,
  rmdirSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import koffi from "koffi";
import { type ByteString, bytesOf, hashOf } from "../../src/cas/index.ts";
import type { MountRecord } from "../../src/fs/mount-record.ts";
import { detach, mountedAt } from "../../src/fs/mount-table.ts";
import { XATTR_CREATE } from "../../src/fs/namespace.ts";
import type { SupervisorTask } from "../../src/fs/supervision/messages.ts";
import { at, type DaemonTask, Fixture } from "./fixture.ts";
import { type LoadReport, type Manifest, manifestOf } from "./load.ts";
import { noise } from "./reading.ts";
import { listXattrs, removeXattr, setXattr } from "./xattrs.ts";

const ENTRY = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const SUPERVISOR = fileURLToPath(new URL("../../src/fs/supervision/supervisor.ts", import.meta.url));

/** How long the tests under load kill daemons, in seconds: once each second. */
const SECONDS = Number(process.env.DATAMON_KILL_SECONDS ?? "3");

/** For tests that kill more often than a supervisor puts up with by itself. */
const PATIENT = ["--give-up-after", "100000"];

let home: string;
let directory: string;
const pids = new Set<number>();

before(async () => {
  home = realpathSync(await mkdtemp(join(tmpdir(), "datamon-supervisor-")));
  await ok("repo", "create", "--repo", "birds", "--description", "counts", "--name", "A", "--email", "a@example.com");
  const files = join(home, "files");
  await mkdir(files);
  for (let index = 0; index < 120; index++) await writeFile(join(files, `small-${index}`), noise(index, 37 * index));
  for (let index = 0; index < 4; index++)
    await writeFile(join(files, `large-${index}`), noise(index, 3_000_000 + index));
  await ok("bundle", "upload", "--repo", "birds", "--path", files, "--message", "first");
  await writeFile(join(home, "manifest"), JSON.stringify(manifestOf(files)));
});

after(() => rm(home, { recursive: true, force: true }));

beforeEach(() => {
  directory = join(home, "mnt");
});

afterEach(async () => {
  for (const pid of pids) kill(pid, "SIGKILL");
  pids.clear();
  await detach(directory, { lazy: true }).catch(() => {});
  for (const name of ["mounts", "scratch"]) await rm(join(home, ".datamon", name), { recursive: true, force: true });
});

interface Ended {
  status: number;
  stdout: string;
  stderr: string;
}

async function datamon(args: string[], environment: NodeJS.ProcessEnv = {}): Promise<Ended> {
  const env = { ...process.env, HOME: home, DATAMON_CONFIG: "", ...environment };
  return await new Promise((resolve) => {
    execFile(process.execPath, [ENTRY, ...args], { env, cwd: home }, (error, stdout, stderr) => {
      resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

async function ok(...args: string[]): Promise<string> {
  const ended = await datamon(args);
  assert.equal(ended.status, 0, `datamon ${args.join(" ")}: ${ended.stderr}`);
  return ended.stdout;
}

/** The record of the mount that is there; its directory is removed with it. */
async function record(): Promise<MountRecord> {
  const mounts = join(home, ".datamon", "mounts");
  const [id] = await readdir(mounts);
  return JSON.parse(await readFile(join(mounts, id!, "mount.json"), "utf8"));
}

async function log(): Promise<string> {
  const { id } = await record();
  return await readFile(join(home, ".datamon", "mounts", id, "log"), "utf8");
}

async function mount(args: string[] = [], environment: NodeJS.ProcessEnv = {}): Promise<MountRecord> {
  const ended = await datamon(["mount", ...args, "birds", directory], environment);
  assert.equal(ended.status, 0, ended.stderr);
  const made = await record();
  pids.add(made.supervisor!.pid).add(made.daemon.pid);
  return made;
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended by itself.
  }
}

function runs(pid: number): boolean {
  try {
    return !readFileSync(`/proc/${pid}/stat`, "latin1").includes(") Z ");
  } catch {
    return false;
  }
}

async function gone(pid: number): Promise<void> {
  while (runs(pid)) await setTimeout(20);
}

/** Kills the daemon and waits until another serves the mount. */
async function replaceDaemon(): Promise<void> {
  const { daemon } = await record();
  kill(daemon.pid, "SIGKILL");
  for (;;) {
    const now = await record();
    if (now.daemon.pid !== daemon.pid) {
      pids.add(now.daemon.pid);
      return;
    }
    await setTimeout(20);
  }
}

const AT_FDCWD = -100;
const RENAME_EXCHANGE = 2;

/** renameat2(2): the names change places. */
function exchange(one: string, other: string): void {
  const call = koffi.load(null).func("int renameat2(int, const char*, int, const char*, unsigned int)");
  assert.equal(call(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE), 0);
}

/** mkfifo(3) */
function makeNode(path: string): void {
  assert.equal(koffi.load(null).func("int mkfifo(const char*, unsigned int)")(path, 0o600), 0);
}

/** A program of load.ts under way. */
class Load {
  readonly #child: ChildProcess;
  readonly #output: Promise<string>;
  readonly #closed: Promise<unknown[]>;

  constructor(...args: string[]) {
    const load = join(import.meta.dirname, "load.ts");
    this.#child = spawn(process.execPath, [load, ...args], { stdio: ["pipe", "pipe", "inherit"] });
    this.#output = text(this.#child.stdout!);
    this.#closed = once(this.#child, "close");
    pids.add(this.#child.pid!);
  }

  async end(): Promise<LoadReport> {
    this.#child.stdin!.end();
    const output = await this.#output;
    assert.deepEqual(await this.#closed, [0, null]);
    return JSON.parse(output) as LoadReport;
  }
}

/** Kills the daemon once a second for as long as tests are to do so; returns how often. */
async function killAgainAndAgain(): Promise<number> {
  let kills = 0;
  for (const end = performance.now() + SECONDS * 1000; performance.now() < end; kills++) {
    await setTimeout(1000);
    const { daemon } = await record();
    pids.add(daemon.pid);
    kill(daemon.pid, "SIGKILL");
  }
  return kills;
}

/** What the newest bundle holds, by downloading it. */
async function committed(below = ""): Promise<Manifest> {
  const destination = join(home, "downloaded");
  await rm(destination, { recursive: true, force: true });
  await ok("bundle", "download", "--repo", "birds", "--destination", destination);
  return manifestOf(join(destination, below));
}

describe("a mount whose daemon is killed again and again", () => {
  for (const mode of ["noopen", "passthrough", "plain"]) {
    it(`serves readers as if nothing had happened, open mode ${mode}`, async (t) => {
      await mount([...PATIENT, "--open-mode", mode]);
      const manifest = join(home, "manifest");
      const loads = ["warm", "warm", "cold", "cold"].map((kind) => new Load(kind, directory, manifest));
      const kills = await killAgainAndAgain();
      const reports = await Promise.all(loads.map((load) => load.end()));
      t.diagnostic(
        `${kills} kills; ${reports.map(({ rounds, bytes }) => `${rounds} files, ${bytes} bytes`).join("; ")}`,
      );
      assert.ok(reports.every(({ rounds }) => rounds > 0));
      await ok("unmount", directory);
    });
  }

  for (const mode of ["passthrough", "plain"]) {
    it(`serves writers as if nothing had happened, and commits what they wrote, open mode ${mode}`, async (t) => {
      await mount([...PATIENT, "--rw", "--message", "written", "--open-mode", mode]);
      const names = ["one", "two"].map((name) => `${name}-${mode}`);
      for (const name of names) mkdirSync(join(directory, name));
      const loads = names.map((name, index) => new Load("write", join(directory, name), String(index * 1000)));
      const kills = await killAgainAndAgain();
      const [one, two] = await Promise.all(loads.map((load) => load.end()));
      t.diagnostic(`${kills} kills; ${one!.rounds} and ${two!.rounds} rounds`);
      assert.ok(one!.rounds > 0 && two!.rounds > 0);
      const left = (await record()).restarts!;
      assert.ok(left > 0 && left <= kills, `${left} of ${kills} deaths were told`);
      await ok("unmount", directory);
      assert.deepEqual(await committed(names[0]), one!.manifest);
      assert.deepEqual(await committed(names[1]), two!.manifest);
    });
  }
});

describe("a change that was made by a daemon that died before it said so", () => {
  it("is answered by the next one and not made twice", async () => {
    // Each change is the first one of its daemon, and the last.
    await mount([...PATIENT, "--rw"], { DATAMON_FAULT: "change:1:kill" });
    const path = (name: string): string => join(directory, name);
    const raw = (name: string): ByteString => bytesOf(path(name));
    const changes: Array<() => void> = [
      () => mkdirSync(path("d")),
      () => writeFileSync(path("d/one"), "one", { flag: "wx" }),
      () => writeFileSync(path("d/two"), "two", { flag: "wx" }),
      () => linkSync(path("d/one"), path("d/other")),
      () => symlinkSync("one", path("d/link")),
      () => makeNode(path("d/node")),
      () => renameSync(path("d/other"), path("d/moved")),
      () => exchange(path("d/one"), path("d/two")),
      () => renameSync(path("d/moved"), path("d/third")),
      () => writeFileSync(path("d/gone"), "gone", { flag: "wx" }),
      () => renameSync(path("d/third"), path("d/gone")),
      () => setXattr(raw("d/two"), "user.a", Buffer.from("x"), XATTR_CREATE),
      () => removeXattr(raw("d/two"), "user.a"),
      () => unlinkSync(path("small-3")),
      () => unlinkSync(path("d/link")),
      () => mkdirSync(path("d/empty")),
      () => rmdirSync(path("d/empty")),
    ];
    for (const change of changes) change();
    assert.deepEqual(readdirSync(path("d")), ["gone", "node", "one", "two"]);
    assert.equal(readFileSync(path("d/one"), "utf8"), "two");
    assert.equal(readFileSync(path("d/gone"), "utf8"), "one");
    assert.equal(lstatSync(path("d/gone")).nlink, 2);
    assert.deepEqual(listXattrs(raw("d/two")), []);
    assert.ok(!readdirSync(directory).includes("small-3"));
    // A daemon writes itself down after it has begun to serve, so the record may be behind for a moment.
    for (let looks = 0; (await record()).restarts! < changes.length - 1 && looks < 500; looks++) await setTimeout(20);
    assert.ok((await record()).restarts! >= changes.length - 1);
    await ok("unmount", directory);
  });
});

describe("a mount whose daemon dies", () => {
  it("keeps what is open without a name, and lets go of it at last", async () => {
    await mount(["--rw"]);
    const before = openSync(join(directory, "small-7"), "r");
    const kept = openSync(join(directory, "new"), "wx+");
    await appendFile(join(directory, "new"), "kept");
    unlinkSync(join(directory, "new"));
    await replaceDaemon();
    unlinkSync(join(directory, "small-7"));
    await replaceDaemon();
    const content = Buffer.alloc(1000);
    assert.equal(readSync(kept, content, 0, 1000, 0), 4);
    assert.equal(readSync(before, content, 0, 1000, 0), 7 * 37);
    assert.deepEqual(content.subarray(0, 7 * 37), noise(7, 7 * 37));
    closeSync(kept);
    closeSync(before);
    const { scratch } = await record();
    await ok("unmount", directory);
    assert.equal((await readdir(join(home, ".datamon", "scratch"))).includes(scratch!), false);
    assert.equal("small-7" in (await committed()), false);
  });

  it("has files opened in the way that they are open already, which the kernel insists on", async () => {
    await mount(["--rw", "--open-mode", "passthrough"]);
    const before = openSync(join(directory, "small-5"), "r");
    // From here on the kernel could be given the file, were it not open.
    writeFileSync(join(directory, "small-5"), "written");
    await replaceDaemon();
    assert.equal(readFileSync(join(directory, "small-5"), "utf8"), "written");
    closeSync(before);
    await ok("unmount", directory);
  });

  it("is unmounted and committed as ever, also while no daemon is there", async () => {
    const { supervisor } = await mount(["--rw"]);
    await writeFile(join(directory, "lark"), "lark");
    kill((await record()).daemon.pid, "SIGKILL");
    await detach(directory);
    await gone(supervisor!.pid);
    assert.ok("lark" in (await committed()));
  });

  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    it(`is committed when its supervisor gets ${signal}, also while no daemon is there`, async () => {
      const { supervisor, daemon } = await mount(["--rw"]);
      await writeFile(join(directory, `on-${signal}`), "here");
      kill(daemon.pid, "SIGKILL");
      kill(supervisor!.pid, signal);
      await gone(supervisor!.pid);
      assert.ok(`on-${signal}` in (await committed()));
      assert.equal(await mountedAt(directory), undefined);
    });
  }

  it("is given up after five deaths in a minute; what was written is kept", async () => {
    const { supervisor, scratch } = await mount(["--rw"]);
    await writeFile(join(directory, "kept"), "kept");
    for (let death = 1; death < 5; death++) await replaceDaemon();
    assert.equal(await readFile(join(directory, "kept"), "utf8"), "kept");
    const text = await log();
    kill((await record()).daemon.pid, "SIGKILL");
    await gone(supervisor!.pid);
    assert.doesNotMatch(text, /giving up/);
    assert.match(await log(), /died \(SIGKILL\), 5 times within a minute: giving up/);
    assert.equal(await mountedAt(directory), undefined);
    const told = await datamon(["unmount", directory]);
    assert.equal(told.status, 1);
    assert.match(told.stderr, new RegExp(`datamon scratch commit ${scratch}`));
    await ok("scratch", "commit", scratch!);
    assert.ok("kept" in (await committed()));
  });

  it("keeps its scratch from others until the next daemon has it", async () => {
    const { scratch, supervisor, daemon } = await mount(["--rw"]);
    await writeFile(join(directory, "mine"), "mine");
    // The supervisor cannot start another while it is stopped.
    kill(supervisor!.pid, "SIGSTOP");
    kill(daemon.pid, "SIGKILL");
    for (const verb of ["commit", "discard"]) {
      assert.match((await datamon(["scratch", verb, scratch!])).stderr, /is mounted at/);
    }
    const [listed] = JSON.parse(await ok("scratch", "list", "-o", "json")) as { alive: boolean }[];
    assert.equal(listed?.alive, true);
    kill(supervisor!.pid, "SIGCONT");
    assert.equal(await readFile(join(directory, "mine"), "utf8"), "mine");
    await ok("unmount", directory);
  });

  it("answers a read that waited for the store when the daemon died", async (t) => {
    const fixture = new Fixture(t);
    const slow = noise(41, 20_000);
    const spec = await fixture.snapshot([{ path: at("slow"), mode: 0o100644, content: slow }]);
    const daemon: DaemonTask = {
      kind: "kernel",
      directory: fixture.directory,
      spec,
      store: pathToFileURL(join(fixture.root, "store")).href,
      cacheDirectory: join(fixture.root, "cache"),
      name: "datamon:repo@bundle",
      allowOther: false,
      stall: hashOf(slow),
    };
    const program = join(import.meta.dirname, "supervised-daemon.ts");
    const command = [process.execPath, program, JSON.stringify(daemon)];
    const task: SupervisorTask = { command, log: join(fixture.root, "log"), deaths: 5, foreground: true };
    const supervisor = spawn(process.execPath, [SUPERVISOR, JSON.stringify(task)], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const ended = once(supervisor, "exit");
    t.after(() => supervisor.kill("SIGKILL"));
    const [line] = await once(supervisor.stdout, "data");
    const pid = Number(/serving (\d+)/.exec(String(line))?.[1]);
    const reader = spawn("cat", ["slow"], { cwd: fixture.directory, stdio: ["ignore", "pipe", "inherit"] });
    const content = reader.stdout.toArray();
    // Its state is D once it waits for the daemon.
    while (!/\) [DS] /.test(readFileSync(`/proc/${reader.pid}/stat`, "latin1"))) await setTimeout(10);
    await setTimeout(200);
    kill(pid, "SIGKILL");
    assert.ok(Buffer.concat(await content).equals(slow));
    await detach(fixture.directory);
    assert.deepEqual(await ended, [0, null]);
  });
});

describe("a supervisor that is killed", () => {
  it("leaves a daemon that serves on and commits", async () => {
    const { supervisor, daemon } = await mount(["--rw"]);
    kill(supervisor!.pid, "SIGKILL");
    await writeFile(join(directory, "after"), "after");
    while ((await record()).supervisor !== undefined) await setTimeout(20);
    assert.match(await log(), /the supervisor died/);
    const [listed] = JSON.parse(await ok("mount", "list", "-o", "json")) as Record<string, unknown>[];
    assert.equal(listed?.supervisorPid, null);
    assert.equal(listed?.daemonPid, daemon.pid);
    await ok("unmount", directory);
    assert.ok("after" in (await committed()));
  });

  it("and its daemon, too, leave what the next mount takes away", async () => {
    const { supervisor, daemon, scratch } = await mount(["--rw"]);
    await writeFile(join(directory, "both"), "both");
    kill(supervisor!.pid, "SIGKILL");
    kill(daemon.pid, "SIGKILL");
    await gone(daemon.pid);
    assert.throws(() => readdirSync(directory), { code: /^(ENOTCONN|ECONNABORTED)$/ });
    assert.deepEqual(JSON.parse(await ok("mount", "list", "-o", "json")), []);
    await mount();
    await ok("unmount", directory);
    await ok("scratch", "commit", scratch!);
    assert.ok("both" in (await committed()));
    await stat(directory);
  });

  it("and its daemon, too, leave changes that go on where they stopped", async () => {
    const { supervisor, daemon, scratch, repo } = await mount(["--rw", "--label", "kept"]);
    await writeFile(join(directory, "begun"), "begun");
    unlinkSync(join(directory, "small-9"));
    const refused = await datamon(["mount", "--resume", scratch!, join(home, "elsewhere")]);
    assert.match(refused.stderr, /is mounted at/);
    kill(supervisor!.pid, "SIGKILL");
    kill(daemon.pid, "SIGKILL");
    await gone(daemon.pid);
    await ok("mount", "--resume", scratch!.slice(0, 6), directory);
    const resumed = await record();
    pids.add(resumed.supervisor!.pid).add(resumed.daemon.pid);
    assert.deepEqual([resumed.scratch, resumed.repo], [scratch, repo]);
    assert.equal(await readFile(join(directory, "begun"), "utf8"), "begun");
    await appendFile(join(directory, "begun"), ", done");
    await ok("unmount", directory);
    const label = await ok("label", "get", "--repo", "birds", "--label", "kept");
    assert.ok(label.length > 0);
    const bundle = await committed();
    assert.deepEqual(["begun" in bundle, "small-9" in bundle], [true, false]);
  });
});
