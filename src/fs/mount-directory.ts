/** The directory of a mount: made ready before, put back after. */

import { mkdir, readdir, realpath, rmdir, statfs } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { DatamonError, ioError, isErrno } from "../cas/index.ts";
import { detach, isDatamon, mountedAt } from "./mount-table.ts";

/** A directory that can be mounted on. */
export interface MountDirectory {
  /** Absolute, without symbolic links. */
  readonly path: string;
  /** The first of the directories on the way that had to be made; undefined where none had to. */
  readonly made: string | undefined;
}

/** Removes again what had to be made, where it is empty. */
export async function restoreDirectory({ path, made }: MountDirectory): Promise<void> {
  if (made !== undefined) await removeEmpty(path, made);
}

/**
 * Makes sure that `directory` can be mounted on: it is made where it is missing, must be empty, and
 * what a dead daemon left mounted there is detached.
 */
export async function prepareDirectory(directory: string): Promise<MountDirectory> {
  try {
    const made = await mkdir(directory, { recursive: true }).catch((error) => {
      // A dead mount is there, but cannot be looked at.
      if (isErrno(error, "EEXIST", "ENOTCONN")) return undefined;
      throw error;
    });
    const path = await detachDead(directory);
    if (isDatamon(await mountedAt(path))) {
      throw new DatamonError("exists", `${directory} is a mount of datamon already`, {
        hint: `Take it away first: datamon unmount ${directory}`,
      });
    }
    if ((await readdir(path)).length > 0) {
      throw new DatamonError("exists", `${directory} is not empty`, {
        hint: "Mount on an empty directory: a mount hides what is below it.",
      });
    }
    return { path, made: made === undefined ? undefined : resolve(made) };
  } catch (error) {
    if (isErrno(error, "ENOTDIR", "EEXIST")) {
      throw new DatamonError("usage", `${directory} is not a directory`, { cause: error });
    }
    throw ioError(`mount on ${directory}`, error);
  }
}

/** The path of `directory` without symbolic links, also where a dead mount on it fails every call. */
export async function mountPath(directory: string): Promise<string> {
  try {
    return await realpath(directory);
  } catch (error) {
    const path = resolve(directory);
    if (isErrno(error, "ENOTCONN", "ECONNABORTED", "EIO", "EACCES")) {
      return join(await realpath(dirname(path)), basename(path));
    }
    if (isErrno(error, "ENOENT")) return path;
    throw error;
  }
}

/** Most dead mounts that may lie on top of each other. */
const MOST_DEAD = 16;

/** Detaches what dead daemons of Datamon left mounted on `directory`, and returns its path without symbolic links. */
async function detachDead(directory: string): Promise<string> {
  for (let turn = 0; turn < MOST_DEAD; turn++) {
    const path = await mountPath(directory);
    if (!isDatamon(await mountedAt(path)) || (await answers(path))) return path;
    await detach(path, { lazy: true });
  }
  throw new DatamonError("io", `dead mounts on ${directory} do not go away`);
}

/** False where the daemon of the mount on `path` is dead. The kernel may know the answer to a `stat` itself, but not to this. */
async function answers(path: string): Promise<boolean> {
  try {
    await statfs(path);
    return true;
  } catch (error) {
    if (isErrno(error, "ENOTCONN", "ECONNABORTED")) return false;
    throw error;
  }
}

/** Removes `path` and its parents up to `first`, as far as they are empty. */
async function removeEmpty(path: string, first: string): Promise<void> {
  try {
    const last = await realpath(first);
    for (let at = path; at.startsWith(last); at = dirname(at)) await rmdir(at);
  } catch (error) {
    if (!isErrno(error, "ENOTEMPTY", "ENOENT", "EBUSY", "EACCES", "EPERM")) throw error;
  }
}
