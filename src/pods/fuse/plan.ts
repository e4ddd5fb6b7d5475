import { resolve } from "node:path";
import { DatamonError } from "../../cas/index.ts";

/** A command line for the sidecar, understood. `words` is what follows `datamon`. */
export type SidecarCommand =
  | { readonly kind: "config"; readonly words: readonly string[] }
  | { readonly kind: "source"; readonly words: readonly string[]; readonly directory: string }
  | WritableMount
  | Upload;

/** A mount whose changes become a bundle. */
export interface WritableMount {
  readonly kind: "writable";
  readonly words: readonly string[];
  readonly directory: string;
  readonly repo: string;
  readonly label: string | undefined;
  readonly bundleIdFile?: string;
}

/** A folder that becomes a bundle. */
export interface Upload {
  readonly kind: "upload";
  readonly words: readonly string[];
  readonly directory: string;
  readonly bundleIdFile?: string;
}

/** What the sidecar does, in the order in which it does it. */
export interface FusePlan {
  readonly config: readonly string[] | undefined;
  readonly sources: { readonly words: readonly string[]; readonly directory: string }[];
  readonly writable: WritableMount[];
  readonly uploads: Upload[];
}

/**
 * Puts the commands in order.
 *
 * @param bundleIdFile where the id of the one bundle that results goes
 * @throws DatamonError "usage" for more than one `config`, a directory that two mounts want, and a
 *   `bundleIdFile` where not exactly one bundle results
 */
export function planOf(commands: readonly SidecarCommand[], bundleIdFile?: string): FusePlan {
  const configs = commands.filter((command) => command.kind === "config");
  const sources = commands.filter((command) => command.kind === "source");
  let writable = commands.filter((command) => command.kind === "writable");
  let uploads = commands.filter((command) => command.kind === "upload");
  if (configs.length > 1) throw new DatamonError("usage", "at most one config command can be given");
  const mounted = new Set<string>();
  for (const { directory } of [...sources, ...writable]) {
    const path = resolve(directory);
    if (mounted.has(path)) throw new DatamonError("usage", `two commands mount on ${directory}`);
    mounted.add(path);
  }
  for (const { directory } of uploads) {
    if (!mounted.has(resolve(directory))) continue;
    throw new DatamonError("usage", `${directory} is mounted by one command and uploaded by another`, {
      hint: "To have the changes to a mounted bundle saved, mount it with `mount --rw`: that makes its own bundle.",
    });
  }
  if (bundleIdFile !== undefined) {
    const results = writable.length + uploads.length;
    if (results !== 1) {
      throw new DatamonError(
        "usage",
        `a bundle id file needs exactly one bundle upload or writable mount, not ${results}`,
      );
    }
    writable = writable.map((command) => ({ ...command, bundleIdFile }));
    uploads = uploads.map((command) => ({ ...command, bundleIdFile }));
  }
  return { config: configs[0]?.words, sources, writable, uploads };
}
