/** How a mount answers when files are opened: three ways, of which one is chosen for a mount as a whole. */

import { readFileSync } from "node:fs";
import { WHOLE_FILE } from "../cache/index.ts";
import { Catalog } from "../meta/index.ts";
import type { NamespaceSpec } from "./namespace.ts";

/**
 * `noopen`: the kernel opens files without asking and keeps what it read; for read-only mounts.
 * `passthrough`: files that lie whole in one local file are handed to the kernel, which then reads and
 * writes them without asking. `plain`: every open is a request, every read goes through the page cache.
 */
export const OPEN_MODES = ["noopen", "passthrough", "plain"] as const;

export type OpenMode = (typeof OPEN_MODES)[number];

/** A mode, and why it was chosen, for people. */
export interface OpenModeChoice {
  readonly mode: OpenMode;
  readonly reason: string;
}

/**
 * Bytes of large files for each file of the bundle from which on handing them over pays: reading a
 * byte through the page cache costs some 0.4 ns more than without a request, and an open and release
 * that are asked for some 60 µs a file.
 */
const WORTH_PER_FILE = 160 * 1024;

/** Chooses a mode for a mount where none was asked for. */
export function chooseOpenMode(spec: NamespaceSpec): OpenModeChoice {
  const permitted = mayPassThrough();
  if (spec.kind === "overlay") {
    if (spec.limit !== undefined) return { mode: "plain", reason: "writes are counted, as the scratch has a limit" };
    return permitted
      ? { mode: "passthrough", reason: "changed files are read and written without asking the daemon" }
      : { mode: "plain", reason: `writable, and ${NOT_PERMITTED}` };
  }
  if (!permitted) return { mode: "noopen", reason: NOT_PERMITTED };
  const catalog = Catalog.open(spec.catalog);
  try {
    const { files, bytes } = catalog.summary();
    // Counting large files reads every inode; where they cannot be enough they are not counted.
    const large = bytes < files * WORTH_PER_FILE ? undefined : catalog.filesFrom(WHOLE_FILE);
    const share = large === undefined || bytes === 0 ? 0 : Math.floor((100 * large.bytes) / bytes);
    const found =
      large === undefined
        ? `${files} files of ${Math.round(bytes / Math.max(files, 1))} bytes on average`
        : `${large.files} of ${files} files are of 8 MiB or more and hold ${share}% of the bytes`;
    return large !== undefined && large.files > 0 && large.bytes >= files * WORTH_PER_FILE
      ? { mode: "passthrough", reason: found }
      : { mode: "noopen", reason: found };
  } finally {
    catalog.close();
  }
}

const NOT_PERMITTED = "this process may not hand files to the kernel (no CAP_SYS_ADMIN)";

/** CAP_SYS_ADMIN */
const CAPABILITY = 1n << 21n;

/** True where this process has the capability that passthrough asks for. */
function mayPassThrough(): boolean {
  try {
    const found = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "latin1"));
    return found !== null && (BigInt(`0x${found[1]}`) & CAPABILITY) !== 0n;
  } catch {
    return false;
  }
}
