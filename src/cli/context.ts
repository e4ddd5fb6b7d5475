import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import { DatamonError } from "../cas/index.ts";
import type { Context } from "../meta/index.ts";
import { say } from "./output.ts";

/** Where Datamon keeps what is this user's: the embedded store, scratches, the records of mounts. */
export function homeDirectory(): string {
  return join(homedir(), ".datamon");
}

/** The cache directory: the configuration's, or the one in the home directory. */
export function cacheDirectoryOf(configured: string | undefined): string {
  return configured ?? join(homeDirectory(), "cache");
}

/** Opens the stores that the configuration names; without one, the embedded local store, and says so the first time. */
export async function openConfiguredContext(): Promise<Context> {
  const { loadConfig, openContext } = await import("../meta/index.ts");
  const config = await loadConfig();
  if (config.file !== undefined) say(`Using config file: ${config.file}`);
  else if (!existsSync(join(homeDirectory(), "store"))) {
    say(`No configuration found: using a local store in ${join(homeDirectory(), "store")}.`);
    say("Run 'datamon config create --help' to see how to use another.");
  }
  return await openContext(config);
}

/** Flags that pick one bundle of a repo. */
export interface BundleSelector {
  repo: string;
  bundle?: string;
  label?: string;
}

/** Adds `--repo`, `--bundle` and `--label`. */
export function withBundleSelector(command: Command): Command {
  return command
    .requiredOption("--repo <name>", "the repo")
    .option("--bundle <id>", "the bundle, by its id or the beginning of it (default: the newest)")
    .option("--label <name>", "the bundle, by a label");
}

/** What follows the `@` of `REPO@…` as a selector: a label where there is one of that name, a bundle's id otherwise. */
export async function labelOrBundle(context: Context, repo: string, text: string): Promise<BundleSelector> {
  const { getLabel } = await import("../meta/index.ts");
  try {
    await getLabel(context, repo, text);
    return { repo, label: text };
  } catch (error) {
    if (!(error instanceof DatamonError) || error.code !== "not-found") throw error;
  }
  return { repo, bundle: text };
}

/** An `AbortSignal` that a first SIGINT or SIGTERM triggers; a second one ends the process at once. */
export function interruptSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    process.once(name, () => {
      say("Stopping; what is stored stays stored. Once more to stop at once.");
      controller.abort();
      process.once(name, () => process.exit(130));
    });
  }
  return controller.signal;
}

/** A whole number of at least `least`, for commander. */
export function wholeNumber(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < least) {
      throw new DatamonError("usage", `${text} is not a whole number of at least ${least}`);
    }
    return value;
  };
}

/** A size such as `500M`, `2GiB` or `1048576`, in bytes; units are powers of 1024. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$/i.exec(text.trim());
  if (match === null) throw new DatamonError("usage", `${text} is not a size`, { hint: "Write it like 500M or 20G." });
  const power = ["", "k", "m", "g", "t"].indexOf((match[2] ?? "").toLowerCase());
  return Math.floor(Number(match[1]) * 1024 ** power);
}
