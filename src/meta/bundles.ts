import {
  DamagedObjectError,
  DatamonError,
  type Hash,
  listAll,
  type ObjectInfo,
  ObjectNotFoundError,
} from "../cas/index.ts";
import { bundleIdAt, isBundleId } from "./bundle-id.ts";
import { type Context, type Contributor, contributorOf } from "./context.ts";
import { mapInOrder } from "./parallel.ts";
import { checkRepoName, orGone, requireRepo } from "./repos.ts";

/** A read-only version of a repo's files. */
export interface Bundle {
  /** A KSUID; ids in their order are bundles in the order of their making. */
  id: string;
  repo: string;
  message: string;
  /** Ids of the bundles that it was made from. */
  parents: string[];
  timestamp: Date;
  contributors: Contributor[];
  /** Hash of the catalog, an SQLite file with the file tree. */
  catalog: Hash;
  /** Hash of the file tree itself: equal trees have equal ones. */
  tree: Hash;
  /** Number of regular files. */
  files: number;
  /** Their total size. */
  bytes: number;
}

/** A bundle to make; its catalog and blobs are in the stores. Contributors: the context's by default. */
export type NewBundle = Omit<Bundle, "timestamp" | "contributors"> & { contributors?: Contributor[] };

const SHORTEST_ABBREVIATION = 4;
const PAGE = 1000;
const DAY_MS = 24 * 60 * 60 * 1000;

/**
 * Writes a bundle's record, which is what makes the bundle: everything that it refers to must be
 * stored before. Throws `not-found` where the repo is not there, `exists` where the id is taken.
 */
export async function createBundle(context: Context, bundle: NewBundle): Promise<Bundle> {
  const { id, repo, message, parents, catalog, tree, files, bytes } = bundle;
  if (!isBundleId(id)) throw new DatamonError("usage", `${id} is not the id of a bundle`);
  for (const parent of parents) {
    if (!(parent < id)) throw new DatamonError("usage", `bundle ${id} cannot follow its parent ${parent}`);
  }
  await requireRepo(context, repo);
  const { bundleRecord } = await import("./records.ts");
  const contributors = bundle.contributors ?? [contributorOf(context)];
  const made: Bundle = { id, repo, message, parents, timestamp: new Date(), contributors, catalog, tree, files, bytes };
  if (await context.metadata.put(bundleKey(repo, id), bundleRecord.encode(made), { ifAbsent: true })) return made;
  throw new DatamonError("exists", `bundle ${id} exists already in repo ${repo}`);
}

/**
 * A bundle by its id, or by the beginning of it (at least 4 characters) where only one begins so.
 * Throws `not-found`, or `usage` for what can be no id and for several that begin so.
 */
export async function getBundle(context: Context, repo: string, id: string): Promise<Bundle> {
  checkRepoName(repo);
  const whole = isBundleId(id) ? id : await completeId(context, repo, id);
  try {
    return await readBundle(context, repo, bundleKey(repo, whole));
  } catch (error) {
    if (error instanceof ObjectNotFoundError) throw await noSuchBundle(context, repo, id);
    throw error;
  }
}

/** The bundles of a repo by id, that is, oldest first. Throws `not-found` where the repo is not there. */
export async function* listBundles(context: Context, repo: string): AsyncGenerator<Bundle, void> {
  await requireRepo(context, repo);
  const objects = listAll(context.metadata, bundlePrefix(repo));
  const found = mapInOrder(objects, ({ key }) => orGone(readBundle(context, repo, key)));
  for await (const bundle of found) if (bundle !== undefined) yield bundle;
}

/** The bundle with the highest id; undefined where there is none. Throws `not-found` where the repo is not there. */
export async function newestBundle(context: Context, repo: string): Promise<Bundle | undefined> {
  const [newest] = await Promise.all([newestKey(context, repo), requireRepo(context, repo)]);
  return newest === undefined ? undefined : await readBundle(context, repo, newest);
}

/**
 * Listings go forward only. The ids of a repo with more bundles than one page has are looked for
 * from now backwards, in steps that grow: ids begin with the time.
 */
async function newestKey(context: Context, repo: string): Promise<string | undefined> {
  const prefix = bundlePrefix(repo);
  const first = await context.metadata.list(prefix, { limit: PAGE });
  const last = first.at(-1)?.key;
  if (last === undefined || first.length < PAGE) return last;
  for (let age = DAY_MS / 24; age < 20_000 * DAY_MS; age *= 24) {
    const after = prefix + bundleIdAt(Date.now() - age);
    if (after <= last) break;
    const found = await lastKey(context, prefix, after);
    if (found !== undefined) return found;
  }
  return (await lastKey(context, prefix, last)) ?? last;
}

async function lastKey(context: Context, prefix: string, after: string): Promise<string | undefined> {
  let last: string | undefined;
  for (;;) {
    const page: ObjectInfo[] = await context.metadata.list(prefix, { after: last ?? after, limit: PAGE });
    if (page.length === 0) return last;
    last = page.at(-1)!.key;
  }
}

async function readBundle(context: Context, repo: string, key: string): Promise<Bundle> {
  const id = key.slice(bundlePrefix(repo).length).replace(/\.yaml$/, "");
  if (!isBundleId(id)) throw new DamagedObjectError(context.metadata.url, key, "its name is not that of a bundle");
  const { bundleRecord, readRecord } = await import("./records.ts");
  return await readRecord(context.metadata, key, bundleRecord, (bundle) => {
    if (bundle.id === id && bundle.repo === repo) return;
    throw new Error(`it is the record of bundle ${bundle.id} of repo ${bundle.repo}`);
  });
}

async function completeId(context: Context, repo: string, start: string): Promise<string> {
  if (!/^[0-9A-Za-z]*$/.test(start) || start.length > 27) {
    throw new DatamonError("usage", `${JSON.stringify(start)} cannot be the id of a bundle`, { hint: listHint(repo) });
  }
  if (start.length < SHORTEST_ABBREVIATION) {
    throw new DatamonError("usage", `${JSON.stringify(start)} is too short for the id of a bundle`, {
      hint: `Give at least its first ${SHORTEST_ABBREVIATION} characters.`,
    });
  }
  const prefix = bundlePrefix(repo);
  const [only, another] = await context.metadata.list(prefix + start, { limit: 2 });
  if (only === undefined) throw await noSuchBundle(context, repo, start);
  if (another !== undefined) {
    throw new DatamonError("usage", `more than one bundle of repo ${repo} has an id that begins with ${start}`, {
      hint: `Give more of it. ${listHint(repo)}`,
    });
  }
  return only.key.slice(prefix.length).replace(/\.yaml$/, "");
}

/** The error for a bundle that is not there, which may be because the repo is not. */
async function noSuchBundle(context: Context, repo: string, id: string): Promise<DatamonError> {
  await requireRepo(context, repo);
  return new DatamonError("not-found", `bundle ${id} is not in repo ${repo}`, { hint: listHint(repo) });
}

function listHint(repo: string): string {
  return `See what is there with 'datamon bundle list --repo ${repo}'.`;
}

function bundlePrefix(repo: string): string {
  checkRepoName(repo);
  return `bundles/${repo}/`;
}

function bundleKey(repo: string, id: string): string {
  return `${bundlePrefix(repo)}${id}.yaml`;
}
