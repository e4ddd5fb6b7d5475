/** Starting a mount: the process that asks for it, the supervisor, and the daemon that answers over a pipe. */

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, writeSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { extname, join } from "node:path";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import * as z from "zod/mini";
import { DatamonError } from "../cas/index.ts";
import type { MountEvents, MountOutcome } from "./mount.ts";
import {
  createRecordDirectory,
  errorOf,
  failureOf,
  failureSchema,
  logFile,
  type MountRecord,
  readRecord,
  removeRecord,
} from "./mount-record.ts";
import { REPORT_FD, type SupervisorTask } from "./supervision/messages.ts";

const reportSchema = z.union([z.object({ ready: z.literal(true) }), failureSchema]);

/** How a mount is looked after. */
export interface Care {
  /** At how many deaths of its daemon within a minute the mount is given up. */
  readonly deaths: number;
}

/** At how many deaths of its daemon within a minute a mount is given up where nothing else is said. */
export const DEATHS = 5;

/**
 * Starts `datamon <args> --daemon <id>` in the background and waits until its mount answers. Those
 * arguments must lead to `runDaemon`. Throws what the daemon met where it does not come to that.
 *
 * @param home directory for what is this user's
 * @param care with it, a supervisor starts the daemon, with `--supervised`, and again where it dies
 */
export async function startMount(home: string, args: readonly string[], care: Care | undefined): Promise<MountRecord> {
  const id = await createRecordDirectory(home);
  try {
    const child = spawnDaemon(home, id, args, care);
    const exited = new Promise((resolve) => child.once("exit", resolve));
    const report = await reportOf(child);
    // What failed has cleaned up, and is gone, when the user is told.
    if (report === undefined || "kind" in report) await exited;
    child.unref();
    if (report === undefined) throw await unexplained(home, id);
    if ("kind" in report) throw errorOf(report);
    const record = await readRecord(home, id);
    if (record === undefined) throw await unexplained(home, id);
    return record;
  } catch (error) {
    await removeRecord(home, id);
    throw error;
  }
}

/**
 * Makes this process the supervisor of the mount that `datamon <args> --daemon <id> --supervised`
 * serves; it is over when the mount is. Call it where nothing is open and nothing under way.
 */
export async function becomeSupervisor(home: string, args: readonly string[], care: Care): Promise<never> {
  const id = await createRecordDirectory(home);
  const command = supervisorCommand(home, id, args, care, true);
  process.execve?.(command[0] as string, command, environment(home) as Record<string, string>);
  throw new DatamonError("unsupported", "this system cannot replace a process by another");
}

/** Its end and its report are to be asked for in the same turn, or they might come unnoticed. */
function spawnDaemon(home: string, id: string, args: readonly string[], care: Care | undefined): ChildProcess {
  const [program, ...rest] =
    care === undefined
      ? daemonCommand(withFlags(args, "--daemon", id))
      : supervisorCommand(home, id, args, care, false);
  const log = openSync(logFile(home, id), "a", 0o600);
  try {
    return spawn(program as string, rest, {
      detached: true,
      env: environment(home),
      stdio: ["ignore", log, log, "pipe"],
    });
  } finally {
    closeSync(log);
  }
}

function daemonCommand(args: readonly string[]): string[] {
  const entry = process.argv[1];
  if (entry === undefined) throw new DatamonError("unsupported", "a mount in the background needs the datamon command");
  return [process.execPath, ...process.execArgv, entry, ...args];
}

/** Adds flags where they are read as such: after a `--` words are arguments. */
function withFlags(args: readonly string[], ...flags: string[]): string[] {
  const end = args.indexOf("--");
  return end === -1 ? [...args, ...flags] : [...args.slice(0, end), ...flags, ...args.slice(end)];
}

function supervisorCommand(
  home: string,
  id: string,
  args: readonly string[],
  { deaths }: Care,
  foreground: boolean,
): string[] {
  const command = daemonCommand(withFlags(args, "--daemon", id, "--supervised"));
  const task: SupervisorTask = { command, log: logFile(home, id), deaths, foreground };
  const program = join(import.meta.dirname, "supervision", `supervisor${extname(import.meta.url)}`);
  return [process.execPath, program, JSON.stringify(task)];
}

/** What was compiled before is not compiled again: that would cost a supervisor more memory than all that it does. */
function environment(home: string): NodeJS.ProcessEnv {
  return { NODE_COMPILE_CACHE: join(home, "cache", "compile"), ...process.env };
}

/** What the daemon reports; undefined where it ends without a word. */
async function reportOf(child: ChildProcess): Promise<z.infer<typeof reportSchema> | undefined> {
  const pipe = child.stdio[REPORT_FD] as Readable;
  const started = new Promise<never>((_, reject) => child.once("error", reject));
  const report = await Promise.race([text(pipe), started]);
  return report === "" ? undefined : reportSchema.parse(JSON.parse(report));
}

/** Lines of a dead daemon's log that an error shows. */
const LAST_LINES = 5;

async function unexplained(home: string, id: string): Promise<DatamonError> {
  const log = await readFile(logFile(home, id), "utf8").catch(() => "");
  const last = log.trimEnd().split("\n").slice(-LAST_LINES).join("\n");
  return new DatamonError("io", `the mount's daemon ended before the mount answered${last === "" ? "" : `:\n${last}`}`);
}

/**
 * The daemon's side: runs `serve`, which is to call `runMount` with the events it is given, and
 * reports to the process that started it. Once the mount answers, the daemon keeps no directory in
 * use, and ends its mount where nobody waits for it any more.
 */
export async function runDaemon(serve: (events: MountEvents) => Promise<MountOutcome>): Promise<MountOutcome> {
  let reported = false;
  try {
    return await serve({
      onReady() {
        process.chdir("/");
        reported = true;
        report({ ready: true });
      },
    });
  } catch (error) {
    if (!reported) report(failureOf(error));
    throw error;
  }
}

function report(message: z.infer<typeof reportSchema>): void {
  writeSync(REPORT_FD, JSON.stringify(message));
  closeSync(REPORT_FD);
}
