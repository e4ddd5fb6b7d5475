/** Backing up the folders of a shared disk, a bundle each, and making room there. */

import { randomBytes } from "node:crypto";
import { renameSync } from "node:fs";
import { type ByteString, bytesFrom, bytesOf, DatamonError, display, ioError, joinPath } from "../../cas/index.ts";
import { Breath, type LocalStat, LocalTree } from "../../fs/index.ts";
import { type Bundle, type Catalog, type Context, listLabels } from "../../meta/index.ts";
import { archive, type BackupEnvironment, ensureRepo } from "./archive.ts";
import { FileList } from "./file-list.ts";
import { dayName } from "./moment.ts";
import { isHeld, unlinkOriginals } from "./originals.ts";
import { bundleFiles, type Listed, localFiles } from "./path-order.ts";

/** Files stay for so long after their last change, in days, as with earlier versions. */
const KEEP_DAYS = 20;

/** What to back up. */
export interface BackupOptions extends BackupEnvironment {
  /** A folder, each of whose folders becomes a bundle, and the files beside them another; or files one by one. */
  readonly from: { directory: string } | { files: Uint8Array };
  /** Where to list what may be deleted; deletes it where absent. */
  readonly unlinkable?: string | undefined;
  /** Lists what would be backed up; stores and deletes nothing. */
  readonly dryRun: boolean;
}

/** One of the bundles of a backup. */
export interface BackupPart {
  readonly path: string;
  readonly label: string;
  /** Undefined after a dry run. */
  readonly bundle: Bundle | undefined;
  readonly files: number;
  /** Files that may be deleted, or were. */
  readonly removable: number;
  readonly unlinked: number;
  /** Files that could not be read or deleted. */
  readonly failed: number;
}

/** A folder, or some files in it, on the way into a bundle. */
interface Part {
  readonly tree: LocalTree;
  readonly label: string;
  /** Only these paths; everything where undefined. */
  readonly files: readonly ByteString[] | undefined;
}

/**
 * Makes a bundle of each folder, with the label `2006-jan-02-<folder>-<index>`; index 0 is that of
 * the files beside the folders. Files that were last changed 20 days ago or earlier may then be deleted, but
 * only where the folder holds as many files as the bundle, and each only while it has the size and
 * modification time that the bundle has.
 */
export async function* backup(context: Context, options: BackupOptions): AsyncGenerator<BackupPart> {
  const now = new Date();
  const before = (BigInt(now.getTime()) - BigInt(KEEP_DAYS) * 86_400_000n) * 1_000_000n;
  const parts =
    "directory" in options.from ? foldersOf(options.from.directory, now) : [listed(options.from.files, now)];
  const list = options.unlinkable === undefined ? undefined : new ReplacedList(options.unlinkable);
  try {
    if (!options.dryRun) await ensureRepo(context, options.repo, "Backups");
    const earlier = options.dryRun ? new Map<string, string>() : await earlierBackups(context, options.repo);
    for (const part of parts) {
      options.onStep?.(`backing up ${part.tree.shown} as ${part.label}`);
      if (options.dryRun) yield await rehearse(part, before, options);
      else yield await keep(context, part, earlier.get(folderOf(part.label)), before, list, options);
    }
    list?.finish();
  } finally {
    list?.abandon();
  }
}

async function rehearse(part: Part, before: bigint, options: BackupOptions): Promise<BackupPart> {
  const breath = new Breath("the backup", options.signal);
  let files = 0;
  let old = 0;
  for (const { entry } of filesOf(part)) {
    if (breath.due()) await breath.pause();
    files++;
    if (entry.mtimeNs < before) old++;
  }
  return { path: part.tree.shown, label: part.label, bundle: undefined, files, removable: old, unlinked: 0, failed: 0 };
}

async function keep(
  context: Context,
  { tree, label, files }: Part,
  parent: string | undefined,
  before: bigint,
  list: ReplacedList | undefined,
  options: BackupOptions,
): Promise<BackupPart> {
  const breath = new Breath("the backup", options.signal);
  const { bundle, catalog, unreadable } = await archive(context, options, {
    path: tree,
    files,
    message: `backup: ${tree.shown}`,
    label,
    parents: parent === undefined ? [] : [parent],
  });
  try {
    const held = count(bundleFiles(catalog));
    const there = count(filesOf({ tree, label, files }));
    const part = { path: tree.shown, label, bundle, files: held, removable: 0, unlinked: 0, failed: unreadable };
    if (held !== there) {
      options.onWarning?.(`${tree.shown} has ${there} files and the bundle ${held}: nothing of it is deleted`);
      return part;
    }
    if (list === undefined) {
      const gone = await unlinkOriginals(tree, catalog, before, breath, options.onWarning);
      return { ...part, removable: gone.unlinked, unlinked: gone.unlinked, failed: unreadable + gone.failed };
    }
    return { ...part, removable: await listRemovable(tree, catalog, before, breath, list) };
  } finally {
    catalog.close();
  }
}

async function listRemovable(
  tree: LocalTree,
  catalog: Catalog,
  before: bigint,
  breath: Breath,
  list: ReplacedList,
): Promise<number> {
  const already = list.list.count;
  for (const { path, entry } of bundleFiles(catalog)) {
    if (breath.due()) await breath.pause();
    if (entry.mtimeNs < before && isHeld(tree, path, entry)) list.list.add(tree.absolute(path));
  }
  return list.list.count - already;
}

/** The newest bundle of each folder: what has not changed since is not read again. */
async function earlierBackups(context: Context, repo: string): Promise<Map<string, string>> {
  const newest = new Map<string, { bundle: string; timestamp: Date }>();
  for await (const { label, bundle, timestamp } of listLabels(context, repo)) {
    const other = newest.get(folderOf(label));
    if (bundle !== undefined && (other === undefined || other.timestamp < timestamp)) {
      newest.set(folderOf(label), { bundle, timestamp });
    }
  }
  return new Map([...newest].map(([folder, { bundle }]) => [folder, bundle]));
}

/** A label without its day and index. */
function folderOf(label: string): string {
  return label.replace(/^\d{4}-[a-z]{3}-\d\d-/, "").replace(/-\d+$/, "");
}

/** The folders in a folder, in byte order, and first the files beside them where there are any. */
function foldersOf(directory: string, now: Date): Part[] {
  const tree = LocalTree.open(directory);
  const beside: ByteString[] = [];
  const folders: ByteString[] = [];
  for (const name of tree.names("" as ByteString)) {
    const kind = tree.stat(name)?.kind;
    if (kind === "directory") folders.push(name);
    else if (kind === "file" || kind === "symlink") beside.push(name);
  }
  const parts = folders.map((name, index): Part => {
    const folder = new LocalTree(tree.absolute(name));
    return { tree: folder, label: labelOf(folder, index + 1, now), files: undefined };
  });
  return beside.length === 0 ? parts : [{ tree, label: labelOf(tree, 0, now), files: beside }, ...parts];
}

/** The files of a list, one a line, by their absolute paths or from the working directory. */
function listed(lines: Uint8Array, now: Date): Part {
  const paths = (bytesFrom(lines).split("\n") as ByteString[]).filter((line) => line !== "").map(absolute);
  if (paths.length === 0) throw new DatamonError("usage", "the list of files is empty");
  let root = parentOf(paths[0] as ByteString);
  for (const path of paths) while (!isBelow(path, root)) root = parentOf(root);
  const tree = LocalTree.open(display(root));
  const files = paths.map((path) => path.slice(root === "/" ? 1 : root.length + 1) as ByteString);
  for (const path of files) {
    if (tree.stat(path)?.kind === "directory") {
      throw new DatamonError("usage", `the list names a directory: ${tree.show(path)}`, {
        hint: "List the files in it, or give it with -d.",
      });
    }
  }
  return { tree, label: labelOf(tree, 0, now), files };
}

function absolute(path: ByteString): ByteString {
  const names: ByteString[] = [];
  const from = path.startsWith("/") ? path : joinPath(bytesOf(process.cwd()), path);
  for (const name of from.split("/") as ByteString[]) {
    if (name === "..") names.pop();
    else if (name !== "" && name !== ".") names.push(name);
  }
  return `/${names.join("/")}` as ByteString;
}

function parentOf(path: ByteString): ByteString {
  return (path.slice(0, Math.max(path.lastIndexOf("/"), 1)) || "/") as ByteString;
}

function isBelow(path: ByteString, directory: ByteString): boolean {
  return directory === "/" || path.startsWith(`${directory}/`);
}

/** A label has no room for every name of a folder. */
function labelOf(tree: LocalTree, index: number, now: Date): string {
  const name = display(tree.root.slice(tree.root.lastIndexOf("/") + 1) as ByteString).replace(/[^A-Za-z0-9._+-]/g, "-");
  return `${dayName(now)}-${name.slice(0, 150)}-${index}`;
}

function* filesOf({ tree, files }: Part): Generator<Pick<Listed<LocalStat>, "entry">> {
  if (files === undefined) return yield* localFiles(tree, () => {});
  for (const path of files) {
    const entry = tree.stat(path);
    if (entry?.kind === "file" || entry?.kind === "symlink") yield { entry };
  }
}

function count(items: Iterable<unknown>): number {
  let sum = 0;
  for (const _ of items) sum++;
  return sum;
}

/** A list that takes the place of the last one once it is complete. */
class ReplacedList {
  readonly list: FileList;
  readonly #file: string;
  readonly #temporary: string;
  #open = true;

  constructor(file: string) {
    this.#file = file;
    this.#temporary = `${file}.${randomBytes(4).toString("hex")}`;
    this.list = new FileList(this.#temporary);
  }

  finish(): void {
    this.#open = false;
    this.list.close();
    try {
      renameSync(this.#temporary, this.#file);
    } catch (error) {
      throw ioError(`write the list ${this.#file}`, error);
    }
  }

  abandon(): void {
    if (this.#open) this.list.discard();
    this.#open = false;
  }
}
