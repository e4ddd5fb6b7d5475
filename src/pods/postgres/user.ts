import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { DatamonError } from "../../cas/index.ts";

/** User and group that a process runs as. */
export interface User {
  uid: number;
  gid: number;
}

/**
 * The user whom PostgreSQL runs as: the one of that name where this process is root, as whom it refuses to
 * run; undefined, for this process's own, otherwise. Throws "usage" where there is no such user.
 */
export async function serverUser(name: string): Promise<User | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const [uid, gid] = await Promise.all([idOf("-u", name), idOf("-g", name)]);
  if (uid === 0) throw new DatamonError("usage", `PostgreSQL does not run as ${name}: that is root`);
  return { uid, gid };
}

async function idOf(which: string, name: string): Promise<number> {
  try {
    const { stdout } = await promisify(execFile)("id", [which, "--", name]);
    return Number(stdout);
  } catch (error) {
    throw new DatamonError("usage", `there is no user ${name} to run PostgreSQL as, which refuses to run as root`, {
      hint: "Name another with --user.",
      cause: error,
    });
  }
}
