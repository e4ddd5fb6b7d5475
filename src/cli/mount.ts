import { type Command, Option } from "commander";
import { DatamonError } from "../cas/index.ts";
import type { MountOptions, MountOutcome, MountStatus } from "../fs/index.ts";
import {
  cacheDirectoryOf,
  checkNewLabel,
  homeDirectory,
  labelOrBundle,
  openConfiguredContext,
  parseSize,
} from "./context.ts";
import { type OutputOptions, plural, printLine, printList, say, withOutput } from "./output.ts";

/** `datamon mount`, `datamon mount list`, `datamon unmount`. */
export function registerMount(program: Command): void {
  const mount = withMountFlags(program.command("mount"))
    .description("show a bundle as ordinary files")
    .argument("<bundle>", "REPO, REPO@LABEL or REPO@BUNDLE-ID (default: the repo's newest bundle)")
    .argument("<dir>", "where: an empty directory, made where it is missing")
    .option("--rw", "writable: unmounting commits the changes as a new bundle")
    .option("--message <text>", "with --rw: what the new bundle says of itself")
    .option("--label <name>", "with --rw: a label for the new bundle")
    .option("--foreground", "stay in the foreground until it is unmounted")
    .addHelpText(
      "after",
      `
Examples:
  datamon mount birds /mnt/birds
  datamon mount birds@v1 /mnt/birds
  datamon mount --rw --message "cleaned" --label v2 birds@v1 /mnt/birds
  datamon mount list`,
    )
    .action(
      async (
        spec: string,
        directory: string,
        options: MountFlags & NewBundleFlags & { rw?: boolean; foreground?: boolean },
      ) => {
        if (options.rw !== true && (options.message !== undefined || options.label !== undefined)) {
          throw new DatamonError("usage", "--message and --label are for a new bundle", {
            hint: "Add --rw for a writable mount.",
          });
        }
        const request = { ...parseBundleSpec(spec), directory, rw: options.rw === true, flags: options };
        await mountBundle(request, options.foreground === true);
      },
    );

  withOutput(mount.command("list"))
    .description("list what is mounted: repo , bundle , mode , directory , uncommitted changes , last commit")
    .addHelpText("after", "\nExample:\n  datamon mount list -o json")
    .action(async (options: OutputOptions) => {
      const { listMounts } = await import("../fs/index.ts");
      // Scripts ask in JSON, again and again; what became of other mounts is told to people, once.
      const tell = options.output === "text" ? say : undefined;
      await printList(await listMounts(homeDirectory(), tell), options, mountLine);
    });

  program
    .command("unmount")
    .description("take a mount away; a writable one is committed first and the new bundle's id printed")
    .argument("<dir>", "the mounted directory")
    .addHelpText("after", "\nExample:\n  datamon unmount /mnt/birds")
    .action(async (directory: string) => {
      const { unmount } = await import("../fs/index.ts");
      const onCommit = () => say("committing the changes …");
      printOutcome(await unmount({ home: homeDirectory(), directory, onCommit }));
    });
}

/** Flags that every mounting command takes. */
export interface MountFlags {
  cacheDir?: string;
  cacheSize?: number;
  channel?: "kernel" | "fuse-native";
  allowOther?: boolean;
  daemon?: string;
}

/** Flags of a writable mount. */
export interface NewBundleFlags {
  message?: string;
  label?: string;
}

/** Adds the flags that every mounting command takes. */
export function withMountFlags(command: Command): Command {
  return command
    .option("--cache-dir <dir>", "directory for cached data (default: the configuration's)")
    .option("--cache-size <size>", "how much it may hold, such as 20G", parseSize)
    .addOption(new Option("--channel <kind>", "how to speak to the kernel").choices(["kernel", "fuse-native"]))
    .option("--allow-other", "let other users see the mount")
    .addOption(new Option("--daemon <id>").hideHelp());
}

/** A mount that a command line asks for. */
export interface MountRequest {
  repo: string;
  /** What follows the `@` of a spec. */
  reference?: string;
  /** The bundle by flags; with neither this nor a reference, the newest. */
  selector?: { bundle?: string; label?: string };
  directory: string;
  rw: boolean;
  /** Writable and without the base's files. */
  empty?: boolean;
  flags: MountFlags & NewBundleFlags;
}

/**
 * Mounts. In the background, the process that the user started repeats its own command line in a
 * daemon and returns once the mount answers.
 */
export async function mountBundle(request: MountRequest, foreground: boolean): Promise<void> {
  const { flags } = request;
  await checkNewLabel(flags.label);
  const { runDaemon, runMount, startMount } = await import("../fs/index.ts");
  if (!foreground && flags.daemon === undefined) {
    const record = await startMount(homeDirectory(), process.argv.slice(2));
    say(
      `mounted ${record.repo}${record.bundle === undefined ? "" : ` bundle ${record.bundle}`} on ${record.directory}`,
    );
    return;
  }
  const context = await openConfiguredContext();
  const { repo, reference, selector } = request;
  const options: MountOptions = {
    repo,
    ref: reference === undefined ? selector : await labelOrBundle(context, repo, reference),
    directory: request.directory,
    rw: request.rw,
    empty: request.empty ?? false,
    message: flags.message,
    label: flags.label,
    home: homeDirectory(),
    cacheDirectory: flags.cacheDir ?? cacheDirectoryOf(context.config.cache),
    cacheSize: flags.cacheSize,
    channel: flags.channel,
    allowOther: flags.allowOther,
    id: flags.daemon,
  };
  if (flags.daemon !== undefined) {
    await runDaemon((events) => runMount(context, options, events));
    return;
  }
  const outcome = await runMount(context, options, {
    onReady(record) {
      if (record.bundle !== undefined) printLine(`Using bundle: ${record.bundle}`);
      say(`mounted on ${record.directory}; unmount it or press Ctrl-C to end`);
    },
    onCommit: () => say("committing the changes …"),
  });
  printOutcome(outcome);
}

/** Says how a mount ended; the id of a new bundle is data. */
function printOutcome(outcome: MountOutcome): void {
  if (outcome.kind === "committed") printLine(`bundle: ${outcome.bundle}`);
  else if (outcome.kind === "unchanged") say("nothing was changed, so there is no new bundle");
}

/** Splits `REPO`, `REPO@LABEL` or `REPO@BUNDLE-ID`. */
export function parseBundleSpec(spec: string): { repo: string; reference?: string } {
  const at = spec.indexOf("@");
  if (at === -1) return { repo: spec };
  const reference = spec.slice(at + 1);
  if (at === 0 || reference === "") {
    throw new DatamonError("usage", `${spec} names no bundle`, { hint: "Write REPO, REPO@LABEL or REPO@BUNDLE-ID." });
  }
  return { repo: spec.slice(0, at), reference };
}

function mountLine(mount: MountStatus): string {
  const { repo, bundle, mode, directory, uncommitted, lastCommit } = mount;
  const changes = mode === "rw" ? plural(uncommitted, "uncommitted change") : "read-only";
  return `${repo} , ${bundle ?? "(empty)"} , ${mode} , ${directory} , ${changes} , ${lastCommit ?? "-"}`;
}
