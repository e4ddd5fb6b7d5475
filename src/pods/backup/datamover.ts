/** Moving a folder's files into a bundle: upload, lists of what was uploaded, and on request unlinking. */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { ioError } from "../../cas/index.ts";
import { Breath, type LocalStat, LocalTree } from "../../fs/index.ts";
import type { Bundle, Context } from "../../meta/index.ts";
import { archive, type BackupEnvironment, ensureRepo } from "./archive.ts";
import { FileList } from "./file-list.ts";
import { isHeld, unlinkOriginals } from "./originals.ts";
import { bundleFiles, type Listed, localFiles } from "./path-order.ts";

/** What to move, and how. */
export interface DatamoverOptions extends BackupEnvironment {
  readonly directory: string;
  readonly label: string;
  /** What was last changed before this moment may go. */
  readonly before: Date;
  /** Directory for `upload.list`, `uploaded.list` and `removable.list`. */
  readonly lists: string;
  /** Unlinks what `removable.list` names, once the bundle is complete. */
  readonly unlink: boolean;
  /** Lists what would be uploaded and what could go; stores and unlinks nothing. */
  readonly dryRun: boolean;
}

/** What a run did. */
export interface DatamoverResult {
  /** Undefined after a dry run. */
  readonly bundle: Bundle | undefined;
  /** Lines of the lists; `uploaded` is what the bundle holds. */
  readonly listed: { upload: number; uploaded: number; removable: number };
  readonly unlinked: number;
  readonly vanished: number;
  /** Files that could not be read, or not be unlinked, and stay where they are. */
  readonly failed: number;
}

/**
 * Uploads every file of a folder as a bundle with a label. Files and symbolic links are listed by
 * their absolute paths in byte order; a path with a line break fits in no list and is therefore never
 * unlinked. A file goes only if the bundle, complete in the store, has it with the size and
 * modification time that it still has.
 *
 * Throws "exists" where one of the lists is there already, before anything is done.
 */
export async function datamover(context: Context, options: DatamoverOptions): Promise<DatamoverResult> {
  const tree = LocalTree.open(options.directory);
  const lists = new Lists(options.lists);
  try {
    return options.dryRun ? await rehearse(tree, lists, options) : await move(context, tree, lists, options);
  } catch (error) {
    // Nothing was unlinked, and the next run is not to stumble over these.
    lists.discard();
    throw error;
  }
}

async function rehearse(tree: LocalTree, lists: Lists, options: DatamoverOptions): Promise<DatamoverResult> {
  const before = nanoseconds(options.before);
  let failed = 0;
  await listLocal(tree, lists, options, {
    onFile({ path, entry }) {
      if (entry.mtimeNs < before) lists.removable.add(tree.absolute(path));
    },
    onFailure(error) {
      failed++;
      options.onWarning?.((error as Error).message);
    },
  });
  return { bundle: undefined, listed: lists.close(), unlinked: 0, vanished: 0, failed };
}

async function move(
  context: Context,
  tree: LocalTree,
  lists: Lists,
  options: DatamoverOptions,
): Promise<DatamoverResult> {
  const before = nanoseconds(options.before);
  // What cannot be read is met again by the upload, which reports it.
  await listLocal(tree, lists, options, { onFile() {}, onFailure() {} });
  await ensureRepo(context, options.repo, "Files moved by datamover");
  options.onStep?.(`uploading ${lists.upload.count} files to repo ${options.repo}`);
  const { bundle, catalog, unreadable, vanished } = await archive(context, options, {
    path: tree,
    message: `datamover: ${tree.shown}`,
    label: options.label,
  });
  const breath = new Breath("the datamover", options.signal);
  try {
    options.onStep?.(`listing what bundle ${bundle.id} holds`);
    for (const { path, entry } of bundleFiles(catalog)) {
      if (breath.due()) await breath.pause();
      lists.uploaded.add(tree.absolute(path));
      if (entry.mtimeNs < before && isHeld(tree, path, entry)) lists.removable.add(tree.absolute(path));
    }
    const listed = lists.close();
    if (!options.unlink) return { bundle, listed, unlinked: 0, vanished, failed: unreadable };
    options.onStep?.(`unlinking ${listed.removable} files`);
    const gone = await unlinkOriginals(tree, catalog, before, breath, options.onWarning);
    return { bundle, listed, unlinked: gone.unlinked, vanished, failed: unreadable + gone.failed };
  } finally {
    catalog.close();
  }
}

async function listLocal(
  tree: LocalTree,
  lists: Lists,
  options: DatamoverOptions,
  told: { onFile(file: Listed<LocalStat>): void; onFailure(error: unknown): void },
): Promise<void> {
  options.onStep?.(`listing the files of ${tree.shown}`);
  const breath = new Breath("the datamover", options.signal);
  for (const file of localFiles(tree, told.onFailure)) {
    if (breath.due()) await breath.pause();
    lists.upload.add(tree.absolute(file.path));
    told.onFile(file);
  }
  const { unlisted } = lists.upload;
  if (unlisted > 0) {
    options.onWarning?.(`names with a line break fit in no list and are never unlinked; there are ${unlisted} here`);
  }
}

function nanoseconds(moment: Date): bigint {
  return BigInt(moment.getTime()) * 1_000_000n;
}

/** The three lists of a run. */
class Lists {
  readonly upload: FileList;
  readonly uploaded: FileList;
  readonly removable: FileList;
  #open: FileList[] = [];

  constructor(directory: string) {
    try {
      mkdirSync(directory, { recursive: true });
      this.upload = this.#make(join(directory, "upload.list"));
      this.uploaded = this.#make(join(directory, "uploaded.list"));
      this.removable = this.#make(join(directory, "removable.list"));
    } catch (error) {
      this.discard();
      throw ioError(`make the lists in ${directory}`, error);
    }
  }

  #make(file: string): FileList {
    const list = new FileList(file);
    this.#open.push(list);
    return list;
  }

  /** Writes them out and returns how long they are. */
  close(): DatamoverResult["listed"] {
    for (let list = this.#open.pop(); list !== undefined; list = this.#open.pop()) list.close();
    return { upload: this.upload.count, uploaded: this.uploaded.count, removable: this.removable.count };
  }

  /** Removes those that are not closed. */
  discard(): void {
    for (const list of this.#open.splice(0)) list.discard();
  }
}
