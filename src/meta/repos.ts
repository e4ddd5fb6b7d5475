import { DamagedObjectError, DatamonError, listAll, type ObjectInfo, ObjectNotFoundError } from "../cas/index.ts";
import { type Context, type Contributor, contributorOf } from "./context.ts";
import { mapInOrder } from "./parallel.ts";

/** A dataset with one life cycle: bundles and the labels on them. */
export interface Repo {
  name: string;
  description: string;
  timestamp: Date;
  contributor: Contributor;
}

/** Makes a repo. Throws `exists` where there is one of that name, `usage` for a name that is none. */
export async function createRepo(
  context: Context,
  repo: { name: string; description: string; contributor?: Partial<Contributor> },
): Promise<Repo> {
  const { name, description } = repo;
  const key = repoKey(name);
  const { repoRecord } = await import("./records.ts");
  const made: Repo = {
    name,
    description,
    timestamp: new Date(),
    contributor: contributorOf(context, repo.contributor),
  };
  if (await context.metadata.put(key, repoRecord.encode(made), { ifAbsent: true })) return made;
  throw new DatamonError("exists", `repo ${name} exists already`, {
    hint: `See it with 'datamon repo get --repo ${name}', or choose another name.`,
  });
}

/** The repo of that name. Throws `not-found`. */
export async function getRepo(context: Context, name: string): Promise<Repo> {
  try {
    return await readRepo(context, name);
  } catch (error) {
    if (error instanceof ObjectNotFoundError) throw noSuchRepo(context, name);
    throw error;
  }
}

/** Every repo, in the byte order of names. */
export async function* listRepos(context: Context): AsyncGenerator<Repo, void> {
  const names: string[] = [];
  for await (const { key } of listAll(context.metadata, "repos/")) names.push(nameOf(context, key));
  // In the order of keys, "birds-2/" would come before "birds/".
  const found = mapInOrder(names.sort(), (name) => orGone(readRepo(context, name)));
  for await (const repo of found) if (repo !== undefined) yield repo;
}

/**
 * Deletes a repo with its labels and bundles; blobs and catalogs stay, as other repos may use them.
 * The repo itself goes last: after an interruption it is still listed and can be deleted again.
 * Throws `not-found`.
 */
export async function deleteRepo(context: Context, name: string): Promise<void> {
  const { metadata } = context;
  const key = repoKey(name);
  if ((await metadata.head(key)) === undefined) throw noSuchRepo(context, name);
  for (const prefix of [`refs/${name}/`, `bundles/${name}/`]) {
    const deletions = mapInOrder(listAll(metadata, prefix), (object: ObjectInfo) => metadata.delete(object.key));
    for await (const _ of deletions);
  }
  await metadata.delete(key);
}

/** Throws `not-found` where the repo is not there; what it says is not looked at. */
export async function requireRepo(context: Context, name: string): Promise<void> {
  if ((await context.metadata.head(repoKey(name))) === undefined) throw noSuchRepo(context, name);
}

/** Throws `usage` where no repo can have that name. */
export function checkRepoName(name: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9-]{0,99}$/.test(name)) return;
  throw new DatamonError("usage", `${JSON.stringify(name)} cannot be a repo's name`, {
    hint: "A name has 1 to 100 letters, digits and hyphens, and starts with a letter or a digit.",
  });
}

/** What `reading` gives, or undefined for an object that was deleted after it was listed. */
export async function orGone<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch (error) {
    if (error instanceof ObjectNotFoundError) return undefined;
    throw error;
  }
}

function repoKey(name: string): string {
  checkRepoName(name);
  return `repos/${name}/repo.yaml`;
}

function nameOf(context: Context, key: string): string {
  const name = /^repos\/([^/]+)\/repo\.yaml$/.exec(key)?.[1];
  if (name !== undefined) return name;
  throw new DamagedObjectError(context.metadata.url, key, "its name is not that of a repo's record");
}

async function readRepo(context: Context, name: string): Promise<Repo> {
  const { readRecord, repoRecord } = await import("./records.ts");
  return await readRecord(context.metadata, repoKey(name), repoRecord, (repo) => {
    if (repo.name !== name) throw new Error(`it is the record of a repo named ${repo.name}`);
  });
}

function noSuchRepo(context: Context, name: string): DatamonError {
  return new DatamonError("not-found", `repo ${name} is not in ${context.metadata.url}`, {
    hint: "See what is there with 'datamon repo list', or make it with 'datamon repo create'.",
  });
}
