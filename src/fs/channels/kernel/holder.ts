/**
 * A process that holds the locks of inodes of a mount until the daemon lets go of them: see
 * `pause.ts`. Its arguments: the directory of the mount, the token, inode numbers. It needs as many
 * threads (`UV_THREADPOOL_SIZE`) as inodes.
 */

import { openSync } from "node:fs";
import { promisify } from "node:util";
import koffi from "koffi";
import { HOLDING, holdingName } from "./pause.ts";

/** Linux's `O_PATH`: names the file, and opens nothing. */
const O_PATH = 0o10000000;

const setxattr = koffi.load(null).func("int setxattr(const char*, const char*, const char*, size_t, int)");
const hold = promisify(setxattr.async) as (...args: unknown[]) => Promise<number>;

const [directory, token, ...inos] = process.argv.slice(2) as [string, string, ...string[]];
const paths: string[] = [];
// All are found before any is held: who waits for one that is held may hold a directory.
for (const ino of inos) {
  try {
    paths.push(`/proc/self/fd/${openSync(`${directory}/${holdingName(token, Number(ino))}`, O_PATH)}`);
  } catch {
    // It is gone, or the daemon has given up.
  }
}
await Promise.all(paths.map((path) => hold(path, HOLDING, token, token.length, 0)));
