import { execFile } from "node:child_process";
import { access, constants, readdir, realpath } from "node:fs/promises";
import { delimiter, dirname, isAbsolute, join, resolve } from "node:path";
import { promisify } from "node:util";
import { DatamonError } from "../../cas/index.ts";

const DEBIAN = "/usr/lib/postgresql";
/** The first version that notes in postmaster.pid when it is ready. */
const OLDEST = 10;

/** PostgreSQL as it is installed in one directory. */
export interface Programs {
  /** Where `postgres` and its tools lie. */
  directory: string;
  /** What `PG_VERSION` says in its data directories, such as `15`. */
  major: string;
  /** Such as `15.18`. */
  version: string;
}

/**
 * The installed PostgreSQL servers, the preferred one first: the one of PATH, then Debian's, the newest
 * first; given a directory, it alone. Throws "unsupported" where there is none.
 */
export async function findPrograms(directory?: string): Promise<Programs[]> {
  const places = directory === undefined ? await usualPlaces() : [resolve(directory)];
  const found = new Map<string, Programs>();
  for (const place of places) {
    const home = await homeOf(place);
    if (home !== undefined && !found.has(home)) found.set(home, await programsIn(home));
  }
  if (found.size > 0) return [...found.values()];
  throw new DatamonError("unsupported", `PostgreSQL was not found in ${directory ?? `PATH and ${DEBIAN}/*/bin`}`, {
    hint: "Install a server (Debian package postgresql), or name the directory of its programs with --bin-dir.",
  });
}

async function usualPlaces(): Promise<string[]> {
  const inPath = (process.env.PATH ?? "").split(delimiter).filter(isAbsolute);
  const versions = await readdir(DEBIAN).catch(() => []);
  versions.sort((one, other) => Number(other) - Number(one));
  return [...inPath, ...versions.map((version) => join(DEBIAN, version, "bin"))];
}

/** Where the server of a directory really is, with its tools; undefined where there is none. */
async function homeOf(place: string): Promise<string | undefined> {
  try {
    const server = await realpath(join(place, "postgres"));
    await access(server, constants.X_OK);
    return dirname(server);
  } catch {
    return undefined;
  }
}

async function programsIn(directory: string): Promise<Programs> {
  const { stdout } = await promisify(execFile)(join(directory, "postgres"), ["--version"]);
  const [, version, major] = /\(PostgreSQL\) ((\d+)\S*)/.exec(stdout) ?? [];
  if (version === undefined || major === undefined || Number(major) < OLDEST) {
    throw new DatamonError("unsupported", `${directory}/postgres is ${stdout.trim()}; ${OLDEST} or later is needed`);
  }
  return { directory, version, major };
}
