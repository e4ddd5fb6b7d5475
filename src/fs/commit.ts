/** Making a bundle of what a scratch holds. */

import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { DiskCache, Fetcher } from "../cache/index.ts";
import { DatamonError, ioError, Placer } from "../cas/index.ts";
import {
  type Bundle,
  type CatalogSummary,
  CatalogWriter,
  type Context,
  createBundle,
  fetchCatalog,
  getBundle,
  newBundleId,
  putCatalog,
  setLabel,
} from "../meta/index.ts";
import { CatalogBase } from "./base.ts";
import { reuseOf, TreeEdit } from "./commit-tree.ts";
import { OverlayNamespace } from "./overlay/overlay.ts";
import { checkUnused, markCommitting, rereadScratch, type Scratch } from "./scratch.ts";

/** How a scratch is committed. */
export interface CommitOptions {
  /** Where blobs and catalogs are cached. */
  readonly cacheDirectory: string;
  /** Limit of the disk cache in bytes. */
  readonly cacheSize?: number;
  /** Message of the bundle; the scratch's own where absent. */
  readonly message?: string;
  /** Label to set to it; the scratch's own where absent. */
  readonly label?: string;
  readonly signal?: AbortSignal;
  /** Content that was read so far: files done, and bytes. */
  onProgress?(progress: { files: number; bytes: number }): void;
  /** Told what of the tree no bundle can hold. */
  onWarning?(text: string): void;
}

/**
 * Makes a bundle of the tree in `scratch`, whose parent is the scratch's base; undefined where the
 * tree does not differ from it. The cost grows with what was changed. The scratch is as it was
 * afterwards and is the caller's to discard.
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
    const bundle = (await bundleBegun(context, current)) ?? (await makeBundle(context, current, options));
    const label = options.label ?? current.record.label;
    if (bundle !== undefined && label !== undefined) await setLabel(context, bundle.repo, label, bundle.id);
    return bundle;
  } catch (error) {
    const { code, message, hint } = ioError("commit", error);
    throw new DatamonError(code, `scratch ${scratch.id} could not be committed: ${message}`, {
      hint: `${hint === undefined ? "" : `${hint} `}Nothing is lost. Try again with: datamon scratch commit ${scratch.id}`,
      cause: error,
    });
  }
}

/** The bundle that an earlier commit of the same changes made before it failed. */
async function bundleBegun(context: Context, { record }: Scratch): Promise<Bundle | undefined> {
  if (record.committing === undefined) return undefined;
  try {
    return await getBundle(context, record.repo, record.committing);
  } catch (error) {
    if (error instanceof DatamonError && error.code === "not-found") return undefined;
    throw error;
  }
}

async function makeBundle(context: Context, scratch: Scratch, options: CommitOptions): Promise<Bundle | undefined> {
  const { repo, base, message } = scratch.record;
  const draft = join(scratch.directory, `commit-${randomBytes(4).toString("hex")}.sqlite`);
  try {
    const summary = await writeCatalog(context, scratch, draft, options);
    if (summary === undefined) return undefined;
    await putCatalog(context, summary.file, summary.hash);
    const parents = base === undefined ? [] : [base.bundle];
    const id = newBundleId(parents);
    await markCommitting(scratch, id);
    return await createBundle(context, {
      id,
      repo,
      message: options.message ?? message,
      parents,
      catalog: summary.hash,
      tree: summary.tree,
      files: summary.files,
      bytes: summary.bytes,
    });
  } finally {
    await rm(draft, { force: true });
  }
}

/** Stores the blobs of what changed and writes the new catalog to `file`; undefined where the tree is the base's. */
async function writeCatalog(
  context: Context,
  scratch: Scratch,
  file: string,
  options: CommitOptions,
): Promise<CatalogSummary | undefined> {
  const { base } = scratch.record;
  const catalog = base && (await fetchCatalog(context, base.catalog, join(options.cacheDirectory, "catalogs")));
  const overlay = OverlayNamespace.open(scratch.directory, catalog, base?.bundle);
  try {
    const changes = overlay.changes();
    if (changes === 0) return undefined;
    const below = overlay.parts.base instanceof CatalogBase ? overlay.parts.base.catalog : undefined;
    const cache = DiskCache.open(
      options.cacheDirectory,
      options.cacheSize === undefined ? {} : { sizeLimit: options.cacheSize },
    );
    const fetcher = new Fetcher(context.blobs, cache);
    const writer = catalog === undefined ? CatalogWriter.create(file) : CatalogWriter.edit(catalog, file);
    let bytes = 0;
    let files = 0;
    const placer = new Placer(context.blobs, {
      reuse: reuseOf(below, changes),
      ...(options.signal !== undefined && { signal: options.signal }),
      onBytes: (count) => {
        bytes += count;
        options.onProgress?.({ files, bytes });
      },
    });
    try {
      const edit = new TreeEdit(overlay.parts, below, writer, fetcher, options.onWarning);
      for await (const result of placer.place(edit.sources())) {
        if ("error" in result) throw result.error;
        edit.placed(result.tag, result.placed.content);
        files++;
        options.onProgress?.({ files, bytes });
      }
      edit.finish();
      const summary = await writer.finish();
      return summary.tree === below?.summary().tree && !edit.changesRoot ? undefined : summary;
    } catch (error) {
      writer.abort();
      throw error;
    } finally {
      await placer.close();
      await fetcher.close();
      cache.close();
    }
  } finally {
    overlay.close();
  }
}
