/** Making bundles of what a scratch holds. */

import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { DiskCache, Fetcher } from "../cache/index.ts";
import { DatamonError, faultPoint, ioError, Placer } from "../cas/index.ts";
import {
  type Bundle,
  type CatalogSummary,
  CatalogWriter,
  type Context,
  createBundle,
  fetchCatalog,
  getBundle,
  keepCatalog,
  newBundleId,
  putCatalog,
} from "../meta/index.ts";
import { CatalogBase } from "./base.ts";
import { checkLabel, moveLabel } from "./commit-label.ts";
import { reuseOf, TreeEdit } from "./commit-tree.ts";
import { Journal } from "./overlay/journal.ts";
import { type Layer, openFrozen } from "./overlay/layer.ts";
import { baseOfLayer, journalFile, layerDirectory, stackOf } from "./overlay/layers.ts";
import { OverlayNamespace } from "./overlay/overlay.ts";
import {
  checkUnused,
  type FrozenLayer,
  type OnConflict,
  rereadScratch,
  type Scratch,
  type ScratchRecord,
  settleScratch,
  updateScratch,
} from "./scratch.ts";

/** How a scratch is committed. */
export interface CommitOptions {
  /** Where blobs and catalogs are cached. */
  readonly cacheDirectory: string;
  /** Limit of the disk cache in bytes. */
  readonly cacheSize?: number | undefined;
  /** Message of the bundle; the scratch's own where absent. */
  readonly message?: string | undefined;
  /** Label to set to it; the scratch's own where absent. */
  readonly label?: string | undefined;
  /** What to do where somebody else moved the label since the mount began; the scratch's own where absent, to move it where that says nothing. */
  readonly onConflict?: OnConflict | undefined;
  readonly signal?: AbortSignal;
  /** Content that was read so far: files done, and bytes. */
  onProgress?(progress: { files: number; bytes: number }): void;
  /** Told what of the tree no bundle can hold. */
  onWarning?(text: string): void;
}

/** A bundle that changes are made to. */
type Base = NonNullable<ScratchRecord["base"]>;

/**
 * Makes a bundle of the tree in `scratch`, whose parent is the scratch's base; undefined where the
 * tree does not differ from it. Where a commit of the mount froze layers and could not finish, their
 * bundle is made first. The cost grows with what was changed. The scratch is the caller's to discard
 * afterwards.
 *
 * Blobs, catalog, record and label are stored in this order. Where anything fails, a `DatamonError`
 * says how to try again: what was stored is found, and a bundle that was made is not made twice.
 */
export async function commitScratch(
  context: Context,
  scratch: Scratch,
  options: CommitOptions,
): Promise<Bundle | undefined> {
  try {
    const current = await rereadScratch(scratch);
    // Between two daemons of one mount nobody holds the lock.
    await checkUnused(current);
    const settled = await settleScratch(current);
    await checkLabel(context, settled.record, options);
    const frozen = await commitFrozen(context, settled, options);
    const thawed = frozen.base === undefined ? frozen.scratch : await standOn(frozen.scratch, frozen.base);
    const bundle = await commitTop(context, thawed, options);
    return bundle ?? frozen.bundle;
  } catch (error) {
    const { code, message, hint } = ioError("commit", error);
    throw new DatamonError(code, `scratch ${scratch.id} could not be committed: ${message}`, {
      hint: `${hint === undefined ? "" : `${hint} `}Nothing is lost. Try again with: datamon scratch commit ${scratch.id}`,
      cause: error,
    });
  }
}

/** What became of frozen layers. */
export interface FrozenCommit {
  /** The scratch with its record as it is now. */
  readonly scratch: Scratch;
  /** The newest bundle that was made, if any. */
  readonly bundle: Bundle | undefined;
  /** What can take the place of the frozen layers; undefined where there are none. */
  readonly base: Base | undefined;
}

/** Makes the bundles of all frozen layers of a scratch, which may be mounted. */
export async function commitFrozen(context: Context, scratch: Scratch, options: CommitOptions): Promise<FrozenCommit> {
  let current = scratch;
  let bundle: Bundle | undefined;
  let base: Base | undefined;
  const told = current.record.frozen ?? [];
  for (const number of stackOf(scratch.directory).slice(0, -1)) {
    const entry = told.find(({ layer }) => layer === number) ?? { layer: number };
    if (entry.base === undefined) {
      const below = base ?? current.record.base;
      const made = await commitLayer(context, current, entry, below, options);
      bundle = made ?? bundle;
      const became = made === undefined ? below : { bundle: made.id, catalog: made.catalog };
      current = await rereadScratch(current);
      if (made !== undefined) {
        const { label = entry.label, onConflict = entry.onConflict } = options;
        current = await moveLabel(context, current, made.id, { label, onConflict });
      }
      faultPoint("commit", "made");
      current = await updateFrozen(current, { ...entry, ...(became && { base: became }) });
      base = became;
    } else {
      base = entry.base;
    }
  }
  return { scratch: current, bundle, base };
}

/** Has the changes above frozen layers stand on the bundle that those became; they go. */
async function standOn(scratch: Scratch, base: Base): Promise<Scratch> {
  const top = stackOf(scratch.directory).at(-1) as number;
  const file = journalFile(layerDirectory(scratch.directory, top));
  const journal = Journal.open(file, baseOfLayer(scratch.directory, top));
  try {
    journal.rebase(base.bundle);
  } finally {
    journal.close();
  }
  return await settleScratch(scratch);
}

async function commitLayer(
  context: Context,
  scratch: Scratch,
  entry: FrozenLayer,
  base: Base | undefined,
  options: CommitOptions,
): Promise<Bundle | undefined> {
  const begun = await bundleBegun(context, scratch.record.repo, entry.committing);
  if (begun !== undefined) return begun;
  return await makeBundle(context, scratch, base, {
    ...options,
    message: entry.message ?? scratch.record.message,
    open: (catalog) => {
      const layer = openFrozen(scratch.directory, entry.layer, catalog);
      return { layer, close: () => [layer.close(), layer.base.close()] };
    },
    keepNumbers: true,
    begin: async (id) => {
      await updateFrozen(await rereadScratch(scratch), { ...entry, committing: id });
    },
  });
}

/** Commits the topmost layer, in a scratch without frozen ones. */
async function commitTop(context: Context, scratch: Scratch, options: CommitOptions): Promise<Bundle | undefined> {
  const { repo, base, committing, message } = scratch.record;
  const bundle =
    (await bundleBegun(context, repo, committing)) ??
    (await makeBundle(context, scratch, base, {
      ...options,
      message: options.message ?? message,
      open: (catalog) => {
        const overlay = OverlayNamespace.open(scratch.directory, catalog, base?.bundle);
        return { layer: overlay.layer, close: () => overlay.close() };
      },
      keepNumbers: false,
      begin: async (id) => {
        await updateScratch(scratch, { committing: id });
      },
    }));
  if (bundle !== undefined) await moveLabel(context, await rereadScratch(scratch), bundle.id, options);
  return bundle;
}

/** Replaces what the record says of a frozen layer. */
export async function updateFrozen(scratch: Scratch, entry: FrozenLayer): Promise<Scratch> {
  const others = (scratch.record.frozen ?? []).filter(({ layer }) => layer !== entry.layer);
  const frozen = [...others, entry].sort((one, other) => one.layer - other.layer);
  return await updateScratch(scratch, { frozen });
}

/** The bundle that an earlier commit of the same changes made before it failed. */
async function bundleBegun(context: Context, repo: string, id: string | undefined): Promise<Bundle | undefined> {
  if (id === undefined) return undefined;
  try {
    return await getBundle(context, repo, id);
  } catch (error) {
    if (error instanceof DatamonError && error.code === "not-found") return undefined;
    throw error;
  }
}

/** How the bundle of one layer is made. */
interface Making extends CommitOptions {
  readonly message: string;
  /** Opens the layer over the catalog. */
  open(catalog: string | undefined): { layer: Layer; close(): void };
  /** The inodes of the layer keep their numbers in the catalog. */
  readonly keepNumbers: boolean;
  /** Told the id of the bundle before it is made. */
  begin(id: string): Promise<void>;
}

async function makeBundle(
  context: Context,
  scratch: Scratch,
  base: Base | undefined,
  making: Making,
): Promise<Bundle | undefined> {
  const draft = join(scratch.directory, `commit-${randomBytes(4).toString("hex")}.sqlite`);
  const catalogs = join(making.cacheDirectory, "catalogs");
  try {
    const catalog = base && (await fetchCatalog(context, base.catalog, catalogs));
    const summary = await writeCatalog(context, catalog, draft, making);
    if (summary === undefined) return undefined;
    await putCatalog(context, summary.file, summary.hash);
    const parents = base === undefined ? [] : [base.bundle];
    const id = newBundleId(parents);
    await making.begin(id);
    const bundle = await createBundle(context, {
      id,
      repo: scratch.record.repo,
      message: making.message,
      parents,
      catalog: summary.hash,
      tree: summary.tree,
      files: summary.files,
      bytes: summary.bytes,
    });
    if (making.keepNumbers) await keepCatalog(summary.file, summary.hash, catalogs);
    return bundle;
  } finally {
    await rm(draft, { force: true });
  }
}

/** Stores the blobs of what changed and writes the new catalog to `file`; undefined where the tree is the base's. */
async function writeCatalog(
  context: Context,
  catalog: string | undefined,
  file: string,
  { open, keepNumbers, cacheDirectory, cacheSize, signal, onProgress, onWarning }: Making,
): Promise<CatalogSummary | undefined> {
  const { layer, close } = open(catalog);
  try {
    const changes = layer.journal.countChanges();
    if (changes === 0) return undefined;
    const below = layer.base instanceof CatalogBase ? layer.base.catalog : undefined;
    const cache = DiskCache.open(cacheDirectory, cacheSize === undefined ? {} : { sizeLimit: cacheSize });
    const fetcher = new Fetcher(context.blobs, cache);
    const writer = await writerOf(catalog, file, keepNumbers);
    let bytes = 0;
    let files = 0;
    const placer = new Placer(context.blobs, {
      reuse: reuseOf(below, changes),
      ...(signal !== undefined && { signal }),
      onBytes: (count) => {
        bytes += count;
        onProgress?.({ files, bytes });
      },
    });
    try {
      const edit = new TreeEdit(layer, below, writer, fetcher, { keepNumbers, warn: onWarning });
      for await (const result of placer.place(edit.sources())) {
        if ("error" in result) throw result.error;
        edit.placed(result.tag, result.placed.content);
        files++;
        onProgress?.({ files, bytes });
      }
      edit.finish();
      const summary = await writer.finish();
      const differs = edit.changesRoot || (keepNumbers && edit.changesNames);
      return summary.tree === below?.summary().tree && !differs ? undefined : summary;
    } catch (error) {
      writer.abort();
      throw error;
    } finally {
      await placer.close();
      await fetcher.close();
      cache.close();
    }
  } finally {
    close();
  }
}

/** Without a base, numbers that are kept may be in any order, which only an edit takes. */
async function writerOf(catalog: string | undefined, file: string, keepNumbers: boolean): Promise<CatalogWriter> {
  if (catalog !== undefined) return CatalogWriter.edit(catalog, file);
  if (!keepNumbers) return CatalogWriter.create(file);
  const empty = `${file}.empty`;
  try {
    await CatalogWriter.create(empty).finish();
    return CatalogWriter.edit(empty, file);
  } finally {
    await rm(empty, { force: true });
  }
}
