/** Writable mounts of the command line, each with its supervisor, for tests that kill what serves them. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { MountRecord } from "../../src/fs/mount-record.ts";
import { detach } from "../../src/fs/mount-table.ts";

const ENTRY = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));

/** A home directory for commands, with a local store and the repo `birds`. */
export class MountHome {
  readonly root: string;
  readonly #mounts: SupervisedMount[] = [];

  private constructor(root: string) {
    this.root = root;
  }

  static async make(): Promise<MountHome> {
    const home = new MountHome(realpathSync(mkdtempSync(join(tmpdir(), "datamon-supervised-"))));
    await home.run(
      "repo",
      "create",
      "--repo",
      "birds",
      "--description",
      "c",
      "--name",
      "A",
      "--email",
      "a@example.org",
    );
    return home;
  }

  path(...names: string[]): string {
    return join(this.root, ...names);
  }

  /** Runs a command that is to succeed and returns its stdout. */
  async run(...args: string[]): Promise<string> {
    const env = { ...process.env, HOME: this.root, DATAMON_CONFIG: "" };
    return await new Promise((resolve, reject) => {
      execFile(process.execPath, [ENTRY, ...args], { env, cwd: this.root }, (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else reject(new Error(`datamon ${args.join(" ")}: ${stderr}`));
      });
    });
  }

  /** What is known of the mounts that are there. */
  records(): MountRecord[] {
    const mounts = this.path(".datamon", "mounts");
    const records = readdirSync(mounts).map((id) => readFileSync(join(mounts, id, "mount.json"), "utf8"));
    return records.map((text) => JSON.parse(text) as MountRecord).filter(({ state }) => state === "mounted");
  }

  /** Makes a bundle of a folder and returns its id. */
  async upload(folder: string): Promise<string> {
    const printed = await this.run("bundle", "upload", "--repo", "birds", "--path", folder, "--message", "uploaded");
    return /id:(\S+)/.exec(printed)![1]!;
  }

  /** Mounts writable; daemons may die as often as they like. */
  async mount(directory: string, spec = "birds", ...flags: string[]): Promise<SupervisedMount> {
    const mounted = new SupervisedMount(this, directory);
    this.#mounts.push(mounted);
    await mounted.begin(spec, flags);
    return mounted;
  }

  /** Mounts a bundle read-only for as long as `use` takes. */
  async show<T>(bundle: string, directory: string, use: () => T | Promise<T>): Promise<T> {
    await this.run("mount", `birds@${bundle}`, directory);
    try {
      return await use();
    } finally {
      await this.run("unmount", directory);
    }
  }

  /** Ends all mounts and removes the directory. */
  async end(): Promise<void> {
    for (const mounted of this.#mounts) await mounted.giveUp();
    rmSync(this.root, { recursive: true, force: true });
  }
}

/** A mount of a `MountHome`. */
export class SupervisedMount {
  readonly directory: string;
  readonly #home: MountHome;
  #scratch = "";
  #isThere = false;
  #flags: string[] = [];
  /** Process id of the supervisor; 0 where there is none. */
  supervisor = 0;

  constructor(home: MountHome, directory: string) {
    this.#home = home;
    this.directory = directory;
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  /** The scratch that holds its changes. */
  get scratch(): string {
    return this.#scratch;
  }

  async begin(spec: string, flags: string[]): Promise<void> {
    this.#flags = flags;
    await this.#mount("--rw", "--message", "changed", spec);
  }

  /** Kills the daemon; the supervisor starts another. */
  killDaemon(): void {
    killDaemon(this.supervisor);
  }

  /** Kills the supervisor and the daemon; programs get errors from here on. */
  async killBoth(): Promise<void> {
    const { supervisor } = this;
    this.supervisor = 0;
    if (supervisor === 0) return;
    for (const pid of killTree(supervisor)) while (runs(pid)) await setTimeout(5);
  }

  /** Mounts what a mount left whose supervisor and daemon are dead. */
  async resume(): Promise<void> {
    await this.#mount("--resume", this.#scratch);
  }

  /** Unmounts; returns the id of the bundle that was committed, undefined where nothing had changed. */
  async unmount(): Promise<string | undefined> {
    const printed = await this.#home.run("unmount", this.directory);
    this.#isThere = false;
    this.supervisor = 0;
    return /^bundle: (\S+)$/m.exec(printed)?.[1];
  }

  /** Takes the mount away, whatever state it is in; one that was unmounted is left alone. */
  async giveUp(): Promise<void> {
    if (!this.#isThere) return;
    this.#isThere = false;
    await this.killBoth();
    await detach(this.directory, { lazy: true }).catch(() => {});
  }

  async #mount(...args: string[]): Promise<void> {
    this.#isThere = true;
    await this.#home.run("mount", "--give-up-after", "100000", ...this.#flags, ...args, this.directory);
    const record = this.#home.records().find(({ directory }) => directory === this.directory);
    assert.ok(record?.supervisor && record.scratch, `${this.directory} is mounted`);
    this.supervisor = record.supervisor.pid;
    this.#scratch = record.scratch;
  }
}

/** Kills the present daemon of a supervisor, if there is one just now. */
export function killDaemon(supervisor: number): void {
  for (const pid of childrenOf(supervisor)) kill(pid);
}

/** Kills a supervisor, and its daemon before anybody could replace it; returns whom. */
export function killTree(supervisor: number): number[] {
  kill(supervisor, "SIGSTOP");
  // A daemon that it is starting at this moment is its child once it has stopped.
  while (/\) [^TZX] /.test(statOf(supervisor)));
  const children = childrenOf(supervisor);
  kill(supervisor);
  for (const pid of children) kill(pid);
  return [supervisor, ...children];
}

function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").split(" ").filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

function kill(pid: number, signal: NodeJS.Signals = "SIGKILL"): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended by itself.
  }
}

/** True while anything of the process is left that may hold a file open; a thread can take longer to die than the first. */
export function runs(pid: number): boolean {
  const stat = statOf(pid);
  if (stat === "") return false;
  if (!/\) [ZX] /.test(stat)) return true;
  try {
    return readdirSync(`/proc/${pid}/task`).length > 1;
  } catch {
    return false;
  }
}

/** As proc_pid_stat(5) has it; empty where there is no such process. */
function statOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return "";
  }
}
