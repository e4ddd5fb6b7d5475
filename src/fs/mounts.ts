/** The mounts of a user, seen from outside their daemons: the list, and the end of one. */

import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { DatamonError } from "../cas/index.ts";
import type { MountOutcome } from "./mount.ts";
import { askDaemon } from "./mount-control.ts";
import { mountPath } from "./mount-directory.ts";
import {
  errorOf,
  isServed,
  keepFile,
  type MountRecord,
  readRecord,
  readRecords,
  removeRecord,
} from "./mount-record.ts";
import { askStatistics, type MountStatistics } from "./mount-statistics.ts";
import { abortConnection, detach, isDatamon, mountedAt } from "./mount-table.ts";
import type { OpenMode } from "./open-mode.ts";
import { countChanges, discardScratch, getScratch, type OnConflict } from "./scratch.ts";

/** A mount that is served. */
export interface MountStatus {
  readonly repo: string;
  /** Id of the bundle that is shown, or that the changes start from; null for a tree that started empty. */
  readonly bundle: string | null;
  readonly mode: "ro" | "rw";
  readonly directory: string;
  readonly channel: string;
  /** How files are opened, and why so. */
  readonly openMode: OpenMode;
  readonly openModeReason: string;
  readonly daemonPid: number;
  /** The process that starts another daemon where this one dies; null where there is none. */
  readonly supervisorPid: number | null;
  /** When it was mounted, ISO 8601. */
  readonly since: string;
  /** How many names and inodes differ from the bundle; 0 for a read-only mount. */
  readonly uncommitted: number;
  /** When the bundle that the mount stands on was committed, ISO 8601; null for a tree that started empty. */
  readonly lastCommit: string | null;
}

/**
 * The mounts of this user that are served, the newest first. Records of others are removed once
 * `tell` was told what became of them; without it they stay.
 *
 * @param home directory for what is this user's
 */
export async function listMounts(home: string, tell?: (line: string) => void): Promise<MountStatus[]> {
  const found: MountStatus[] = [];
  for (const record of await readRecords(home)) {
    if (record.outcome === undefined && (await isServed(record))) {
      if (record.state === "mounted") found.push(await statusOf(home, record));
    } else if (tell !== undefined) {
      await bury(home, record, tell);
    }
  }
  return found;
}

async function statusOf(home: string, record: MountRecord): Promise<MountStatus> {
  return {
    repo: record.repo,
    bundle: record.bundle ?? null,
    mode: record.mode,
    directory: record.directory,
    channel: record.channel,
    openMode: record.openMode ?? "plain",
    openModeReason: record.openModeReason ?? "",
    daemonPid: record.daemon.pid,
    supervisorPid: record.supervisor?.pid ?? null,
    since: record.since,
    uncommitted: (await changesOf(home, record)) ?? 0,
    lastCommit: record.bundleTime ?? null,
  };
}

/** A mount with what it has done so far. */
export interface MountReport extends MountStatus, MountStatistics {
  /** How many daemons of this mount died and were replaced. */
  readonly restarts: number;
}

/**
 * What the mount on `directory` has done so far. DatamonError "not-found" where this user has none
 * there, "io" where its daemon is dead or does not answer.
 *
 * @param home directory for what is this user's
 */
export async function reportMount(home: string, directory: string): Promise<MountReport> {
  const asked = await servedMount(home, directory);
  const statistics = await askStatistics(home, asked);
  // Another daemon may have taken over since.
  const record = (await readRecord(home, asked.id)) ?? asked;
  return { ...(await statusOf(home, record)), restarts: record.restarts ?? 0, ...statistics };
}

/** The record of the mount on `directory`. DatamonError "not-found" where this user has none there. */
export async function servedMount(home: string, directory: string): Promise<MountRecord> {
  const path = await mountPath(directory);
  const found = (await readRecords(home)).find((one) => one.directory === path && one.state === "mounted");
  if (found !== undefined) return found;
  throw new DatamonError("not-found", `nothing of yours is mounted on ${directory} by datamon`, {
    hint: "`datamon mount list` shows what is.",
  });
}

/** Tells what became of a mount, and forgets it unless its dead mount point is still to be taken away. */
async function bury(home: string, record: MountRecord, tell: (line: string) => void): Promise<void> {
  const { repo, directory, outcome } = record;
  if (outcome === undefined) {
    const { message, hint } = await deathOf(home, record);
    tell(hint === undefined ? message : `${message}. ${hint}`);
    if (isDatamon(await mountedAt(directory))) return;
  } else if (outcome.kind === "failed") {
    tell(outcome.hint === undefined ? outcome.message : `${outcome.message}. ${outcome.hint}`);
  } else {
    tell(`${repo} was unmounted from ${directory}${outcome.kind === "committed" ? `: bundle ${outcome.bundle}` : ""}`);
  }
  await removeRecord(home, record.id);
}

/** What to unmount. */
export interface UnmountOptions {
  readonly directory: string;
  /** Directory for what is this user's. */
  readonly home: string;
  /** False leaves the changes of a writable mount in its scratch. */
  readonly commit?: boolean;
  /** What to do with the label of a writable mount where somebody else moved it; the mount's own choice where absent. */
  readonly onConflict?: OnConflict | undefined;
  /** Also where it is in use: those who use it lose it. */
  readonly force?: boolean;
  /** A writable mount is gone and its changes are being committed. */
  onCommit?(): void;
}

/**
 * Unmounts what Datamon has mounted on `directory` and waits for the commit of a writable mount.
 * DatamonError "not-found" where nothing of Datamon is there, "conflict" where it is in use; a
 * failed commit throws what the daemon met; a daemon that died before it could commit is told of,
 * with its dead mount point taken away.
 */
export async function unmount(options: UnmountOptions): Promise<MountOutcome> {
  const { home, directory, commit = true } = options;
  const path = await mountPath(directory);
  const record = (await readRecords(home)).find((one) => one.directory === path);
  if (record === undefined) return await unmountUnknown(directory, path);
  if (!commit) await writeFile(keepFile(home, record.id), "");
  const { onConflict } = options;
  if (onConflict !== undefined && record.outcome === undefined && (await isServed(record))) {
    await askDaemon(home, record, { request: "on-conflict", onConflict }, { repeatable: true });
  }
  let ended: MountRecord | undefined;
  try {
    ended = await endOf(record, options);
  } catch (error) {
    // It is mounted on, and its next end commits.
    await rm(keepFile(home, record.id), { force: true });
    throw error;
  }
  if (ended?.outcome === undefined) {
    if (isDatamon(await mountedAt(path))) await detach(path, { lazy: true });
    const death = await deathOf(home, record);
    await removeRecord(home, record.id);
    throw death;
  }
  await removeRecord(home, record.id);
  if (ended.outcome.kind === "failed") throw errorOf(ended.outcome);
  return ended.outcome;
}

/** A mount whose record is lost, or that is another user's. */
async function unmountUnknown(directory: string, path: string): Promise<MountOutcome> {
  if (!isDatamon(await mountedAt(path))) {
    throw new DatamonError("not-found", `nothing of datamon is mounted on ${directory}`, {
      hint: "`datamon mount list` shows what is.",
    });
  }
  await detach(path);
  return { kind: "unmounted" };
}

/** How often a daemon's record is looked at, in milliseconds. */
const WATCH_INTERVAL = 50;
/**
 * How long after the mount has left the table its daemon may take to see that, in milliseconds. A
 * copy of the mount in another mount namespace would keep its connection alive for as long as that lives.
 */
const DETACHED_WAIT = 2000;

/** Takes a served mount away and waits for its end: the record with its outcome, or undefined where the daemon died without. */
async function endOf(
  record: MountRecord,
  { home, force = false, onCommit }: UnmountOptions,
): Promise<MountRecord | undefined> {
  let told = false;
  let abortAt = Number.POSITIVE_INFINITY;
  const mount = await mountedAt(record.directory);
  if (record.outcome === undefined && (await isServed(record)) && isDatamon(mount)) {
    await detach(record.directory, { lazy: force });
    abortAt = performance.now() + DETACHED_WAIT;
  }
  for (;;) {
    // First whether it runs, then what it wrote: the other way round its last word could be missed.
    const served = await isServed(record);
    const now = await readRecord(home, record.id);
    if (!served) return now;
    if (now?.state === "committing" && !told) {
      told = true;
      onCommit?.();
    }
    if (now?.state === "mounted" && mount !== undefined && performance.now() > abortAt) {
      abortConnection(mount.device);
      abortAt = Number.POSITIVE_INFINITY;
    }
    await setTimeout(WATCH_INTERVAL);
  }
}

/** What is to be said of a mount whose daemon died without ending it; a scratch without changes goes. */
async function deathOf(home: string, record: MountRecord): Promise<DatamonError> {
  const died = `the daemon of ${record.directory} (pid ${record.daemon.pid}) died`;
  const changes = await changesOf(home, record);
  if (record.scratch === undefined || changes === undefined) return new DatamonError("io", died);
  if (changes === 0) {
    await discardScratch(await getScratch(join(home, "scratch"), record.scratch));
    return new DatamonError("io", `${died}; nothing had been changed`);
  }
  return new DatamonError("io", `${died} before the changes were committed`, {
    hint: `They are kept in scratch ${record.scratch}. Commit them with: datamon scratch commit ${record.scratch}`,
  });
}

/** How many changes a writable mount holds; undefined for a read-only one, and where the scratch is gone. */
async function changesOf(home: string, record: MountRecord): Promise<number | undefined> {
  if (record.scratch === undefined) return undefined;
  try {
    return countChanges(await getScratch(join(home, "scratch"), record.scratch));
  } catch {
    return undefined;
  }
}
