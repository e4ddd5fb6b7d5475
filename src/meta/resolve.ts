import { DatamonError } from "../cas/index.ts";
import { type Bundle, getBundle, newestBundle } from "./bundles.ts";
import type { Context } from "./context.ts";
import { getLabel } from "./labels.ts";

/**
 * The bundle that is meant: by its id (or the beginning of it), by a label, or the newest one where
 * neither is given. Throws `not-found`, or `usage` where both are given.
 */
export async function resolveBundle(
  context: Context,
  repo: string,
  ref: { bundle?: string | undefined; label?: string | undefined } = {},
): Promise<Bundle> {
  const { bundle, label } = ref;
  if (bundle !== undefined && label !== undefined) {
    throw new DatamonError("usage", "a bundle is meant either by its id or by a label", { hint: "Give one of them." });
  }
  if (bundle !== undefined) return await getBundle(context, repo, bundle);
  if (label !== undefined) return await labelledBundle(context, repo, label);
  const newest = await newestBundle(context, repo);
  if (newest !== undefined) return newest;
  throw new DatamonError("not-found", `repo ${repo} has no bundles yet`, {
    hint: `Make one with 'datamon bundle upload --repo ${repo} --path DIRECTORY --message TEXT'.`,
  });
}

async function labelledBundle(context: Context, repo: string, label: string): Promise<Bundle> {
  const { bundle } = await getLabel(context, repo, label);
  try {
    return await getBundle(context, repo, bundle ?? "");
  } catch (error) {
    if (!(error instanceof DatamonError) || error.code !== "not-found") throw error;
    throw new DatamonError("not-found", `label ${label} of repo ${repo} names bundle ${bundle}, which is not there`, {
      hint: `See the bundles with 'datamon bundle list --repo ${repo}', and move the label with 'datamon label set'.`,
      cause: error,
    });
  }
}
