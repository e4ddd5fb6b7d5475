/**
 * Scratches: the directories in which writable mounts keep what is not committed yet.
 * `<root>/<id>/` holds scratch.yaml (what it belongs to), the layers of changes (`overlay/layers.ts`), lock, and
 * reserve (room to remove files on a full disk).
 */

import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import {
  lstat,
  mkdir,
  open,
  opendir,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { parse, stringify } from "yaml";
import * as z from "zod/mini";
import { DatamonError, ioError, isErrno } from "../cas/index.ts";
import { countJournalChanges } from "./overlay/journal.ts";
import {
  baseOfLayer,
  dataDirectory,
  journalFile,
  layerDirectory,
  layersOf,
  settleLayers,
  stackOf,
} from "./overlay/layers.ts";
import { ScratchLock } from "./overlay/lock.ts";
import { isRunning, type ProcessIdentity, thisProcess } from "./process-identity.ts";

const FORMAT = 1;
const ID_BYTES = 4;

const identitySchema = z.object({ pid: z.int().check(z.positive()), started: z.string() });

/** A bundle that changes are made to. */
const baseSchema = z.object({ bundle: z.string(), catalog: z.string() });

/** What is to be done where a label was moved by somebody else since the mount began. */
export const ON_CONFLICT = ["move", "fail"] as const;
export type OnConflict = (typeof ON_CONFLICT)[number];

const frozenSchema = z.object({
  /** Number of the layer. */
  layer: z.int(),
  message: z.optional(z.string()),
  label: z.optional(z.string()),
  onConflict: z.optional(z.enum(ON_CONFLICT)),
  /** Id of the bundle that a commit began to make of it. */
  committing: z.optional(z.string()),
  /** The bundle that it became. */
  base: z.optional(baseSchema),
});

/** A layer that a commit froze while the mount went on. */
export type FrozenLayer = z.infer<typeof frozenSchema>;

const recordSchema = z.object({
  format: z.literal(FORMAT),
  id: z.string(),
  repo: z.string(),
  /** What the lowest layer stands on; absent for a tree that started empty. */
  base: z.optional(baseSchema),
  /** The frozen layers, the lowest first. An entry whose layer has none above it is of a commit that did not come to freeze it. */
  frozen: z.optional(z.array(frozenSchema)),
  /** Where it is or was mounted. */
  directory: z.string(),
  /** For the bundle to come. */
  message: z.string(),
  label: z.optional(z.string()),
  onConflict: z.optional(z.enum(ON_CONFLICT)),
  /** Numbers of the newest versions of labels when the mount began, 0 for none; those that the mount was told of. */
  labels: z.optional(z.record(z.string(), z.int())),
  /** How many bytes of disk it may take. */
  limit: z.optional(z.int().check(z.positive())),
  /** ISO 8601. */
  created: z.string(),
  /** The process that mounted it last. */
  daemon: identitySchema,
  /** The process that starts another where that one dies. */
  supervisor: z.optional(identitySchema),
  /** Id of the bundle that a commit began to make of the changes of the topmost layer. */
  committing: z.optional(z.string()),
});

/** scratch.yaml. */
export type ScratchRecord = z.infer<typeof recordSchema>;

/** A scratch, as its record says. */
export interface Scratch {
  readonly id: string;
  /** Absolute path of the scratch itself. */
  readonly directory: string;
  readonly record: ScratchRecord;
}

/** A scratch as it is listed. */
export interface ScratchStatus extends Scratch {
  /** The process that mounted it runs, or its supervisor. */
  readonly alive: boolean;
  /** How many names and inodes differ from the base; undefined where its journal cannot be read. */
  readonly changes: number | undefined;
  /** Disk space of the written data, in bytes. */
  readonly bytes: number;
}

/** What a new scratch is for. */
export interface NewScratch {
  readonly repo: string;
  /** Ids of the base bundle and its catalog; undefined for a tree that starts empty. */
  readonly base?: { readonly bundle: string; readonly catalog: string };
  /** The mount's directory. */
  readonly directory: string;
  readonly message?: string;
  readonly label?: string;
  readonly onConflict?: OnConflict;
  /** Numbers of the newest versions of labels. */
  readonly labels?: Readonly<Record<string, number>>;
  /** Directory to keep it in, of which the root then has a link to it. */
  readonly place?: string;
  /** How many bytes of disk it may take. */
  readonly limit?: number;
  /** Of this process. */
  readonly supervisor?: ProcessIdentity | undefined;
}

/** Makes a scratch under `root`, claimed by this process. */
export async function createScratch(root: string, options: NewScratch): Promise<Scratch> {
  const { repo, base, directory: mount, message = "", label, onConflict, labels, place, limit, supervisor } = options;
  await mkdir(root, { recursive: true, mode: 0o700 });
  for (;;) {
    const id = randomBytes(ID_BYTES).toString("hex");
    const directory = join(root, id);
    try {
      await makeDirectory(directory, place === undefined ? undefined : join(resolve(place), id));
    } catch (error) {
      if (isErrno(error, "EEXIST")) continue;
      throw ioError(`make the scratch ${directory}`, error);
    }
    const record: ScratchRecord = {
      format: FORMAT,
      id,
      repo,
      ...(base !== undefined && { base: { bundle: base.bundle, catalog: base.catalog } }),
      directory: mount,
      message,
      ...(label !== undefined && { label }),
      ...(onConflict !== undefined && { onConflict }),
      ...(labels !== undefined && { labels: { ...labels } }),
      ...(limit !== undefined && { limit }),
      created: new Date().toISOString(),
      daemon: await thisProcess(),
      ...(supervisor !== undefined && { supervisor }),
    };
    const made = await writeRecord({ id, directory, record });
    await syncDirectory(root);
    return made;
  }
}

/** Makes `directory`, or `place` and `directory` as a link to it. */
async function makeDirectory(directory: string, place: string | undefined): Promise<void> {
  if (place === undefined) return await mkdir(directory, { mode: 0o700 });
  await mkdir(dirname(place), { recursive: true, mode: 0o700 });
  await symlink(place, directory);
  try {
    await mkdir(place, { mode: 0o700 });
    await syncDirectory(dirname(place));
  } catch (error) {
    await rm(directory);
    throw error;
  }
}

/** The scratch with this id, or the only one whose id begins so. Throws "not-found", "usage", "damaged". */
export async function getScratch(root: string, id: string): Promise<Scratch> {
  const found = id === "" ? [] : (await scratchIds(root)).filter((known) => known.startsWith(id));
  const only = found.includes(id) ? id : found[0];
  if (only === undefined) {
    throw new DatamonError("not-found", `there is no scratch ${id}`, { hint: "See them with `datamon scratch list`." });
  }
  if (only !== id && found.length > 1) {
    throw new DatamonError("usage", `more than one scratch has an id that begins with ${id}: ${found.join(", ")}`);
  }
  return await readScratch(root, only);
}

/** All scratches under `root`, oldest first. What cannot be read is told and left out. */
export async function listScratches(root: string, tell?: (error: DatamonError) => void): Promise<ScratchStatus[]> {
  const found: ScratchStatus[] = [];
  for (const id of await scratchIds(root)) {
    try {
      const scratch = await readScratch(root, id);
      const alive = (await holderOf(scratch.record)) !== undefined;
      found.push({ ...scratch, alive, changes: changesOrUnknown(scratch), bytes: await dataBytes(scratch) });
    } catch (error) {
      // Gone since the directory was listed, and not only out of reach.
      const known = await lstat(join(root, id)).catch(() => undefined);
      if (error instanceof DatamonError && error.code === "not-found" && known === undefined) continue;
      tell?.(ioError(`read the scratch ${join(root, id)}`, error));
    }
  }
  return found.sort((one, other) => (one.record.created < other.record.created ? -1 : 1));
}

/** How many names and inodes of a scratch differ from its base, also while it is mounted. */
export function countChanges({ directory }: Pick<Scratch, "directory">): number {
  let changes = 0;
  for (const number of layersOf(directory)) {
    const journal = journalFile(layerDirectory(directory, number));
    if (existsSync(journal)) changes += countJournalChanges(journal);
  }
  return changes;
}

/**
 * Makes this process the one that has the scratch mounted, before it opens the namespace. Throws
 * "conflict" where another that runs has it. A commit that was begun and not finished is forgotten,
 * since the tree will change.
 *
 * @param supervisor this process's
 */
export async function claimScratch(
  scratch: Scratch,
  directory: string,
  supervisor?: ProcessIdentity,
): Promise<Scratch> {
  await checkUnused(scratch);
  const { committing: _, supervisor: __, ...record } = (await settleScratch(scratch)).record;
  const held = { directory, daemon: await thisProcess(), ...(supervisor !== undefined && { supervisor }) };
  return await writeRecord({ ...scratch, record: { ...record, ...held } });
}

/** Changes what scratch.yaml says. */
export async function updateScratch(scratch: Scratch, changes: Partial<ScratchRecord>): Promise<Scratch> {
  return await writeRecord({ ...scratch, record: { ...scratch.record, ...changes } });
}

/**
 * Ends, in a scratch that nobody uses, what a process died in, and has its record say which layers
 * there are and what they stand on. Throws "damaged" where that cannot be said.
 */
export async function settleScratch(scratch: Scratch): Promise<Scratch> {
  const { directory, record } = scratch;
  settleLayers(directory);
  const stack = stackOf(directory);
  const name = baseOfLayer(directory, stack[0]);
  const frozen = record.frozen?.filter(({ layer }) => stack.slice(0, -1).includes(layer)) ?? [];
  const known = [record.base, ...(record.frozen ?? []).map(({ base }) => base)];
  const base = name === undefined ? record.base : known.find((one) => (one?.bundle ?? "") === name);
  if (name !== undefined && base === undefined && name !== "") {
    throw new DatamonError("damaged", `the scratch ${directory} stands on ${name}, of which its record does not tell`);
  }
  if (base?.bundle === record.base?.bundle && frozen.length === (record.frozen?.length ?? 0)) return scratch;
  const { base: _, frozen: __, ...rest } = record;
  const settled = { ...rest, ...(base !== undefined && { base }), ...(frozen.length > 0 && { frozen }) };
  return await writeRecord({ ...scratch, record: settled });
}

/** Removes a scratch and all that is in it. Throws "conflict" where another process uses it. */
export async function discardScratch(scratch: Scratch): Promise<void> {
  await checkUnused(scratch);
  try {
    const place = await realpath(scratch.directory).catch(() => scratch.directory);
    await rm(place, { recursive: true, force: true });
    await rm(scratch.directory, { recursive: true, force: true });
  } catch (error) {
    throw ioError(`remove the scratch ${scratch.directory}`, error);
  }
}

/** The scratch as its record says now. */
export async function rereadScratch({ directory, id }: Scratch): Promise<Scratch> {
  return await readScratch(dirname(directory), id);
}

/** The process that has the scratch mounted, or will again; undefined where none has. */
async function holderOf({ daemon, supervisor }: ScratchRecord): Promise<ProcessIdentity | undefined> {
  if (await isRunning(daemon)) return daemon;
  return supervisor !== undefined && (await isRunning(supervisor)) ? supervisor : undefined;
}

/** Throws "conflict" where a process has the scratch mounted that is neither this one nor its supervisor. */
export async function checkUnused({ id, directory, record }: Scratch): Promise<void> {
  const holder = await holderOf(record);
  const own = holder === record.daemon ? process.pid : process.ppid;
  if (holder !== undefined && holder.pid !== own) {
    throw new DatamonError("conflict", `scratch ${id} is mounted at ${record.directory} (pid ${holder.pid})`, {
      hint: `Unmount it first: datamon unmount ${record.directory}`,
    });
  }
  if (existsSync(directory)) ScratchLock.take(directory).release();
}

async function scratchIds(root: string): Promise<string[]> {
  try {
    return (await readdir(root)).filter((name) => /^[0-9a-f]+$/.test(name)).sort();
  } catch (error) {
    if (isErrno(error, "ENOENT")) return [];
    throw ioError(`list the scratches in ${root}`, error);
  }
}

async function readScratch(root: string, id: string): Promise<Scratch> {
  const directory = join(root, id);
  const file = join(directory, "scratch.yaml");
  const text = await readFile(file, "utf8").catch((error) => {
    throw ioError(`read ${file}`, error);
  });
  try {
    return { id, directory, record: recordSchema.parse(parse(text)) };
  } catch (cause) {
    throw new DatamonError("damaged", `${file} is not the record of a scratch`, { cause });
  }
}

/** Replaces scratch.yaml so that a reader sees the old one or the new one, and so does the disk. */
async function writeRecord(scratch: Scratch): Promise<Scratch> {
  const file = join(scratch.directory, "scratch.yaml");
  const draft = `${file}.${randomBytes(4).toString("hex")}`;
  try {
    await writeFile(draft, stringify(scratch.record), { mode: 0o600, flush: true });
    await rename(draft, file);
    await syncDirectory(scratch.directory);
  } catch (error) {
    await rm(draft, { force: true });
    throw ioError(`write ${file}`, error);
  }
  return scratch;
}

async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function changesOrUnknown(scratch: Scratch): number | undefined {
  try {
    return countChanges(scratch);
  } catch {
    return undefined;
  }
}

async function dataBytes(scratch: Scratch): Promise<number> {
  let blocks = 0;
  for (const number of layersOf(scratch.directory)) {
    const data = dataDirectory(layerDirectory(scratch.directory, number));
    try {
      for await (const entry of await opendir(data)) {
        const found = await stat(join(data, entry.name)).catch(() => undefined);
        blocks += found?.blocks ?? 0;
      }
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw error;
    }
  }
  return blocks * 512;
}
