/** Mounts from their start to their commit, through the command line and real mounts. */

import assert from "node:assert/strict";
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { cp, mkdir, mkdtemp, open, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { detach } from "../../src/fs/mount-table.ts";

const ENTRY = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));

interface Ended {
  status: number;
  stdout: string;
  stderr: string;
}

interface Listed {
  repo: string;
  bundle: string | null;
  mode: string;
  directory: string;
  daemonPid: number;
  uncommitted: number;
  lastCommit: string | null;
}

let home: string;
let directory: string;
const daemons = new Set<number>();
const supervisors = new Set<number>();

/** Runs the command line with a home directory of its own. */
async function datamon(...args: string[]): Promise<Ended> {
  return await new Promise((resolve) => {
    execFile(process.execPath, [ENTRY, ...args], { env: environment(), cwd: home }, (error, stdout, stderr) => {
      resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

function environment(): NodeJS.ProcessEnv {
  return { ...process.env, HOME: home, DATAMON_CONFIG: "" };
}

/** Runs the command line, which is to succeed, and returns what it prints on stdout. */
async function ok(...args: string[]): Promise<string> {
  const ended = await datamon(...args);
  assert.equal(ended.status, 0, `datamon ${args.join(" ")}: ${ended.stderr}`);
  return ended.stdout;
}

/** Mounts in the background and returns the daemon's pid. */
async function mount(...args: string[]): Promise<number> {
  await ok("mount", ...args, "birds", directory);
  const records = join(home, ".datamon", "mounts");
  for (const id of await readdir(records)) {
    const record = JSON.parse(await readFile(join(records, id, "mount.json"), "utf8"));
    if (record.state === "ended") continue;
    if (record.supervisor !== undefined) supervisors.add(record.supervisor.pid);
    daemons.add(record.daemon.pid);
    return record.daemon.pid;
  }
  assert.fail("the mount has no record");
}

async function mountWritable(...args: string[]): Promise<number> {
  return await mount("--rw", "--message", "changed", ...args);
}

/** The one mount there is. */
async function listed(): Promise<Listed> {
  const mounts = JSON.parse(await ok("mount", "list", "-o", "json")) as Listed[];
  assert.equal(mounts.length, 1, "one mount is listed");
  return mounts[0] as Listed;
}

async function newestBundle(): Promise<string> {
  const bundles = JSON.parse(await ok("bundle", "list", "--repo", "birds", "-o", "json")) as { id: string }[];
  return bundles.at(-1)?.id as string;
}

/** The content of a file of the newest bundle. */
async function committed(name: string): Promise<Buffer> {
  const destination = join(home, "downloaded");
  await rm(destination, { recursive: true, force: true });
  await ok("bundle", "download", "--repo", "birds", "--destination", destination);
  return await readFile(join(destination, name));
}

function bundleOf(stdout: string): string {
  const id = /^bundle: (\S+)$/m.exec(stdout)?.[1];
  assert.ok(id, `a bundle id in ${JSON.stringify(stdout)}`);
  return id;
}

/** True while the process runs; what has ended stays in the table of processes where nobody takes note of it. */
function runs(pid: number): boolean {
  try {
    return !readFileSync(`/proc/${pid}/stat`, "latin1").includes(") Z ");
  } catch {
    return false;
  }
}

/** Kills all that serves the mounts there are. */
async function killAll(): Promise<void> {
  // First those that would start others.
  for (const pid of [...supervisors, ...daemons]) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await ended(pid);
  }
  supervisors.clear();
}

/** Waits until a process that is not a child of this one has ended. */
async function ended(pid: number): Promise<void> {
  while (runs(pid)) await setTimeout(20);
  daemons.delete(pid);
}

/** A home directory with a repo of one bundle. */
let template: string;

before(async () => {
  template = home = await mkdtemp(join(tmpdir(), "datamon-lifecycle-"));
  await ok("repo", "create", "--repo", "birds", "--description", "counts", "--name", "A", "--email", "a@example.com");
  const files = join(home, "files");
  await mkdir(join(files, "2024"), { recursive: true });
  await writeFile(join(files, "robin.csv"), "robin,1\n");
  await writeFile(join(files, "2024", "wren.csv"), "wren,2\n");
  await ok("bundle", "upload", "--repo", "birds", "--path", files, "--message", "first", "--label", "v1");
});

after(() => rm(template, { recursive: true, force: true }));

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "datamon-lifecycle-"));
  directory = join(home, "mnt");
  await cp(template, home, { recursive: true });
});

afterEach(async () => {
  await killAll();
  await detach(directory, { lazy: true }).catch(() => {});
  await rm(home, { recursive: true, force: true });
});

for (const channel of ["kernel", "fuse-native"]) {
  describe(`a mount in the background, through ${channel}`, () => {
    it("shows the bundle, is listed, and goes", async () => {
      const pid = await mount("--channel", channel);
      assert.equal(await readFile(join(directory, "2024", "wren.csv"), "utf8"), "wren,2\n");
      const { repo, bundle, mode, directory: where, daemonPid, uncommitted } = await listed();
      assert.deepEqual(
        { repo, bundle, mode, where, daemonPid, uncommitted },
        { repo: "birds", bundle: await newestBundle(), mode: "ro", where: directory, daemonPid: pid, uncommitted: 0 },
      );
      await assert.rejects(writeFile(join(directory, "new"), ""), { code: "EROFS" });
      await ok("unmount", directory);
      assert.equal(existsSync(directory), false, "the directory that mounting made is gone");
      assert.equal(await ok("mount", "list"), "");
      assert.equal(runs(pid), false);
    });

    it("commits what was changed when it is unmounted", async () => {
      const first = await newestBundle();
      await mountWritable("--channel", channel, "--label", "v2");
      await writeFile(join(directory, "robin.csv"), "robin,7\n");
      await rename(join(directory, "2024"), join(directory, "2025"));
      assert.ok((await listed()).uncommitted > 0);
      const bundle = bundleOf(await ok("unmount", directory));
      assert.notEqual(bundle, first);
      assert.match(await ok("label", "get", "--repo", "birds", "--label", "v2"), new RegExp(bundle));
      assert.equal(String(await committed("2025/wren.csv")), "wren,2\n");
      assert.deepEqual(await readdir(join(home, ".datamon", "scratch")), []);
    });

    it("commits after a plain umount", async () => {
      const pid = await mountWritable("--channel", channel);
      await writeFile(join(directory, "lark.csv"), "lark,3\n");
      await detach(directory);
      await ended(pid);
      assert.equal(String(await committed("lark.csv")), "lark,3\n");
    });

    it("commits on SIGTERM, in use or not", async () => {
      const pid = await mountWritable("--channel", channel);
      const busy = await open(join(directory, "lark.csv"), "w");
      await busy.write("lark,4\n");
      process.kill(pid, "SIGTERM");
      await ended(pid);
      await busy.close().catch(() => {});
      assert.equal(String(await committed("lark.csv")), "lark,4\n");
    });
  });
}

describe("a mount", () => {
  it("makes no bundle where nothing was changed", async () => {
    const first = await newestBundle();
    await mountWritable();
    assert.equal(await ok("unmount", directory), "");
    assert.equal(await newestBundle(), first);
    assert.deepEqual(await readdir(join(home, ".datamon", "scratch")), []);
  });

  it("in the foreground prints its bundle and ends on SIGINT", async () => {
    const args = ["mount", "--foreground", "--rw", "--message", "own", "birds", directory];
    const child = spawn(process.execPath, [ENTRY, ...args], { env: environment(), stdio: ["ignore", "pipe", "pipe"] });
    const output = collect(child);
    await until(
      () => /mounted on/.test(output.stderr),
      () => output.stderr,
    );
    await writeFile(join(directory, "own"), "here");
    child.kill("SIGINT");
    const [status] = await output.closed;
    assert.equal(status, 0, output.stderr);
    assert.equal(bundleOf(output.stdout), await newestBundle());
    assert.equal(String(await committed("own")), "here");
  });

  it("is refused where files are, and where a mount is", async () => {
    await mkdir(directory);
    await writeFile(join(directory, "file"), "");
    const refused = await datamon("mount", "birds", directory);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /is not empty/);
    await rm(join(directory, "file"));
    await mount();
    const again = await datamon("mount", "birds", directory);
    assert.equal(again.status, 1);
    assert.match(again.stderr, /is a mount of datamon already/);
    await ok("unmount", directory);
    assert.ok(existsSync(directory), "a directory that was there stays");
  });

  it("that cannot be made says why and leaves nothing", async () => {
    const missing = await datamon("mount", "birds@nothing", directory);
    assert.equal(missing.status, 2, missing.stderr);
    assert.match(missing.stderr, /nothing/);
    assert.deepEqual(await readdir(join(home, ".datamon", "mounts")), []);
    assert.equal(existsSync(directory), false);
  });

  it("that is in use is not unmounted, and says who uses it", async () => {
    await mountWritable();
    const busy = await open(join(directory, "robin.csv"));
    const refused = await datamon("unmount", directory);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, new RegExp(`in use by .*pid ${process.pid}`));
    await busy.close();
    await ok("unmount", directory);
  });

  it("is unmounted although another mount namespace has a copy of it", async (t) => {
    if (process.getuid?.() !== 0) return t.skip("needs root to make a mount namespace");
    await mountWritable();
    await writeFile(join(directory, "robin"), "robin,2\n");
    const command = ["--mount", "--propagation", "private", "sh", "-c", "echo made; exec sleep 600"];
    const other = spawn("unshare", command, { stdio: ["ignore", "pipe", "inherit"] });
    try {
      await once(other.stdout, "data");
      bundleOf(await ok("unmount", directory));
    } finally {
      other.kill("SIGKILL");
    }
    assert.equal((await committed("robin")).toString(), "robin,2\n");
  });

  it("nobody has heard of is not found", async () => {
    await mkdir(directory);
    assert.equal((await datamon("unmount", directory)).status, 2);
  });
});

describe("a daemon that is killed with its supervisor", () => {
  it("leaves every byte that was fsynced to scratch commit", async () => {
    await mountWritable();
    const content = randomBytes(3_000_000);
    const file = await open(join(directory, "big"), "w");
    await file.write(content);
    await file.sync();
    await writeFile(join(directory, "robin.csv"), "robin,9\n");
    await killAll();
    await file.close().catch(() => {});

    const dead = await datamon("unmount", directory);
    assert.equal(dead.status, 1);
    assert.match(dead.stderr, /died before the changes were committed/);
    const scratch = /datamon scratch commit (\S+)/.exec(dead.stderr)?.[1];
    assert.ok(scratch, dead.stderr);
    assert.deepEqual(await readdir(directory), [], "the dead mount is gone");

    const bundle = bundleOf(await ok("scratch", "commit", scratch));
    assert.equal(await newestBundle(), bundle);
    assert.ok((await committed("big")).equals(content));
    assert.equal(String(await committed("robin.csv")), "robin,9\n");
  });

  it("is not listed, and its place can be mounted on again", async () => {
    await mount();
    await killAll();
    assert.deepEqual(JSON.parse(await ok("mount", "list", "-o", "json")), []);
    await mount();
    assert.equal(await readFile(join(directory, "robin.csv"), "utf8"), "robin,1\n");
    await ok("unmount", directory);
  });
});

describe("a commit that fails", () => {
  it("keeps the scratch, says how to retry, and the retry works", async () => {
    await mountWritable("--label", "v3");
    await writeFile(join(directory, "robin.csv"), "robin,8\n");
    const store = join(home, ".datamon", "store");
    await rename(store, `${store}.away`);
    await writeFile(store, "in the way");

    const failed = await datamon("unmount", directory);
    assert.equal(failed.status, 1);
    assert.match(failed.stderr, /could not be committed/);
    const scratch = /datamon scratch commit (\S+)/.exec(failed.stderr)?.[1];
    assert.ok(scratch, failed.stderr);

    await rm(store);
    await rename(`${store}.away`, store);
    const bundle = bundleOf(await ok("scratch", "commit", scratch));
    assert.match(await ok("label", "get", "--repo", "birds", "--label", "v3"), new RegExp(bundle));
    assert.equal(String(await committed("robin.csv")), "robin,8\n");
  });
});

/** What a child prints, and how it ends. */
function collect(child: ChildProcess) {
  const output = {
    stdout: "",
    stderr: "",
    closed: new Promise<[number | null]>((resolve) => child.on("close", (status) => resolve([status]))),
  };
  child.stdout?.on("data", (text) => {
    output.stdout += text;
  });
  child.stderr?.on("data", (text) => {
    output.stderr += text;
  });
  return output;
}

/** Waits for a condition that another process brings about; the test's own time limit ends a wait in vain. */
async function until(condition: () => boolean, state: () => string): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    assert.ok(turns < 1000, `waited in vain: ${state()}`);
    await setTimeout(20);
  }
}
