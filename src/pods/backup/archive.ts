/** One upload of a backup: what is kept, and what could not be read. */

import { DatamonError } from "../../cas/index.ts";
import { openBundleCatalog, type UploadOptions, uploadTree } from "../../fs/index.ts";
import { type Bundle, type Catalog, type Context, createRepo, getRepo } from "../../meta/index.ts";

/** What every backup is told. */
export interface BackupEnvironment {
  /** Made where it is missing. */
  readonly repo: string;
  /** Puts under way at once. */
  readonly concurrency?: number | undefined;
  readonly cacheDirectory: string;
  readonly stateFile: string;
  readonly signal?: AbortSignal | undefined;
  onProgress?(progress: { files: number; bytes: number }): void;
  /** Told of what is left out or stays. */
  onWarning?(line: string): void;
  /** Told what is being done, a line a step. */
  onStep?(line: string): void;
}

/** A bundle that is complete in the store, and its open catalog. */
export interface Archived {
  readonly bundle: Bundle;
  readonly catalog: Catalog;
  /** Files left out because they could not be read; what vanished before it was read is not among them. */
  readonly unreadable: number;
  /** Files that vanished before they were read. */
  readonly vanished: number;
}

/** Uploads a folder or some of its files. What cannot be read is left out and reported. */
export async function archive(
  context: Context,
  environment: BackupEnvironment,
  what: Pick<UploadOptions, "path" | "files" | "message" | "label" | "parents">,
): Promise<Archived> {
  const { repo, concurrency, cacheDirectory, stateFile, signal, onProgress, onWarning } = environment;
  let vanished = 0;
  const { bundle, failed } = await uploadTree(context, {
    ...what,
    repo,
    concurrency,
    cacheDirectory,
    stateFile,
    signal,
    onProgress: (progress) => onProgress?.(progress),
    onWarning: (line) => onWarning?.(line),
    skipOnError: true,
    onLeftOut: (error) => {
      if (error.code === "not-found") vanished++;
    },
  });
  const catalog = await openBundleCatalog(context, bundle, cacheDirectory);
  return { bundle, catalog, unreadable: failed - vanished, vanished };
}

/** Makes the repo where it is missing. */
export async function ensureRepo(context: Context, name: string, description: string): Promise<void> {
  try {
    await getRepo(context, name);
  } catch (error) {
    if (!(error instanceof DatamonError) || error.code !== "not-found") throw error;
    await createRepo(context, { name, description }).catch((raced) => {
      if (!(raced instanceof DatamonError) || raced.code !== "exists") throw raced;
    });
  }
}
