import { mkdirSync } from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import { DatamonError } from "../cas/index.ts";
import type { Config, Context } from "../meta/index.ts";
import { say } from "./output.ts";

/** Where Datamon keeps what is this user's: the embedded store, scratches, the records of mounts. */
export function homeDirectory(): string {
  const home = process.env.HOME ?? loginHome();
  if (home !== undefined && isAbsolute(home)) return join(home, ".datamon");
  throw new DatamonError("usage", home ? `HOME is ${home}, which is not an absolute path` : "HOME is not set", {
    hint: "Set it to a directory in which Datamon may keep what is yours, below .datamon.",
  });
}

/** The home directory of this user's account; undefined where the user id has none, as in some containers. */
function loginHome(): string | undefined {
  try {
    return homedir();
  } catch {
    return undefined;
  }
}

/** The cache directory: the configuration's, or the one in the home directory. */
export function cacheDirectoryOf(configured: string | undefined): string {
  return configured ?? join(homeDirectory(), "cache");
}

/** Where this machine remembers what it knows of local trees and catalogs. */
export function localState(context: Context): { cacheDirectory: string; stateFile: string } {
  return { cacheDirectory: cacheDirectoryOf(context.config.cache), stateFile: join(homeDirectory(), "stat.sqlite") };
}

/** A whole number from 1 on, for an option of the command line. */
export function parseCount(text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("It is not a whole number above 0.");
}

/** The configuration in force. */
export async function readConfig(): Promise<Config> {
  homeDirectory();
  const { loadConfig } = await import("../meta/index.ts");
  return await loadConfig();
}

/** Opens the stores that the configuration names; without one, the embedded local store, and says so the first time. */
export async function openConfiguredContext(): Promise<Context> {
  const config = await readConfig();
  if (config.file !== undefined) say(`Using config file: ${config.file}`);
  else announceEmbeddedStore(join(homeDirectory(), "store"));
  const { openContext } = await import("../meta/index.ts");
  return await openContext(config, tellOnce());
}

/** Tells of each store once a command that it is in trouble. */
function tellOnce(): (url: string, message: string) => void {
  const told = new Set<string>();
  return (url, message) => {
    if (told.has(url)) return;
    told.add(url);
    say(
      `${message}\n  Going on with the other stores; 'datamon store repair' brings this one level when it is well again.`,
    );
  };
}

/** Makes the store's directory, so that this is said once. */
function announceEmbeddedStore(directory: string): void {
  try {
    if (mkdirSync(directory, { recursive: true, mode: 0o700 }) === undefined) return;
  } catch {
    // The first put says why.
  }
  say(`No configuration found: using a local store in ${directory}.`);
  say("Run 'datamon config create --help' to see how to use another.");
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

/** Refuses a name that no label can have before any work is done for a bundle that is to get it. */
export async function checkNewLabel(label: string | undefined): Promise<void> {
  if (label === undefined) return;
  const { checkLabelName } = await import("../meta/index.ts");
  checkLabelName(label);
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

/** A parser of option values for commander: a whole number of at least `least`. */
export function wholeNumber(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < least) {
      throw new InvalidArgumentError(`It must be a whole number of at least ${least}.`);
    }
    return value;
  };
}

/** A size such as `500M`, `2GiB` or `1048576`, in bytes; units are powers of 1024. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$/i.exec(text.trim());
  if (match === null) throw new InvalidArgumentError("Write a size like 500M or 20G.");
  const power = ["", "k", "m", "g", "t"].indexOf((match[2] ?? "").toLowerCase());
  return Math.floor(Number(match[1]) * 1024 ** power);
}
