/** How much a folder holds, for whoever shows progress. */
import { type ByteString, joinPath } from "../../cas/index.ts";
import { Breath } from "./breath.ts";
import { LocalTree } from "./walk.ts";

/**
 * Counts the regular files below a folder and their bytes, giving way to other work all the time.
 * What cannot be read counts as nothing: finding that out is the upload's affair. Throws
 * "interrupted" on the signal.
 */
export async function countTree(path: string, signal: AbortSignal): Promise<{ files: number; bytes: number }> {
  const tree = LocalTree.open(path);
  const breath = new Breath("the count", signal);
  const directories = ["" as ByteString];
  const total = { files: 0, bytes: 0 };
  for (let at = directories.pop(); at !== undefined; at = directories.pop()) {
    for (const name of readable(() => tree.names(at)) ?? []) {
      if (breath.due()) await breath.pause();
      const entry = joinPath(at, name);
      const stat = readable(() => tree.stat(entry));
      if (stat?.kind === "directory") directories.push(entry);
      if (stat?.kind !== "file") continue;
      total.files += 1;
      total.bytes += stat.size;
    }
  }
  return total;
}

function readable<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}
