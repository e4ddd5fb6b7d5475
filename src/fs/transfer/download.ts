/** Downloading a bundle, or one file of it, to a local folder. */
import { mkdirSync, readdirSync, statSync } from "node:fs";
import { resolve } from "node:path";
import {
  type ByteString,
  bytesOf,
  DatamonError,
  display,
  type Hash,
  ioError,
  isErrno,
  isValidName,
} from "../../cas/index.ts";
import type { Bundle, Catalog, Context } from "../../meta/index.ts";
import { openBundleCatalog } from "./base-tree.ts";
import { Breath } from "./breath.ts";
import { kindOf } from "./catalog-walk.ts";
import { ContentWriter } from "./content-writer.ts";
import { writeOrigin } from "./record.ts";
import { restoreTree } from "./restore-tree.ts";
import { Restorer } from "./restorer.ts";
import { select } from "./selection.ts";
import { LocalTree, OWN_NAME } from "./walk.ts";

/** What all ways to fetch a bundle's files have in common. */
export interface TransferOptions {
  /** Datamon's cache directory; catalogs are kept below it. */
  cacheDirectory: string;
  /** A blob's verified content; by default straight from the store. */
  fetch?: ((hash: Hash) => Promise<Buffer>) | undefined;
  /** Blobs under way at once. */
  concurrency?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Files completed and content bytes written, and how many there are if all are wanted; called often. */
  onProgress?: ((progress: Progress) => void) | undefined;
  onWarning?: ((message: string) => void) | undefined;
}

/** How far a transfer is. */
export interface Progress {
  files: number;
  bytes: number;
  totalFiles: number;
  totalBytes: number;
}

/** What to download, and where to. */
export interface DownloadOptions extends TransferOptions {
  bundle: Bundle;
  /** A folder that does not exist or is empty. */
  destination: string;
  /** Only files, links and directories whose displayed path matches; the directories above them come along. */
  filter?: RegExp | undefined;
  /** Allows a folder that is not empty: what is in the way is replaced, everything else stays. */
  forceDest?: boolean | undefined;
}

/** What a download wrote. */
export interface DownloadResult {
  files: number;
  bytes: number;
}

/**
 * Downloads a bundle with modes, owners (as root), times, links, extended attributes and holes.
 *
 * Throws "exists" where the destination is not empty, "damaged" for a blob or catalog that is not
 * what its name says, "no-space", "interrupted"; what was completed until then stays, and files
 * that are not complete are removed.
 */
export async function downloadBundle(context: Context, options: DownloadOptions): Promise<DownloadResult> {
  const { bundle } = options;
  const root = bytesOf(resolve(options.destination));
  const state = prepareDestination(root, options.forceDest === true);
  const tree = new LocalTree(root);
  const origin = { repo: bundle.repo, bundle: bundle.id };
  return await withCatalog(context, bundle, options, async (catalog, parts) => {
    const restorer = new Restorer(tree, options.forceDest === true, options.onWarning);
    writeOrigin(root, { ...origin, complete: false });
    await parts.write(restorer, (writer) =>
      restoreTree({
        catalog,
        restorer,
        writer,
        breath: parts.breath,
        selection: select({ filter: options.filter }),
        restoresRoot: state === "empty",
        onOwnName: () => options.onWarning?.(`left out: ${OWN_NAME} at the top of the bundle`),
      }),
    );
    writeOrigin(root, { ...origin, complete: true });
  });
}

/** A single file or symbolic link to download. */
export interface DownloadFileOptions extends TransferOptions {
  bundle: Bundle;
  /** Path in the bundle. */
  file: ByteString;
  /** The folder below which the file gets the same path. */
  destination: string;
  /** Replaces a file that is there. */
  forceDest?: boolean | undefined;
}

/** Downloads one file to its path below the destination, other files there untouched. Throws "not-found". */
export async function downloadFile(context: Context, options: DownloadFileOptions): Promise<DownloadResult> {
  const { bundle, file } = options;
  const root = bytesOf(resolve(options.destination));
  return await withCatalog(context, bundle, options, async (catalog, parts) => {
    const inode = catalog.resolve(file);
    if (inode === undefined) {
      throw new DatamonError("not-found", `${display(file)} is not in bundle ${bundle.id} of ${bundle.repo}`);
    }
    const kind = kindOf(inode);
    if (kind === "directory") {
      throw new DatamonError("usage", `${display(file)} is a directory in bundle ${bundle.id}`, {
        hint: "Download the bundle with a name filter to get all files of a directory.",
      });
    }
    makeDestination(root);
    const restorer = new Restorer(new LocalTree(root), options.forceDest === true, options.onWarning);
    await parts.write(restorer, async (writer) => {
      makeParents(restorer, file);
      if (kind === "symlink") restorer.symlink(file, inode);
      else await writer.add(file, inode);
      await writer.finish();
    });
  });
}

/** What a transfer gets to work with. */
export interface TransferParts {
  breath: Breath;
  /** Runs `work` with a content writer; where that fails, incomplete files are removed. */
  write(restorer: Restorer, work: (writer: ContentWriter) => Promise<void>): Promise<void>;
}

/** Opens a bundle's catalog for a transfer, counts what it writes, and tells with a failure how far it came. */
export async function withCatalog(
  context: Context,
  bundle: Bundle,
  options: TransferOptions,
  work: (catalog: Catalog, parts: TransferParts) => Promise<void>,
): Promise<DownloadResult> {
  const breath = new Breath("the download", options.signal);
  const catalog = await openBundleCatalog(context, bundle, options.cacheDirectory);
  const progress: Progress = { files: 0, bytes: 0, totalFiles: bundle.files, totalBytes: bundle.bytes };
  const write: TransferParts["write"] = async (restorer, action) => {
    const writer = new ContentWriter({
      catalog,
      restorer,
      fetch: options.fetch ?? ((hash) => context.blobs.get(hash)),
      breath,
      concurrency: options.concurrency,
      onWritten: (files, bytes) => {
        progress.files += files;
        progress.bytes += bytes;
        options.onProgress?.(progress);
      },
    });
    try {
      await action(writer);
    } catch (error) {
      await writer.abandon();
      throw incomplete(breath.explain(error), restorer.tree, progress);
    }
  };
  try {
    await work(catalog, { breath, write });
  } finally {
    catalog.close();
  }
  return { files: progress.files, bytes: progress.bytes };
}

function incomplete(error: unknown, tree: LocalTree, { files, totalFiles }: Progress): unknown {
  if (!(error instanceof DatamonError)) return error;
  return new DatamonError(
    error.code,
    `${error.message}; ${tree.shown} is not complete: ${files} of ${totalFiles} files were written`,
    {
      hint:
        error.code === "damaged" && error.hint
          ? error.hint
          : "Run the command again with --force-dest to write the rest.",
      cause: error,
    },
  );
}

/** Makes the destination or checks that it may be written to; "empty" where nothing was in it. */
function prepareDestination(root: ByteString, force: boolean): "empty" | "in use" {
  makeDestination(root);
  let names: string[];
  try {
    names = readdirSync(native(root));
  } catch (error) {
    throw ioError(`list ${display(root)}`, error);
  }
  if (names.length === 0) return "empty";
  if (force) return "in use";
  throw new DatamonError("exists", `${display(root)} is not empty`, {
    hint: "Choose a folder that does not exist yet, or add --force-dest to write into this one.",
  });
}

function makeDestination(root: ByteString): void {
  try {
    mkdirSync(native(root), { recursive: true });
    if (statSync(native(root)).isDirectory()) return;
  } catch (error) {
    if (!isErrno(error, "EEXIST", "ENOTDIR")) throw ioError(`make ${display(root)}`, error);
  }
  throw new DatamonError("usage", `${display(root)} is not a directory`);
}

function makeParents(restorer: Restorer, file: ByteString): void {
  let path = "";
  for (const name of file.split("/") as ByteString[]) {
    if (!isValidName(name)) throw new DatamonError("usage", `${display(file)} is not a path in a bundle`);
    if (path !== "") restorer.plainDirectory(path as ByteString);
    path = path === "" ? name : `${path}/${name}`;
  }
}

/** Destinations come from the command line, so their bytes are UTF-8. */
function native(root: ByteString): Buffer {
  return Buffer.from(root, "latin1");
}
