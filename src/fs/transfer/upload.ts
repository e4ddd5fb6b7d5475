/** Uploading a folder as a bundle: blobs, then the catalog, then the record, then the label. */
import { randomUUID } from "node:crypto";
import { renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type ByteString, DatamonError, isBucketUrl, Placer } from "../../cas/index.ts";
import {
  type Bundle,
  type Catalog,
  type CatalogSummary,
  CatalogWriter,
  type Context,
  createBundle,
  getBundle,
  newBundleId,
  newestBundle,
  putCatalog,
  setLabel,
} from "../../meta/index.ts";
import { BUILDING, catalogDirectory, openBundleCatalog, removeLeftBehind } from "./base-tree.ts";
import { Breath } from "./breath.ts";
import type { BucketTree } from "./bucket-tree.ts";
import { KnownContent } from "./known-content.ts";
import { type Selection, select } from "./selection.ts";
import { StatCache } from "./stat-cache.ts";
import { TreeScan } from "./tree-scan.ts";
import { findUnchanged, sameRoot } from "./unchanged.ts";
import { LocalTree, OWN_NAME, type SourceTree } from "./walk.ts";

/** What to upload, and how. */
export interface UploadOptions {
  repo: string;
  /** The folder, where a link to one is followed, or the URL of a bucket with a prefix (see `openBucket`). */
  path: string | LocalTree;
  message: string;
  /** Set on the new bundle. */
  label?: string | undefined;
  /** Ids of the bundles that this one follows, the first of which it is compared with; by default the repo's newest. */
  parents?: string[] | undefined;
  /** Only files, links and directories whose displayed path (relative to the folder) matches; parents come along. */
  filter?: RegExp | undefined;
  /** Only these paths, relative to the folder (see `parseFileList`); a directory comes without what is in it. */
  files?: readonly ByteString[] | undefined;
  /** Files that cannot be read are left out with a warning; otherwise the first one ends the upload. */
  skipOnError?: boolean | undefined;
  /** Puts under way at once. */
  concurrency?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Files done and content bytes read or known; called often. */
  onProgress?: ((progress: UploadProgress) => void) | undefined;
  onWarning?: ((message: string) => void) | undefined;
  /** Told of every entry that is left out because it could not be read, which `onWarning` tells as well. */
  onLeftOut?: ((error: DatamonError) => void) | undefined;
  /** Datamon's cache directory; catalogs are kept and built below it. */
  cacheDirectory: string;
  /** The stat cache's SQLite file. */
  stateFile: string;
}

/** How far an upload has come. */
export interface UploadProgress {
  files: number;
  bytes: number;
  /** Only where they are known beforehand, as of a bucket. */
  totalFiles?: number;
  totalBytes?: number;
}

/** What an upload made. */
export interface UploadResult {
  bundle: Bundle;
  /** Entries left out with a warning because they could not be read or were missing. */
  failed: number;
  /** Sockets, fifos and devices, which no bundle keeps. */
  skipped: number;
  /** Files whose content came from the base bundle without being read. */
  reusedFiles: number;
  /** Blobs and bytes that went into the store, bytes read from disk, bytes read that were in the store already. */
  stats: { blobsPut: number; bytesPut: number; bytesRead: number; bytesReused: number };
  /** True where the tree equals the base's, so that no catalog was stored. */
  unchanged: boolean;
}

interface Tree {
  catalog: string;
  summary: Pick<CatalogSummary, "tree" | "files" | "bytes">;
  failed: number;
  skipped: number;
  reusedFiles: number;
  stats: UploadResult["stats"];
  unchanged: boolean;
}

interface Base {
  bundle: Bundle;
  catalog: Catalog;
}

/**
 * Uploads a folder, or what lies below a prefix of a bucket. Entries below mount points inside a folder
 * are uploaded like any others; an entry named `.datamon` at the top is Datamon's own and is left out.
 *
 * Throws "usage" where the path is not a folder, "not-found" for the repo, "interrupted" on the
 * signal, and whatever a file or the store failed with. Stopped at any point, the same upload run
 * again finds in the store what was put before.
 */
export async function uploadTree(context: Context, options: UploadOptions): Promise<UploadResult> {
  const breath = new Breath("the upload", options.signal);
  const { path } = options;
  if (typeof path !== "string") return await uploadFrom(context, path, options, breath);
  if (!isBucketUrl(path)) return await uploadFrom(context, LocalTree.open(path), options, breath);
  let refused = 0;
  const onRefused = (error: DatamonError) => {
    refused++;
    leaveOut(error, options);
  };
  const bucket = await openBucketTree(context, path, options, onRefused, breath);
  try {
    const result = await uploadFrom(context, bucket, options, breath);
    return { ...result, failed: result.failed + refused };
  } finally {
    bucket.close();
  }
}

async function openBucketTree(
  { config, requests: metrics }: Context,
  url: string,
  { signal }: UploadOptions,
  onRefused: (error: DatamonError) => void,
  breath: Breath,
): Promise<BucketTree> {
  const { BucketTree } = await import("./bucket-tree.ts");
  try {
    return await BucketTree.open(url, { credential: config.credential, metrics, signal, onRefused });
  } catch (error) {
    throw breath.explain(error);
  }
}

async function uploadFrom(
  context: Context,
  tree: SourceTree,
  options: UploadOptions,
  breath: Breath,
): Promise<UploadResult> {
  warnOfOwnName(tree, options.onWarning);
  const cache = StatCache.open(options.stateFile, tree.root);
  let base: Base | undefined;
  try {
    base = await openBase(context, options);
    const built = await build(context, tree, base, cache, options, breath);
    breath.check();
    const bundle = await record(context, options, base?.bundle, built);
    const { failed, skipped, reusedFiles, stats, unchanged } = built;
    return { bundle, failed, skipped, reusedFiles, stats, unchanged };
  } catch (error) {
    throw breath.explain(error);
  } finally {
    cache.close();
    base?.catalog.close();
  }
}

async function openBase(context: Context, options: UploadOptions): Promise<Base | undefined> {
  const { repo, parents } = options;
  const bundle =
    parents === undefined
      ? await newestBundle(context, repo)
      : parents[0] && (await getBundle(context, repo, parents[0]));
  if (!bundle) return undefined;
  try {
    return { bundle, catalog: await openBundleCatalog(context, bundle, options.cacheDirectory) };
  } catch (error) {
    // An upload is one way to get a good bundle again, so it must not need the damaged one.
    if (!(error instanceof DatamonError) || (error.code !== "damaged" && error.code !== "not-found")) throw error;
    options.onWarning?.(`bundle ${bundle.id} cannot be used as a base: ${error.message}`);
    return undefined;
  }
}

async function build(
  context: Context,
  tree: SourceTree,
  base: Base | undefined,
  cache: StatCache,
  options: UploadOptions,
  breath: Breath,
): Promise<Tree> {
  const selection = select(options);
  if (base !== undefined && selection.everything) {
    const unchanged = await reuseWhole(tree, base, cache, options, breath);
    if (unchanged !== undefined) return unchanged;
  }
  const directory = catalogDirectory(options.cacheDirectory);
  removeLeftBehind(directory);
  const file = join(directory, `${BUILDING}${randomUUID()}.sqlite`);
  try {
    return await scanAndStore(context, tree, base, cache, options, breath, { selection, directory, file });
  } finally {
    rmSync(file, { force: true });
  }
}

async function reuseWhole(
  tree: SourceTree,
  base: Base,
  cache: StatCache,
  options: UploadOptions,
  breath: Breath,
): Promise<Tree | undefined> {
  const progress: UploadProgress = { files: 0, bytes: 0, ...tree.totals };
  const onFile = (size: number) => {
    progress.files++;
    progress.bytes += size;
    options.onProgress?.(progress);
  };
  let unchanged: Awaited<ReturnType<typeof findUnchanged>>;
  try {
    unchanged = await findUnchanged(tree, base.catalog, cache, breath, onFile);
  } catch (error) {
    // What cannot be read is met again by the full scan, which decides what to do about it.
    if (!(error instanceof DatamonError) || error.code === "interrupted") throw error;
    return undefined;
  }
  if (unchanged === undefined) return undefined;
  for (const path of unchanged.skipped) warnOfKind(tree, path, options.onWarning);
  return {
    catalog: base.bundle.catalog,
    summary: base.bundle,
    failed: 0,
    skipped: unchanged.skipped.length,
    reusedFiles: progress.files,
    stats: { blobsPut: 0, bytesPut: 0, bytesRead: 0, bytesReused: 0 },
    unchanged: true,
  };
}

async function scanAndStore(
  context: Context,
  tree: SourceTree,
  base: Base | undefined,
  cache: StatCache,
  options: UploadOptions,
  breath: Breath,
  target: { selection: Selection; directory: string; file: string },
): Promise<Tree> {
  const known = base === undefined ? undefined : new KnownContent(base.catalog);
  const progress: UploadProgress = { files: 0, bytes: 0, ...(target.selection.everything && tree.totals) };
  const report = (files: number, bytes: number) => {
    progress.files += files;
    progress.bytes += bytes;
    options.onProgress?.(progress);
  };
  const writer = CatalogWriter.create(target.file);
  const placer = new Placer(context.blobs, {
    onBytes: (bytes) => report(0, bytes),
    ...(known === undefined ? {} : { reuse: (hash) => known.extents(hash) }),
    ...(options.concurrency === undefined ? {} : { concurrency: options.concurrency }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const scan = new TreeScan({
    tree,
    writer,
    cache,
    breath,
    selection: target.selection,
    base: base?.catalog,
    known,
    onFile: report,
    onOther: (path) => warnOfKind(tree, path, options.onWarning),
    onFailure: (error) => leaveOut(error, options),
  });
  let summary: CatalogSummary;
  try {
    summary = await scan.run(placer);
    breath.check();
  } catch (error) {
    writer.abort();
    throw error;
  } finally {
    await placer.close();
  }
  if (target.selection.everything && scan.failed === 0) cache.prune();

  const unchanged =
    base !== undefined && summary.tree === base.bundle.tree && scan.linksEqual() && sameRoot(tree, base.catalog, cache);
  const catalog = unchanged ? base.bundle.catalog : summary.hash;
  if (!unchanged) {
    breath.check();
    await putCatalog(context, summary.file, summary.hash);
    // The next upload finds its base here without fetching it.
    renameSync(summary.file, join(target.directory, `${summary.hash}.sqlite`));
  }
  const { failed, skipped, reusedFiles } = scan;
  return { catalog, summary, failed, skipped, reusedFiles, stats: placer.stats, unchanged };
}

/** Writes the bundle's record, which is the moment when the bundle exists, and then its label. */
async function record(context: Context, options: UploadOptions, base: Bundle | undefined, tree: Tree): Promise<Bundle> {
  const parents = options.parents ?? (base === undefined ? [] : [base.id]);
  const bundle = await createBundle(context, {
    id: newBundleId(parents),
    repo: options.repo,
    message: options.message,
    parents,
    catalog: tree.catalog,
    tree: tree.summary.tree,
    files: tree.summary.files,
    bytes: tree.summary.bytes,
  });
  if (options.label !== undefined) await setLabel(context, options.repo, options.label, bundle.id);
  return bundle;
}

/** Says that an entry is left out; throws where that is not wanted. */
function leaveOut(error: DatamonError, { skipOnError, onWarning, onLeftOut }: UploadOptions): void {
  if (skipOnError !== true || !isAboutTheFile(error)) throw error;
  onWarning?.(`left out: ${error.message}`);
  onLeftOut?.(error);
}

/** Failures of a single file, as opposed to those of a store or of this machine. */
function isAboutTheFile({ code }: DatamonError): boolean {
  return code !== "no-space" && code !== "interrupted" && code !== "unavailable";
}

function warnOfKind(tree: SourceTree, path: ByteString, onWarning: UploadOptions["onWarning"]): void {
  onWarning?.(`left out: ${tree.show(path)} is a socket, fifo or device`);
}

/** Somebody's own files in a directory of that name would be missed. */
function warnOfOwnName(tree: SourceTree, onWarning: UploadOptions["onWarning"]): void {
  if (onWarning === undefined) return;
  const stat = tree.stat(OWN_NAME);
  if (stat === undefined) return;
  const foreign = stat.kind !== "directory" || tree.names(OWN_NAME).some((name) => name !== "bundle.json");
  if (foreign)
    onWarning(`left out: ${tree.show(OWN_NAME)} (the name ${OWN_NAME} at the top is kept for Datamon itself)`);
}
