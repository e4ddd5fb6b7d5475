/** The label of a commit: whether it may be moved, and moving it. */

import { DatamonError } from "../cas/index.ts";
import { type Context, type LabelVersion, newestVersion, setLabel } from "../meta/index.ts";
import { type OnConflict, type Scratch, type ScratchRecord, updateScratch } from "./scratch.ts";

/** What is to become of a label; where absent, what the scratch says. */
export interface LabelChoice {
  readonly label?: string | undefined;
  readonly onConflict?: OnConflict | undefined;
}

/**
 * Throws "conflict" where the label was moved by others since the mount began, and that matters. A
 * label that the mount was not told of at its start is known by the time of its newest version.
 */
export async function checkLabel(context: Context, record: ScratchRecord, choice: LabelChoice): Promise<void> {
  const { label = record.label, onConflict = record.onConflict } = choice;
  if (label === undefined || onConflict !== "fail") return;
  await versionBefore(context, record, label);
}

/** Sets the label, if there is one, to `bundle`; returns the scratch, whose record knows of that. */
export async function moveLabel(
  context: Context,
  scratch: Scratch,
  bundle: string,
  choice: LabelChoice,
): Promise<Scratch> {
  const { record } = scratch;
  const { label = record.label, onConflict = record.onConflict } = choice;
  if (label === undefined) return scratch;
  const newest = await newestVersion(context, record.repo, label);
  let set = newest;
  // An earlier attempt may have come to this, and failed at what comes after.
  if (newest?.bundle !== bundle) {
    const before = onConflict === "fail" ? await versionBefore(context, record, label) : undefined;
    const expected = onConflict === "fail" ? { expected: before?.number ?? 0 } : {};
    set = await setLabel(context, record.repo, label, bundle, expected);
  }
  return await updateScratch(scratch, { labels: { ...record.labels, [label]: set!.number } });
}

async function versionBefore(
  context: Context,
  { repo, created, labels = {} }: ScratchRecord,
  label: string,
): Promise<LabelVersion | undefined> {
  const newest = await newestVersion(context, repo, label);
  const known = labels[label];
  const moved =
    known === undefined
      ? newest !== undefined && newest.timestamp > new Date(created)
      : known !== (newest?.number ?? 0);
  if (!moved) return newest;
  const named = newest?.bundle === undefined ? "was deleted" : `names bundle ${newest.bundle}`;
  throw new DatamonError("conflict", `label ${label} of repo ${repo} was moved since the mount began: it ${named}`, {
    hint: "Commit with another label (--label NAME), or move it all the same (--on-conflict move).",
  });
}
