/**
 * Copies that a freeze needs of files which others write to, made before anybody is stopped for it:
 * of those that are at rest, which large ones mostly are. A copy is named after what the file was
 * known by, so that one that has changed since finds none.
 */

import { constants, statSync } from "node:fs";
import { copyFile, mkdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { aheadDirectory, dataDirectory, layerDirectory, stackOf } from "./layers.ts";

/** How long a file has to be at rest, in nanoseconds: longer than the clock of files takes for a step. */
const REST = 100_000_000n;

/** Copies those of the files of these inodes that are at rest, in the scratch `directory`. What cannot be copied is left. */
export async function copyAhead(directory: string, inos: readonly number[]): Promise<void> {
  const top = stackOf(directory).at(-1) as number;
  const ahead = aheadDirectory(directory, top + 1);
  await rm(ahead, { recursive: true, force: true });
  await mkdir(ahead, { recursive: true, mode: 0o700 });
  for (const ino of inos) {
    const file = join(dataDirectory(layerDirectory(directory, top)), String(ino));
    try {
      const { size, blocks, mtimeNs } = await stat(file, { bigint: true });
      // Holes are to stay holes, which takes more than this.
      if (blocks * 512n < size || BigInt(Date.now()) * 1_000_000n - mtimeNs < REST) continue;
      const copy = copyOf(ahead, ino, file);
      await copyFile(file, copy, constants.COPYFILE_FICLONE);
      if (copyOf(ahead, ino, file) !== copy) await rm(copy);
    } catch {
      // It is copied when it has to be.
    }
  }
}

/** Where the copy is of a file that is as it is. */
export function copyOf(ahead: string, ino: number, file: string): string {
  const { size, mtimeNs, ctimeNs } = statSync(file, { bigint: true });
  return join(ahead, `${ino}-${size}-${mtimeNs}-${ctimeNs}`);
}
