/** What is measured: the plain file system, Datamon's channels, and other file systems over FUSE. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chownSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { datamon } from "./harness.ts";
import type { Work } from "./reader.ts";

const READER = join(import.meta.dirname, "reader.ts");
/** How long several readers are given to come up before they begin together, in milliseconds. */
const HEAD_START = 800;

/** Whoever runs commands: this process, or another user behind a prefix. */
export interface User {
  readonly prefix: readonly string[];
  readonly uid: number;
}

export const self: User = { prefix: [], uid: process.getuid?.() ?? 0 };

/** A tree or file that readers can be let loose on. */
export interface System {
  readonly name: string;
  readonly path: string;
  readonly user: User;
  /** Takes it away again, where it is a mount. */
  end(): void;
  /** The process that serves it, where it is Datamon's. */
  readonly daemon?: () => number;
}

/** Runs a command to its end, returns its standard output; a failure throws with what it printed. */
export function run(user: User, command: readonly string[], environment: Record<string, string> = {}): string {
  const [program, ...args] = [...user.prefix, ...command] as [string, ...string[]];
  const result = spawnSync(program, args, { cwd: "/", env: { ...process.env, ...environment }, encoding: "utf8" });
  if (result.status !== 0)
    throw new Error(`${command.join(" ")} failed:\n${result.stdout}${result.stderr}${result.error ?? ""}`);
  return result.stdout;
}

/** Lets the reader do one piece of work on a system. */
export function work(system: System, ...args: string[]): Work {
  return JSON.parse(run(system.user, [process.execPath, READER, ...args])) as Work;
}

/** Lets several readers begin at one time; from the first beginning to the last end. */
export async function workTogether(system: System, works: readonly string[][]): Promise<Work> {
  const at = String(Date.now() + HEAD_START);
  const done = await Promise.all(
    works.map(async (args) => {
      const [program, ...rest] = [...system.user.prefix, process.execPath, READER, "--at", at, ...args];
      const child = spawn(program!, rest, { cwd: "/", stdio: ["ignore", "pipe", "inherit"] });
      let text = "";
      child.stdout.on("data", (piece) => {
        text += piece;
      });
      const [status] = await once(child, "close");
      if (status !== 0) throw new Error(`reader ${args.join(" ")} failed`);
      return JSON.parse(text) as Work;
    }),
  );
  return {
    began: Math.min(...done.map((one) => one.began)),
    ended: Math.max(...done.map((one) => one.ended)),
    operations: done.reduce((sum, one) => sum + one.operations, 0),
    bytes: done.reduce((sum, one) => sum + one.bytes, 0),
  };
}

export function plain(name: string, path: string): System {
  return { name, path, user: self, end() {} };
}

export interface DatamonMount {
  readonly name: string;
  readonly user: User;
  readonly home: string;
  readonly directory: string;
  readonly flags: readonly string[];
  /** A repo, or `REPO@LABEL`. */
  readonly bundle: string;
}

/** Mounts with Datamon; `end` also removes what is to be forgotten of a writable mount before. */
export function mountDatamon({ name, user, home, directory, flags, bundle }: DatamonMount): System {
  const environment = { HOME: home };
  run(user, [datamon, "mount", ...flags, bundle, directory], environment);
  return {
    name,
    path: directory,
    user,
    end: () => void run(user, [datamon, "unmount", directory], environment),
    daemon() {
      const mounts = JSON.parse(run(user, [datamon, "mount", "list", "-o", "json"], environment));
      return mounts.find((mount: { directory: string }) => mount.directory === directory).daemonPid;
    },
  };
}

/** Mounts a squashfs image. */
export async function mountSquashfs(image: string, directory: string): Promise<System> {
  mkdirSync(directory, { recursive: true });
  run(self, ["squashfuse_ll", image, directory]);
  return await mounted("squashfuse_ll", directory);
}

/** Mounts a directory with rclone. */
export async function mountRclone(source: string, directory: string, flags: readonly string[]): Promise<System> {
  mkdirSync(directory, { recursive: true });
  run(self, ["rclone", "mount", source, directory, "--config", "", "--daemon", ...flags]);
  return await mounted("rclone mount", directory);
}

async function mounted(name: string, directory: string): Promise<System> {
  for (let turn = 0; turn < 100; turn += 1) {
    const there = readFileSync("/proc/self/mounts", "utf8").includes(` ${directory} `);
    if (there) return { name, path: directory, user: self, end: () => void run(self, ["umount", directory]) };
    await setTimeout(50);
  }
  throw new Error(`${name} did not mount ${directory}`);
}

const NOBODY = 65534;

/** A mount namespace in which /dev/fuse is open to everybody, as distributions set it up. */
const OPEN_FUSE = [
  "mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse",
  "echo ready && exec sleep infinity",
].join(" && ");

/** An ordinary user who may mount; only root can make one. */
export class OrdinaryUser implements User {
  readonly prefix: readonly string[];
  readonly uid = NOBODY;
  readonly #holder: ChildProcess;

  private constructor(holder: ChildProcess) {
    this.#holder = holder;
    const identity = ["--reuid", String(NOBODY), "--regid", String(NOBODY), "--clear-groups"];
    this.prefix = ["nsenter", `--mount=/proc/${holder.pid}/ns/mnt`, "--", "setpriv", ...identity, "--"];
  }

  static async make(): Promise<OrdinaryUser> {
    const holder = spawn("unshare", ["--mount", "sh", "-c", OPEN_FUSE], { stdio: ["ignore", "pipe", "inherit"] });
    await once(holder.stdout, "data");
    return new OrdinaryUser(holder);
  }

  /** Lets go of the namespace, and of what is still mounted in it. */
  end(): void {
    this.#holder.kill();
  }
}

/** Makes a home of a user, whose data is in `store` where that is given, else in the home itself. */
export function makeHome(path: string, user: User, store?: string): string {
  mkdirSync(join(path, ".datamon"), { recursive: true, mode: 0o700 });
  if (store !== undefined) {
    const config = {
      metadata: `file://${store}/meta`,
      blob: `file://${store}/blob`,
      name: "bench",
      email: "bench@localhost",
    };
    writeFileSync(join(path, ".datamon/datamon.yaml"), JSON.stringify(config));
    chownSync(join(path, ".datamon/datamon.yaml"), user.uid, user.uid);
  }
  for (const made of [path, join(path, ".datamon")]) chownSync(made, user.uid, user.uid);
  return path;
}
