import { execFile } from "node:child_process";
import { chmod, readdir, readFile, rm, rmdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { DatamonError, ioError, isErrno } from "../../cas/index.ts";
import { controlData, type Installation, LOCK_FILE } from "./server.ts";
import type { User } from "./user.ts";

/** The file of a data directory that holds the major version of its server. */
export const VERSION_FILE = "PG_VERSION";

/** Files of a server that runs. */
const OF_A_RUN = [LOCK_FILE, "postmaster.opts", "current_logfiles"];
/** Directories whose content a server makes anew when it starts, as pg_basebackup knows them. */
const EMPTIED = ["pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];
/** A cache of the system tables, and what queries put aside; in base/<database>, base and global. */
const REBUILT = /^(pg_internal\.init|pgsql_tmp)/;
/** Eight digits of timeline, sixteen of place. */
const WAL_SEGMENT = /^[0-9A-F]{24}$/;

/** Makes a data directory one that a server of this user starts on, whoever made it and wherever it ran before. */
export async function adopt(directory: string, user: User | undefined): Promise<void> {
  try {
    for (const name of OF_A_RUN) await rm(join(directory, name), { force: true });
    const { uid, mode } = await stat(directory);
    if (user !== undefined && uid !== user.uid) {
      // Node can do this, too, but not for names that are not UTF-8.
      await promisify(execFile)("chown", ["-R", "-h", `${user.uid}:${user.gid}`, "--", directory]);
    }
    if ((mode & 0o777) !== 0o700 && (mode & 0o777) !== 0o750) await chmod(directory, 0o700);
  } catch (error) {
    throw ioError(`give the data directory ${directory} to PostgreSQL's user`, error);
  }
}

/** The major version that a data directory is of; "not-found" where it is none. */
export async function majorOf(directory: string): Promise<string> {
  try {
    return (await readFile(join(directory, VERSION_FILE), "utf8")).trim();
  } catch (error) {
    throw ioError(`read ${join(directory, VERSION_FILE)}`, error);
  }
}

/**
 * Removes from the data directory of a stopped server what the next start does not need: the traces of this run,
 * caches, and transaction logs after the one in which it ended. Throws "conflict" where the server did not end
 * cleanly, "unsupported" where data lies outside of the directory.
 */
export async function strip(installation: Installation, directory: string): Promise<void> {
  const control = await controlData(installation, directory);
  const state = control.get("Database cluster state");
  if (state !== "shut down") throw new DatamonError("conflict", `PostgreSQL did not end cleanly: it is ${state}`);
  const outside = await readdir(join(directory, "pg_tblspc"));
  if (outside.length > 0) {
    throw new DatamonError("unsupported", `the database has tablespaces outside of its data directory ${directory}`, {
      hint: "Move what they hold to pg_default and drop them: a bundle would hold links to them and not their data.",
    });
  }
  const last = control.get("Latest checkpoint's REDO WAL file");
  const doomed = [
    ...OF_A_RUN.map((name) => join(directory, name)),
    ...(await childrenOf(EMPTIED.map((name) => join(directory, name)))),
    ...(await childrenOf([join(directory, "pg_wal")], (name) => last !== undefined && isLater(name, last))),
    ...(await childrenOf(await relationDirectories(directory), (name) => REBUILT.test(name))),
  ];
  for (const path of doomed) await rm(path, { recursive: true, force: true });
}

/** Removes a directory with all that is in it; where it has to stay, as a mount point does, it is emptied. */
export async function removeDirectory(directory: string): Promise<void> {
  for (const path of await childrenOf([directory])) await rm(path, { recursive: true, force: true });
  await rmdir(directory).catch(() => undefined);
}

async function relationDirectories(directory: string): Promise<string[]> {
  const base = join(directory, "base");
  const databases = await readdir(base);
  return [base, join(directory, "global"), ...databases.map((name) => join(base, name))];
}

/** A segment that was made ready, or that holds what was written before it was used again. */
function isLater(name: string, last: string): boolean {
  return WAL_SEGMENT.test(name) && name.slice(0, 8) === last.slice(0, 8) && name > last;
}

async function childrenOf(directories: string[], wanted: (name: string) => boolean = () => true): Promise<string[]> {
  const found: string[] = [];
  for (const directory of directories) {
    try {
      for (const name of await readdir(directory)) if (wanted(name)) found.push(join(directory, name));
    } catch (error) {
      // Some are of later versions, and base/pgsql_tmp may be gone meanwhile.
      if (!isErrno(error, "ENOENT", "ENOTDIR")) throw ioError(`list ${directory}`, error);
    }
  }
  return found;
}
