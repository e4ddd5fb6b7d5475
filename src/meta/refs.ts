import { DamagedObjectError, listAll } from "../cas/index.ts";
import { type Context, type Contributor, contributorOf } from "./context.ts";
import { checkRepoName } from "./repos.ts";

/**
 * Names that can move, as logs: each entry is an object of its own, numbered from 1 and never
 * written twice, and the entry with the highest number says what the name stands for. Creating the
 * next number where it is absent is what orders concurrent writers; none is lost.
 */

/** One ref of a repo. */
export interface RefName {
  readonly repo: string;
  readonly kind: "labels" | "branches";
  readonly name: string;
}

/** An entry of a ref's log. */
export interface RefEntry {
  number: number;
  /** The bundle named from here on; undefined where the ref was deleted. */
  bundle: string | undefined;
  timestamp: Date;
  contributor: Contributor;
}

const DIGITS = 12;

/** The number of the newest entry; 0 where there never was one. */
export async function newestNumber(context: Context, ref: RefName): Promise<number> {
  let newest = 0;
  for await (const number of refNumbers(context, ref)) newest = number;
  return newest;
}

/** The numbers of a ref's entries, oldest first. */
export async function* refNumbers(context: Context, ref: RefName): AsyncGenerator<number, void> {
  const prefix = `${refPrefix(ref.repo, ref.kind)}${ref.name}/`;
  for await (const { key } of listAll(context.metadata, prefix)) yield parseRefKey(context, key).number;
}

/** The newest number of each ref of the kind whose name starts with `prefix`, in the byte order of names. */
export async function newestNumbers(
  context: Context,
  repo: string,
  kind: RefName["kind"],
  prefix: string,
): Promise<[name: string, number: number][]> {
  const newest = new Map<string, number>();
  for await (const { key } of listAll(context.metadata, refPrefix(repo, kind) + prefix)) {
    const { name, number } = parseRefKey(context, key);
    newest.set(name, number);
  }
  return [...newest].sort(([a], [b]) => (a < b ? -1 : 1));
}

/** One entry. Throws `ObjectNotFoundError`. */
export async function readRef(context: Context, ref: RefName, number: number): Promise<RefEntry> {
  const { readRecord, refRecord } = await import("./records.ts");
  const record = await readRecord(context.metadata, refKey(ref, number), refRecord);
  return { ...record, number, bundle: record.bundle ?? undefined };
}

/**
 * Adds an entry to a ref's log, after whatever others add meanwhile.
 *
 * @param bundle what the ref is to name; undefined deletes it
 * @param guard is told the number of the entry that the new one will follow (0: none), before each
 *   attempt; what it throws ends the whole
 */
export async function appendRef(
  context: Context,
  ref: RefName,
  bundle: string | undefined,
  guard?: (newest: number) => Promise<void> | void,
): Promise<RefEntry> {
  const { refRecord } = await import("./records.ts");
  for (;;) {
    const newest = await newestNumber(context, ref);
    await guard?.(newest);
    const entry: RefEntry = {
      number: newest + 1,
      bundle,
      timestamp: new Date(),
      contributor: contributorOf(context),
    };
    const { timestamp, contributor } = entry;
    const record = refRecord.encode({ bundle: bundle ?? null, timestamp, contributor });
    if (await context.metadata.put(refKey(ref, entry.number), record, { ifAbsent: true })) return entry;
  }
}

function refPrefix(repo: string, kind: RefName["kind"]): string {
  checkRepoName(repo);
  return `refs/${repo}/${kind}/`;
}

function refKey(ref: RefName, number: number): string {
  return `${refPrefix(ref.repo, ref.kind)}${ref.name}/${String(number).padStart(DIGITS, "0")}.yaml`;
}

function parseRefKey(context: Context, key: string): { name: string; number: number } {
  const [, , , name = "", file = "", ...rest] = key.split("/");
  const number = /^(\d{12})\.yaml$/.exec(file)?.[1];
  if (number === undefined || rest.length > 0) {
    throw new DamagedObjectError(context.metadata.url, key, "its name is not that of an entry of a ref");
  }
  return { name, number: Number(number) };
}
