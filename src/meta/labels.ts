import { DatamonError } from "../cas/index.ts";
import { getBundle } from "./bundles.ts";
import type { Context, Contributor } from "./context.ts";
import { mapInOrder } from "./parallel.ts";
import { appendRef, newestNumber, newestNumbers, type RefName, readRef, refNumbers } from "./refs.ts";
import { orGone, requireRepo } from "./repos.ts";

/** What a label named at one time. */
export interface LabelVersion {
  label: string;
  /** Counts the label's changes, from 1. */
  number: number;
  /** The bundle's id; undefined where the label was deleted. */
  bundle: string | undefined;
  timestamp: Date;
  contributor?: Contributor;
}

/**
 * Lets a label name a bundle (which may be given by the beginning of its id). Of writers at the
 * same time each gets a version of its own. With `expected`, the number of the newest version that
 * the caller knows of (0 where it knows of none), any other newest version gives `conflict`. Throws
 * `not-found` where repo or bundle are not there.
 */
export async function setLabel(
  context: Context,
  repo: string,
  label: string,
  bundle: string,
  options: { expected?: number } = {},
): Promise<LabelVersion> {
  const ref = labelRef(repo, label);
  const { id } = await getBundle(context, repo, bundle);
  const entry = await appendRef(context, ref, id, (newest) => {
    if (options.expected === undefined || options.expected === newest) return;
    throw new DatamonError("conflict", `label ${label} of repo ${repo} was changed by somebody else meanwhile`, {
      hint: `See it with 'datamon label get --repo ${repo} --label ${label}'.`,
    });
  });
  return { label, ...entry };
}

/** The newest version of a label, be it a deletion; undefined where there never was one. */
export async function newestVersion(context: Context, repo: string, label: string): Promise<LabelVersion | undefined> {
  const ref = labelRef(repo, label);
  const newest = await newestNumber(context, ref);
  return newest === 0 ? undefined : { label, ...(await readRef(context, ref, newest)) };
}

/** The newest version of a label. Throws `not-found` where there is none, or the label was deleted. */
export async function getLabel(context: Context, repo: string, label: string): Promise<LabelVersion> {
  const ref = labelRef(repo, label);
  const newest = await newestNumber(context, ref);
  const entry = newest === 0 ? undefined : await orGone(readRef(context, ref, newest));
  if (entry?.bundle === undefined) throw await noSuchLabel(context, repo, label);
  return { label, ...entry };
}

/**
 * The labels of a repo in the byte order of their names, those that start with `prefix`: the newest
 * version of each, without deleted ones, or with `withVersions` every version of every label, oldest
 * first, deletions included. Throws `not-found` where the repo is not there.
 */
export async function* listLabels(
  context: Context,
  repo: string,
  options: { prefix?: string | undefined; withVersions?: boolean | undefined } = {},
): AsyncGenerator<LabelVersion, void> {
  const { prefix = "", withVersions = false } = options;
  await requireRepo(context, repo);
  if (!/^[A-Za-z0-9._+-]*$/.test(prefix)) return;
  const labels = await newestNumbers(context, repo, "labels", prefix);
  if (withVersions) {
    for (const [label] of labels) yield* labelHistory(context, repo, label);
    return;
  }
  const entries = mapInOrder(labels, async ([label, number]) => {
    const entry = await orGone(readRef(context, labelRef(repo, label), number));
    return entry?.bundle === undefined ? undefined : { label, ...entry };
  });
  for await (const version of entries) if (version !== undefined) yield version;
}

/** Every version of a label, oldest first, deletions included. Throws `not-found` where there never was one. */
export async function* labelHistory(context: Context, repo: string, label: string): AsyncGenerator<LabelVersion, void> {
  const ref = labelRef(repo, label);
  let empty = true;
  for await (const entry of mapInOrder(refNumbers(context, ref), (number) => readRef(context, ref, number))) {
    empty = false;
    yield { label, ...entry };
  }
  if (empty) throw await noSuchLabel(context, repo, label);
}

/** Takes a label away; its history stays. Throws `not-found` where there is none. */
export async function deleteLabel(context: Context, repo: string, label: string): Promise<void> {
  const ref = labelRef(repo, label);
  await appendRef(context, ref, undefined, async (newest) => {
    const entry = newest === 0 ? undefined : await readRef(context, ref, newest);
    if (entry?.bundle === undefined) throw await noSuchLabel(context, repo, label);
  });
}

/** Throws `usage` where no label can have that name. */
export function checkLabelName(label: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$/.test(label)) return;
  throw new DatamonError("usage", `${JSON.stringify(label)} cannot be a label`, {
    hint: "A label has 1 to 200 letters, digits and . _ + -, and starts with a letter or a digit.",
  });
}

function labelRef(repo: string, label: string): RefName {
  checkLabelName(label);
  return { repo, kind: "labels", name: label };
}

/** The error for a label that is not there, which may be because the repo is not. */
async function noSuchLabel(context: Context, repo: string, label: string): Promise<DatamonError> {
  await requireRepo(context, repo);
  return new DatamonError("not-found", `label ${label} is not in repo ${repo}`, {
    hint: `See what is there with 'datamon label list --repo ${repo}'.`,
  });
}
