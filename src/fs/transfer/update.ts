/** Bringing a downloaded folder to a bundle by touching only what differs. */
import { type ByteString, DatamonError, display } from "../../cas/index.ts";
import { type Bundle, type Catalog, type Context, getBundle } from "../../meta/index.ts";
import { openBundleCatalog } from "./base-tree.ts";
import type { Breath } from "./breath.ts";
import { kindOf } from "./catalog-walk.ts";
import { type Comparison, compareTree, isEqual } from "./compare.ts";
import { type TransferOptions, withCatalog } from "./download.ts";
import { type Origin, readOrigin, writeOrigin } from "./record.ts";
import { restoreTree } from "./restore-tree.ts";
import { Restorer } from "./restorer.ts";
import { select } from "./selection.ts";
import { StatCache } from "./stat-cache.ts";
import { LocalTree, OWN_NAME } from "./walk.ts";

/** How many local edits a refusal names. */
const NAMED_EDITS = 5;

/** What to update, and to what. */
export interface UpdateOptions extends TransferOptions {
  bundle: Bundle;
  directory: string;
  /** Overwrites and removes local edits that the bundle differs from; files that are only local and in nobody's way stay. */
  force?: boolean | undefined;
  /** The stat cache's SQLite file. */
  stateFile: string;
}

/** What an update did. */
export interface UpdateResult {
  /** Files written, links not counted. */
  written: number;
  bytes: number;
  /** Files, links and directories removed because the new bundle does not have them. */
  removed: number;
  /** Files and links that no bundle put there, left alone. */
  kept: number;
}

/** What has to be done to a folder. */
interface Plan {
  /** Inode numbers of what must be written. */
  needed: Set<number>;
  removals: { path: ByteString; isDirectory: boolean }[];
  kept: number;
  edits: { count: number; named: string[] };
}

/**
 * Brings a folder to a bundle: content where it differs, attributes everywhere. What the bundle
 * that the folder came from put there and the new one does not have is removed; files that no
 * bundle put there are left alone.
 *
 * A local edit is anything that would be overwritten or removed and is not what the folder's own
 * bundle put there. The first refuses the whole update ("conflict"), before anything is changed,
 * unless `force` is given. A folder without a note of its bundle has nothing but edits.
 */
export async function updateTree(context: Context, options: UpdateOptions): Promise<UpdateResult> {
  const { bundle } = options;
  const tree = LocalTree.open(options.directory);
  const origin = await readOrigin(tree.root);
  let removed = 0;
  let kept = 0;
  const { files, bytes } = await withCatalog(context, bundle, options, async (catalog, { breath, write }) => {
    const bases = await openBases(context, origin, options);
    let plan: Plan;
    try {
      plan = await makePlan(tree, catalog, bases, options, breath);
    } finally {
      for (const base of bases) base.close();
    }
    if (plan.edits.count > 0 && !options.force) throw refusal(tree, plan, origin);
    kept = plan.kept;
    const began = origin ?? { repo: bundle.repo, bundle: bundle.id };
    writeOrigin(tree.root, {
      repo: began.repo,
      bundle: began.bundle,
      next: { repo: bundle.repo, bundle: bundle.id },
      complete: false,
    });
    const restorer = new Restorer(tree, true, options.onWarning);
    for (const removal of plan.removals) {
      if (breath.due()) await breath.pause();
      removed += remove(restorer, catalog, removal);
    }
    await write(restorer, (writer) =>
      restoreTree({
        catalog,
        restorer,
        writer,
        breath,
        selection: select({}),
        isNeeded: (node) => plan.needed.has(node.inode.ino),
        restoresRoot: true,
        onOwnName: () => options.onWarning?.(`left out: ${OWN_NAME} at the top of the bundle`),
      }),
    );
    writeOrigin(tree.root, { repo: bundle.repo, bundle: bundle.id, complete: true });
  });
  return { written: files, bytes, removed, kept };
}

/** The catalogs that the folder's content may come from: two where an earlier update did not finish. */
async function openBases(context: Context, origin: Origin | undefined, options: UpdateOptions): Promise<Catalog[]> {
  const bases: Catalog[] = [];
  for (const source of [origin, origin?.next]) {
    if (source === undefined) continue;
    try {
      const bundle = await getBundle(context, source.repo, source.bundle);
      bases.push(await openBundleCatalog(context, bundle, options.cacheDirectory));
    } catch (error) {
      if (!(error instanceof DatamonError) || (error.code !== "not-found" && error.code !== "damaged")) throw error;
      options.onWarning?.(`local edits cannot be told from what was downloaded: ${error.message}`);
    }
  }
  return bases;
}

async function makePlan(
  tree: LocalTree,
  catalog: Catalog,
  bases: Catalog[],
  options: UpdateOptions,
  breath: Breath,
): Promise<Plan> {
  const plan: Plan = { needed: new Set(), removals: [], kept: 0, edits: { count: 0, named: [] } };
  const cache = StatCache.open(options.stateFile, tree.root);
  try {
    for await (const found of compareTree(tree, catalog, cache, breath, options.signal)) {
      consider(plan, found, bases);
    }
  } catch (error) {
    throw breath.explain(error);
  } finally {
    cache.close();
  }
  return plan;
}

function consider(plan: Plan, { path, inode, local, inTheWay }: Comparison, bases: Catalog[]): void {
  if (inode !== undefined && kindOf(inode) !== "directory") plan.needed.add(inode.ino);
  if (local === undefined) return;
  const known = bases.map((base) => base.resolve(path)).filter((base) => base !== undefined);
  const untouched = known.some((base) => isEqual(base, local));
  if (inode === undefined && known.length === 0 && !inTheWay) {
    plan.kept++;
    return;
  }
  if (!untouched) {
    plan.edits.count++;
    if (plan.edits.named.length < NAMED_EDITS) plan.edits.named.push(display(path));
  }
  if (inode === undefined || inTheWay) plan.removals.push({ path, isDirectory: local.stat.kind === "directory" });
}

/** Removes an entry, and the directories above it that are empty then and not the bundle's; answers how many. */
function remove(restorer: Restorer, catalog: Catalog, { path, isDirectory }: Plan["removals"][number]): number {
  if (!restorer.remove(path, isDirectory)) return 0;
  let count = 1;
  for (let at = path.lastIndexOf("/"); at > 0; at = path.lastIndexOf("/", at - 1)) {
    const parent = path.slice(0, at) as ByteString;
    const inode = catalog.resolve(parent);
    if ((inode !== undefined && kindOf(inode) === "directory") || !restorer.remove(parent, true)) break;
    count++;
  }
  return count;
}

function refusal(tree: LocalTree, { edits }: Plan, origin: Origin | undefined): DatamonError {
  const more = edits.count > edits.named.length ? ` and ${edits.count - edits.named.length} more` : "";
  const what = `${edits.named.join(", ")}${more}`;
  const why =
    origin === undefined
      ? `${tree.shown} has no note of the bundle that it came from, so what differs may be edits: ${what}`
      : `local edits in ${tree.shown} would be lost: ${what}`;
  return new DatamonError("conflict", why, { hint: "Add --force to overwrite them; nothing was changed so far." });
}
