/** A mount in the background: the process that asks for it, and the daemon that answers over a pipe. */

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, writeSync } from "node:fs";
import { open, readFile } from "node:fs/promises";
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

/** The descriptor on which a daemon reports to who started it. */
const REPORT_FD = 3;

const reportSchema = z.union([z.object({ ready: z.literal(true) }), failureSchema]);

/**
 * Starts `datamon <args> --daemon <id>` in the background and waits until its mount answers. Those
 * arguments must lead to `runDaemon`. Throws what the daemon met where it does not come to that.
 *
 * @param home directory for what is this user's
 */
export async function startMount(home: string, args: readonly string[]): Promise<MountRecord> {
  const id = await createRecordDirectory(home);
  try {
    const child = await spawnDaemon(logFile(home, id), [...args, "--daemon", id]);
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

async function spawnDaemon(log: string, args: string[]): Promise<ChildProcess> {
  const entry = process.argv[1];
  if (entry === undefined) throw new DatamonError("unsupported", "a mount in the background needs the datamon command");
  const file = await open(log, "a", 0o600);
  try {
    return spawn(process.execPath, [...process.execArgv, entry, ...args], {
      detached: true,
      stdio: ["ignore", file.fd, file.fd, "pipe"],
    });
  } finally {
    await file.close();
  }
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
