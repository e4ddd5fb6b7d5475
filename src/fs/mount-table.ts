/** What is mounted where, and taking mounts away: by the system's own programs, so that it works for root and everybody else. */

import { spawn, spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { lstat, readdir, readFile, readlink } from "node:fs/promises";
import { dirname } from "node:path";
import { DatamonError } from "../cas/index.ts";

/** A mounted file system. */
export interface MountPoint {
  readonly directory: string;
  /** Device number of the file system, `major:minor`; it is not used again before the file system is gone. */
  readonly device: string;
  /** Such as `ext4` or `fuse.datamon`. */
  readonly type: string;
}

/** The file system mounted last on `directory`, an absolute path without symbolic links; undefined where none is. */
export async function mountedAt(directory: string): Promise<MountPoint | undefined> {
  if (process.platform !== "linux") return await mountedByDevice(directory);
  return (await readMountTable()).findLast((mount) => mount.directory === directory);
}

/** True for a mount of Datamon's; where the system does not tell the type, for any. */
export function isDatamon(mount: MountPoint | undefined): boolean {
  return mount !== undefined && (mount.type === "fuse.datamon" || mount.type === "unknown");
}

/** True while the file system of that device is mounted anywhere that this process can see. */
export async function isMounted(mount: MountPoint): Promise<boolean> {
  if (process.platform !== "linux") return (await mountedByDevice(mount.directory))?.device === mount.device;
  return (await readMountTable()).some(({ device }) => device === mount.device);
}

/**
 * Every mount of this process's mount namespace, in the order of mounting. Format:
 * `36 35 98:0 /root /directory options tags… - type source options`, blanks and backslashes as `\ooo` (proc_pid_mountinfo(5)).
 */
async function readMountTable(): Promise<MountPoint[]> {
  const table = await readFile("/proc/self/mountinfo", "utf8");
  return table.split("\n").flatMap((line) => {
    const [place, origin] = line.split(" - ");
    const [, , device, , directory] = place?.split(" ") ?? [];
    const [type] = origin?.split(" ") ?? [];
    if (device === undefined || directory === undefined || type === undefined) return [];
    return [{ directory: unescapeOctal(directory), device, type }];
  });
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/** Where there is no table of mounts to read: a directory on another device than its parent is a mount point. */
async function mountedByDevice(directory: string): Promise<MountPoint | undefined> {
  const [here, above] = await Promise.all([lstat(directory), lstat(dirname(directory))]);
  return here.dev === above.dev ? undefined : { directory, device: String(here.dev), type: "unknown" };
}

/**
 * Unmounts what is mounted on `directory`; resolves when it is gone from there. With `lazy` a file
 * system in use goes from the tree at once and ends with its last open file. DatamonError "conflict"
 * where it is in use, "denied" where the user may not.
 */
export async function detach(directory: string, options: { lazy?: boolean } = {}): Promise<void> {
  const tried: string[] = [];
  for (const [program, ...args] of unmountCommands(directory, options.lazy === true)) {
    const outcome = await run(program as string, args);
    if (outcome === undefined) continue;
    if (outcome.status === 0) return;
    if (/busy/i.test(outcome.errors)) {
      const users = await usersOf(directory);
      throw new DatamonError(
        "conflict",
        `${directory} is in use${users.length === 0 ? "" : ` by ${users.join(", ")}`}`,
        {
          hint: "Close the files and leave the directories that are open below it, then unmount again.",
        },
      );
    }
    tried.push(outcome.errors.trim() || `${program} ended with status ${outcome.status}`);
  }
  const why = tried.length === 0 ? "neither umount nor fusermount3 is installed" : tried.join("; ");
  const denied = /not permitted|permission denied|superuser|not mounted by/i.test(why);
  throw new DatamonError(denied ? "denied" : "io", `cannot unmount ${directory}: ${why}`);
}

function unmountCommands(directory: string, lazy: boolean): string[][] {
  if (process.platform === "darwin") return [["umount", ...(lazy ? ["-f"] : []), directory]];
  const asRoot = ["umount", ...(lazy ? ["-l"] : []), "--", directory];
  const asUser = (program: string) => [program, lazy ? "-uz" : "-u", "--", directory];
  const helpers = [asUser("fusermount3"), asUser("fusermount")];
  return process.getuid?.() === 0 ? [asRoot, ...helpers] : helpers;
}

/** How a program ended, or undefined where it is not installed. */
async function run(program: string, args: string[]): Promise<{ status: number | null; errors: string } | undefined> {
  return await new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: "/",
      env: { ...process.env, LC_ALL: "C" },
      stdio: ["ignore", "ignore", "pipe"],
    });
    let errors = "";
    child.stderr.on("data", (text) => {
      errors += text;
    });
    child.on("error", (error: NodeJS.ErrnoException) => (error.code === "ENOENT" ? resolve(undefined) : reject(error)));
    child.on("close", (status) => resolve({ status, errors }));
  });
}

/** Most processes that a message names. */
const NAMED_USERS = 5;

/** The processes that have a file or their working directory below `directory`, such as `bash (pid 17)`; those that may be looked at. */
async function usersOf(directory: string): Promise<string[]> {
  const found: string[] = [];
  const pids = (await readdir("/proc").catch(() => [])).filter((name) => /^\d+$/.test(name));
  for (const pid of pids) {
    const handles = await readdir(`/proc/${pid}/fd`).catch(() => []);
    const links = [`/proc/${pid}/cwd`, `/proc/${pid}/root`, ...handles.map((handle) => `/proc/${pid}/fd/${handle}`)];
    const targets = await Promise.all(links.map((link) => readlink(link).catch(() => "")));
    if (!targets.some((target) => target === directory || target.startsWith(`${directory}/`))) continue;
    const command = await readFile(`/proc/${pid}/comm`, "utf8").catch(() => "a process");
    found.push(`${command.trim()} (pid ${pid})`);
    if (found.length === NAMED_USERS) break;
  }
  return found;
}

/** Where the kernel has a directory for each FUSE connection, if its file system is mounted. */
const CONNECTIONS = "/sys/fs/fuse/connections";

/** Mounts that file system for itself alone: containers seldom have it. */
const ABORT = `mount -t fusectl fusectl ${CONNECTIONS} && echo 1 >"${CONNECTIONS}/$1/abort"`;

/**
 * Ends a FUSE mount's connection with all its requests, where this system lets whoever mounted do
 * so; false where it does not.
 *
 * @param device the mount's, as the table of mounts has it
 */
export function abortConnection(device: string): boolean {
  const connection = device.split(":")[1] as string;
  try {
    writeFileSync(`${CONNECTIONS}/${connection}/abort`, "1", { flag: "r+" });
    return true;
  } catch {
    if (process.getuid?.() !== 0) return false;
    const command = ["--mount", "sh", "-c", ABORT, "sh", connection];
    return spawnSync("unshare", command, { stdio: "ignore" }).status === 0;
  }
}
