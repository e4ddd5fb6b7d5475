/**
 * What is known of a mount outside its daemon: `<home>/mounts/<id>/mount.json`, written by the
 * daemon alone, and `log` beside it, to which its supervisor writes, too.
 */

import { randomBytes } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as z from "zod/mini";
import { DatamonError, type ErrorCode, ioError, isErrno, ObjectNotFoundError } from "../cas/index.ts";
import { OPEN_MODES } from "./open-mode.ts";
import { isRunning } from "./process-identity.ts";

/** Why a mount or its commit failed: the parts of a `DatamonError`. */
export const failureSchema = z.object({
  kind: z.literal("failed"),
  code: z.custom<ErrorCode>((code) => typeof code === "string"),
  message: z.string(),
  hint: z.optional(z.string()),
});

const outcomeSchema = z.discriminatedUnion("kind", [
  /** A read-only mount ended. */
  z.object({ kind: z.literal("unmounted") }),
  /** A writable mount ended and nothing had been changed. */
  z.object({ kind: z.literal("unchanged") }),
  z.object({ kind: z.literal("committed"), bundle: z.string() }),
  /** A writable mount ended and was not to be committed: its changes stay in that scratch. */
  z.object({ kind: z.literal("kept"), scratch: z.string() }),
  failureSchema,
]);

const identitySchema = z.object({ pid: z.int().check(z.positive()), started: z.string() });

const recordSchema = z.object({
  id: z.string(),
  repo: z.string(),
  /** The bundle that is shown, or the base of the changes; absent for a tree that started empty. */
  bundle: z.optional(z.string()),
  /** When that bundle was made, ISO 8601. */
  bundleTime: z.optional(z.string()),
  /** The label by which it was asked for. */
  label: z.optional(z.string()),
  mode: z.enum(["ro", "rw"]),
  /** Absolute, without symbolic links. */
  directory: z.string(),
  channel: z.enum(["kernel", "fuse-native"]),
  daemon: identitySchema,
  /** The process that starts another daemon where this one dies; absent where there is none, or none any more. */
  supervisor: z.optional(identitySchema),
  /** How many daemons of this mount died and were replaced. */
  restarts: z.optional(z.number()),
  /** How files are opened, and why so; there once it is mounted. */
  openMode: z.optional(z.enum(OPEN_MODES)),
  openModeReason: z.optional(z.string()),
  /** When the mount was made, ISO 8601. */
  since: z.string(),
  /** Id of the scratch that holds the changes of a writable mount. */
  scratch: z.optional(z.string()),
  cacheDirectory: z.string(),
  state: z.enum(["starting", "mounted", "committing", "ended"]),
  /** How it ended; there once the state is "ended". */
  outcome: z.optional(outcomeSchema),
});

/** How a mount ended. */
export type RecordedOutcome = z.infer<typeof outcomeSchema>;
export type Failure = z.infer<typeof failureSchema>;
/** A mount, as its daemon wrote it down. */
export type MountRecord = z.infer<typeof recordSchema>;

/** The directory of a mount's record and log. */
export function recordDirectory(home: string, id: string): string {
  return join(home, "mounts", id);
}

/** The file in which a mount's daemon tells what it meets. */
export function logFile(home: string, id: string): string {
  return join(recordDirectory(home, id), "log");
}

/** The file whose presence tells a mount's daemon to leave the changes in the scratch when the mount ends. */
export function keepFile(home: string, id: string): string {
  return join(recordDirectory(home, id), "keep");
}

/** Makes the directory of a new mount's record and returns the mount's id, eight hexadecimal digits. */
export async function createRecordDirectory(home: string): Promise<string> {
  const directory = join(home, "mounts");
  await mkdir(directory, { recursive: true, mode: 0o700 }).catch((error) => {
    throw ioError(`keep a record of the mount in ${directory}`, error);
  });
  for (;;) {
    const id = randomBytes(4).toString("hex");
    try {
      await mkdir(recordDirectory(home, id), { mode: 0o700 });
      return id;
    } catch (error) {
      if (!isErrno(error, "EEXIST")) throw ioError(`keep a record of the mount in ${directory}`, error);
    }
  }
}

/** Writes a record so that a reader sees the old one or the new one. */
export async function writeRecord(home: string, record: MountRecord): Promise<void> {
  const file = join(recordDirectory(home, record.id), "mount.json");
  const draft = `${file}.${randomBytes(4).toString("hex")}`;
  await writeFile(draft, `${JSON.stringify(record, undefined, 2)}\n`, { mode: 0o600 });
  await rename(draft, file);
}

/** The record of a mount; undefined where there is none, or none that can be read. */
export async function readRecord(home: string, id: string): Promise<MountRecord | undefined> {
  try {
    return recordSchema.parse(JSON.parse(await readFile(join(recordDirectory(home, id), "mount.json"), "utf8")));
  } catch {
    return undefined;
  }
}

/** Every record, the newest mount first. */
export async function readRecords(home: string): Promise<MountRecord[]> {
  const directory = join(home, "mounts");
  const ids = await readdir(directory).catch((error) => {
    if (isErrno(error, "ENOENT")) return [];
    throw ioError(`list the mounts in ${directory}`, error);
  });
  const records = await Promise.all(ids.map((id) => readRecord(home, id)));
  return records
    .filter((record) => record !== undefined)
    .sort((one, other) => (one.since < other.since ? 1 : one.since > other.since ? -1 : 0));
}

/** Forgets a mount, its log included. */
export async function removeRecord(home: string, id: string): Promise<void> {
  await rm(recordDirectory(home, id), { recursive: true, force: true });
}

/** Forgets the mounts on `directory` that are over and left nothing to be told. */
export async function removeSettled(home: string, directory: string): Promise<void> {
  for (const record of await readRecords(home)) {
    if (record.directory !== directory || (await isServed(record))) continue;
    const { scratch, outcome } = record;
    if (outcome === undefined ? scratch === undefined : outcome.kind !== "failed") await removeRecord(home, record.id);
  }
}

/** Forgets the mounts that left a scratch behind which is now mounted anew. */
export async function removeRecordsOf(home: string, scratch: string): Promise<void> {
  for (const record of await readRecords(home)) {
    if (record.scratch === scratch && !(await isServed(record))) await removeRecord(home, record.id);
  }
}

/** True while the mount has a daemon, or a supervisor that is about to start one. */
export async function isServed({ daemon, supervisor }: MountRecord): Promise<boolean> {
  return (supervisor !== undefined && (await isRunning(supervisor))) || (await isRunning(daemon));
}

/** A failure in the form of a record. */
export function failureOf(error: unknown): Failure {
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof DatamonError)) return { kind: "failed", code: "io", message };
  // The class does not cross over to who started the daemon: "not-found" is for what was asked for by name.
  const code = error instanceof ObjectNotFoundError ? "damaged" : error.code;
  return { kind: "failed", code, message, ...(error.hint !== undefined && { hint: error.hint }) };
}

/** The error that a recorded failure was. */
export function errorOf(failure: Failure): DatamonError {
  return new DatamonError(failure.code, failure.message, failure.hint === undefined ? {} : { hint: failure.hint });
}
