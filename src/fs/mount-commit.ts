/** Asking a mount's daemon for a commit. */

import { closeSync, openSync } from "node:fs";
import * as z from "zod/mini";
import { askDaemon } from "./mount-control.ts";
import { servedMount } from "./mounts.ts";
import { syncfs } from "./overlay/libc.ts";
import type { OnConflict } from "./scratch.ts";

/** How a mount that goes on is committed. */
export interface CommitMountOptions {
  readonly directory: string;
  /** Directory for what is this user's. */
  readonly home: string;
  readonly message?: string | undefined;
  readonly label?: string | undefined;
  readonly onConflict?: OnConflict | undefined;
  /** Content that was read so far: files done, and bytes. */
  onProgress?(progress: { files: number; bytes: number }): void;
}

const progressSchema = z.object({ files: z.number(), bytes: z.number() });
const committedSchema = z.object({ bundle: z.nullable(z.string()) });

/**
 * Makes a bundle of what the mount on `directory` shows at one moment; the mount goes on above it.
 * Returns its id, or undefined where nothing differs from the mount's base. Throws what the daemon
 * met, "not-found" where this user has no mount there, "conflict" where the label is not to be moved.
 */
export async function commitMount(options: CommitMountOptions): Promise<string | undefined> {
  const { home, directory, message, label, onConflict, onProgress } = options;
  const record = await servedMount(home, directory);
  flush(record.directory);
  const answer = await askDaemon(
    home,
    record,
    { request: "commit", message, label, onConflict },
    { onProgress: (value) => onProgress?.(progressSchema.parse(value)) },
  );
  return committedSchema.parse(answer).bundle ?? undefined;
}

/** Has the kernel hand over what was written through memory maps, as far as it does so without being asked for a file. */
function flush(directory: string): void {
  try {
    const fd = openSync(directory, "r");
    try {
      syncfs(fd);
    } finally {
      closeSync(fd);
    }
  } catch {
    // Who wants to be sure calls msync.
  }
}
