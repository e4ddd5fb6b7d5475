/** The real command line as a child process, each test with a home directory of its own. */

import assert from "node:assert/strict";
import { type ChildProcess, execFile, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";
import type { ByteString } from "../../src/cas/index.ts";
import { snapshot } from "../fs/transfer/support.ts";

export const CHECKOUT = fileURLToPath(new URL("../..", import.meta.url));
export const LAUNCHER = join(CHECKOUT, "scripts", "datamon");
/** A published dataset: some 70 files, 40 MB. */
export const DATASET = join(CHECKOUT, "node_modules", "vega-datasets", "data");

/** Compiled sources, which would otherwise be compiled anew for each new home directory: half the time of these tests. */
const COMPILED = process.env.NODE_COMPILE_CACHE ?? join(CHECKOUT, "node_modules", ".cache", "datamon-compiled");

/** How a command ended and what it printed. */
export interface Ended {
  /** Exit status; null where a signal ended it. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** `$HOME`; where absent, there is no such variable. */
  readonly home?: string;
  readonly cwd?: string;
  /** Variables besides HOME and PATH. */
  readonly env?: NodeJS.ProcessEnv;
  /** The launcher, by default the checkout's. */
  readonly launcher?: string;
  readonly uid?: number;
}

const MOST_OUTPUT = 64 * 1024 * 1024;

/** Runs `datamon <args>` to its end. */
export function run(args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const { launcher = LAUNCHER, cwd = tmpdir(), uid } = options;
  const settings = {
    cwd,
    env: environmentOf(options),
    maxBuffer: MOST_OUTPUT,
    ...(uid !== undefined && { uid, gid: uid }),
  };
  return new Promise((resolve) => {
    const child = execFile(launcher, args, settings, (_, stdout, stderr) => {
      resolve({ code: child.exitCode, signal: child.signalCode, stdout, stderr });
    });
  });
}

function environmentOf({ home, env }: RunOptions): NodeJS.ProcessEnv {
  return {
    PATH: process.env.PATH,
    TZ: "UTC",
    NODE_COMPILE_CACHE: COMPILED,
    ...(home !== undefined && { HOME: home }),
    ...env,
  };
}

/** A command that is still running. */
export class Running {
  readonly process: ChildProcess;
  readonly #ended: Promise<unknown>;
  stdout = "";
  stderr = "";

  constructor(args: readonly string[], options: RunOptions) {
    const { launcher = LAUNCHER, cwd = tmpdir() } = options;
    this.process = spawn(launcher, args, { cwd, env: environmentOf(options), stdio: ["ignore", "pipe", "pipe"] });
    this.#ended = once(this.process, "close");
    this.process.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.stdout += text;
    });
    this.process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.stderr += text;
    });
  }

  async end(): Promise<Ended> {
    await this.#ended;
    const { exitCode: code, signalCode: signal } = this.process;
    return { code, signal, stdout: this.stdout, stderr: this.stderr };
  }

  /** Waits until it has said something on stderr that matches. */
  async says(pattern: RegExp): Promise<void> {
    await until(
      () => pattern.test(this.stderr) || this.process.exitCode !== null || this.process.signalCode !== null,
      () => this.stderr,
    );
    assert.match(this.stderr, pattern);
  }
}

/** A temporary directory that is the home of its commands, and their working directory. */
export class Home {
  readonly root: string;

  constructor(root = realpathSync(mkdtempSync(join(tmpdir(), "datamon-e2e-")))) {
    this.root = root;
  }

  path(...names: string[]): string {
    return join(this.root, ...names);
  }

  /** Below `~/.datamon`. */
  own(...names: string[]): string {
    return this.path(".datamon", ...names);
  }

  async run(...args: string[]): Promise<Ended> {
    return await this.runWith({}, ...args);
  }

  async runWith(env: NodeJS.ProcessEnv, ...args: string[]): Promise<Ended> {
    return await run(args, { home: this.root, cwd: this.root, env });
  }

  start(...args: string[]): Running {
    return this.startWith({}, ...args);
  }

  startWith(env: NodeJS.ProcessEnv, ...args: string[]): Running {
    return new Running(args, { home: this.root, cwd: this.root, env });
  }

  /** Runs what is to succeed and returns its stdout. */
  async ok(...args: string[]): Promise<string> {
    const ended = await this.run(...args);
    assert.equal(ended.code, 0, `datamon ${args.join(" ")}: ${ended.stderr}`);
    return ended.stdout;
  }

  /** The lines of the same. */
  async lines(...args: string[]): Promise<string[]> {
    const text = await this.ok(...args);
    if (text === "") return [];
    assert.ok(text.endsWith("\n"), `the last line of ${JSON.stringify(text)} has an end`);
    return text.slice(0, -1).split("\n");
  }

  // biome-ignore lint/suspicious/noExplicitAny: each command prints a shape of its own
  async json(...args: string[]): Promise<any> {
    return JSON.parse(await this.ok(...args, "-o", "json"));
  }

  /** Runs what is to fail with this status, without a stack trace or data, and returns its stderr. */
  async fails(code: number, ...args: string[]): Promise<string> {
    const ended = await this.run(...args);
    assertFailed(ended, code, args.join(" "));
    return ended.stderr;
  }

  /** Makes a repo. */
  async repo(name = "birds"): Promise<void> {
    await this.ok(
      "repo",
      "create",
      "--repo",
      name,
      "--description",
      "counts",
      "--name",
      "Ada",
      "--email",
      "ada@example.org",
    );
  }

  /** Uploads a folder as a bundle of `birds` and returns its id. */
  async upload(path: string, ...args: string[]): Promise<string> {
    const stdout = await this.ok(
      "bundle",
      "upload",
      "--repo",
      "birds",
      "--path",
      path,
      "--message",
      "counted",
      ...args,
    );
    return uploadedId(stdout);
  }

  /** Downloads a bundle of `birds` to a new folder and returns that. */
  async download(...args: string[]): Promise<string> {
    const destination = realpathSync(mkdtempSync(this.path("downloaded-")));
    await this.ok("bundle", "download", "--repo", "birds", "--destination", destination, ...args);
    return destination;
  }

  /** Unmounts and returns the id of the bundle that was committed. */
  async commit(directory: string): Promise<string> {
    return committedId(await this.ok("unmount", directory));
  }

  /** Objects of the blob store with their inode numbers and times: one that is put again shows. */
  blobs(): Map<string, string> {
    const found = new Map<string, string>();
    const root = this.own("store", "blob", "blobs");
    if (!existsSync(root)) return found;
    for (const name of readdirSync(root, { recursive: true, encoding: "utf8" }).sort()) {
      const { ino, mtimeNs, isFile } = statOf(join(root, name));
      if (isFile) found.set(name, `${ino} ${mtimeNs}`);
    }
    return found;
  }

  /** The files below a directory of the store, such as `meta/catalogs`. */
  objects(...names: string[]): string[] {
    const root = this.own("store", ...names);
    if (!existsSync(root)) return [];
    return readdirSync(root, { recursive: true, encoding: "utf8" })
      .map((name) => join(root, name))
      .filter((path) => statSync(path).isFile())
      .sort();
  }

  /** Another home with the same files. */
  copy(): Home {
    const copy = new Home();
    const copied = spawnSync("cp", ["-a", `${this.root}/.`, copy.root]);
    assert.equal(copied.status, 0, String(copied.stderr));
    return copy;
  }

  /** Unmounts all that is mounted below, ends the daemons, and removes the directory. */
  async end(): Promise<void> {
    this.kill();
    for (const directory of mountedBelow(this.root).reverse()) spawnSync("umount", ["-l", directory]);
    rmSync(this.root, { recursive: true, force: true, maxRetries: 5 });
  }

  /** Kills what serves mounts of this home: supervisors first, which would start others. */
  kill(): void {
    for (const pid of [...this.#serving("supervisor"), ...this.#serving("daemon")]) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It has ended by itself.
      }
    }
  }

  /** Daemons of mounts of this home that run. */
  daemons(): number[] {
    return this.#serving("daemon");
  }

  #serving(role: "supervisor" | "daemon"): number[] {
    const records = this.own("mounts");
    if (!existsSync(records)) return [];
    return readdirSync(records).flatMap((id) => {
      const file = join(records, id, "mount.json");
      if (!existsSync(file)) return [];
      const record: { state: string } & Record<string, { pid: number }> = JSON.parse(readFileSync(file, "utf8"));
      const pid = record[role]?.pid;
      return record.state !== "ended" && pid !== undefined && runs(pid) ? [pid] : [];
    });
  }
}

/** Asserts that a command failed with this status, said why in a sentence, and printed no data. */
export function assertFailed(ended: Ended, code: number, what: string): void {
  assert.equal(ended.code, code, `datamon ${what}: ${ended.signal ?? ""} ${ended.stdout} ${ended.stderr}`);
  assert.match(ended.stderr, /^datamon: \S/m, what);
  assert.doesNotMatch(ended.stderr, /^\s+at .*:\d+:\d+/m, "no stack trace");
}

/** The id in the last line of what `bundle upload` prints. */
export function uploadedId(stdout: string): string {
  const id = /(?:^|\n)Uploaded bundle id:([0-9A-Za-z]{27})\n$/.exec(stdout)?.[1];
  assert.ok(id, `the last line names a bundle: ${JSON.stringify(stdout)}`);
  return id;
}

/** The id that `unmount` and `scratch commit` print. */
export function committedId(stdout: string): string {
  const id = /^bundle: ([0-9A-Za-z]{27})$/m.exec(stdout)?.[1];
  assert.ok(id, `a line names the bundle: ${JSON.stringify(stdout)}`);
  return id;
}

function statOf(path: string): { ino: bigint; mtimeNs: bigint; isFile: boolean } {
  const stat = statSync(path, { bigint: true });
  return { ino: stat.ino, mtimeNs: stat.mtimeNs, isFile: stat.isFile() };
}

/** Mount points at or below a directory, outer ones first. */
export function mountedBelow(root: string): string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) =>
      (line.split(" ")[4] ?? "").replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8))),
    )
    .filter((directory) => directory === root || directory.startsWith(`${root}/`));
}

/** True while the process runs; one that ended and was not waited for does not. */
export function runs(pid: number): boolean {
  try {
    return !readFileSync(`/proc/${pid}/stat`, "latin1").includes(") Z ");
  } catch {
    return false;
  }
}

/** Waits for a condition that another process brings about. */
export async function until(condition: () => boolean, state: () => string): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    assert.ok(turns < 1500, `waited in vain: ${state()}`);
    await setTimeout(20);
  }
}

/** Runs a program that is to succeed and returns its stdout. */
export async function sh(program: string, ...args: string[]): Promise<string> {
  return await new Promise((resolve, reject) => {
    execFile(program, args, { maxBuffer: MOST_OUTPUT }, (error, stdout) => (error ? reject(error) : resolve(stdout)));
  });
}

/** Writes a file with the directories above it. */
export function write(path: string, content: string | Buffer): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
}

/** A small tree that has a bit of everything and takes no time. */
export function smallTree(root: string): string {
  write(join(root, "robin.csv"), "robin,1\n");
  write(join(root, "2024", "wren.csv"), "wren,2\n");
  write(join(root, "2024", "notes.txt"), "seen at dawn\n");
  mkdirSync(join(root, "empty"));
  return root;
}

/** What a bundle keeps of an entry besides its name. */
export type Attributes = Map<ByteString, Record<string, unknown>>;

/** Asserts that two trees have the same content, by `diff`, and the same attributes. One may be mounted. */
export async function assertSame(actual: string, expected: string, channel = "kernel"): Promise<void> {
  await sh("diff", "-r", "--no-dereference", expected, actual);
  assertSameAttributes(attributes(actual), attributes(expected), channel);
}

/** Asserts that two trees are the same, as far as the channel shows through which one was seen. */
export function assertSameAttributes(actual: Attributes, expected: Attributes, channel = "kernel"): void {
  const differing: unknown[] = [];
  for (const path of new Set([...actual.keys(), ...expected.keys()])) {
    const [found, wanted] = [actual, expected].map((tree) => shown(tree.get(path), channel));
    if (!isDeepStrictEqual(found, wanted)) differing.push({ path, found, wanted });
  }
  assert.deepEqual(differing.slice(0, 5), []);
}

/** Everything that a bundle keeps of a tree, by path; what a mount says of its files besides is left out. */
export function attributes(root: string): Attributes {
  const tree = snapshot(root);
  for (const entry of tree.values()) {
    entry.xattrs = (entry.xattrs as [string, Buffer][]).filter(([name]) => !name.startsWith("user.datamon."));
  }
  return tree;
}

/** The binding of fuse-native hands times over in milliseconds. */
function shown(entry: Record<string, unknown> | undefined, channel: string): Record<string, unknown> | undefined {
  if (entry === undefined || channel !== "fuse-native") return entry;
  return { ...entry, mtimeNs: (entry.mtimeNs as bigint) / 1_000_000n };
}
