import { join } from "node:path";
import { type Command, Option } from "commander";
import { DatamonError } from "../cas/index.ts";
import type { MountOptions, MountOutcome, MountReport, MountStatus, OnConflict, OpenMode } from "../fs/index.ts";
import { withOnConflict } from "./commit.ts";
import {
  cacheDirectoryOf,
  checkNewLabel,
  homeDirectory,
  labelOrBundle,
  openConfiguredContext,
  parseCount,
  parseSize,
} from "./context.ts";
import {
  formatBytes,
  formatCount,
  type OutputOptions,
  plural,
  printJson,
  printLine,
  printList,
  say,
  withOutput,
} from "./output.ts";

/** `datamon mount`, `datamon mount list`, `datamon unmount`. */
export function registerMount(program: Command): void {
  const mount = withOnConflict(withScratchFlags(withMountFlags(program.command("mount"))))
    .description("show a bundle as ordinary files")
    .argument("<bundle>", "REPO, REPO@LABEL or REPO@BUNDLE-ID (default: the repo's newest bundle)")
    .argument("[dir]", "where: an empty directory, made where it is missing")
    .usage("[options] <bundle> <dir>\n       datamon mount --resume <id> [options] <dir>")
    .option("--resume <id>", "in the place of a bundle: the scratch of a writable mount that did not end well")
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
  datamon mount --resume 3f2a9c01 /mnt/birds
  datamon mount list`,
    )
    .action(
      async (
        spec: string,
        directory: string | undefined,
        options: MountFlags & NewBundleFlags & { rw?: boolean; foreground?: boolean; resume?: string },
      ) => {
        if (options.resume !== undefined) {
          if (directory !== undefined) throw new DatamonError("usage", `${spec}: --resume takes a directory alone`);
          await mountBundle(await resumption(options.resume, spec, options), options.foreground === true);
          return;
        }
        if (directory === undefined) throw new DatamonError("usage", "missing required argument 'dir'");
        const { message, label, onConflict, scratchDir, scratchSize } = options;
        const forNew = [message, label, onConflict, scratchDir, scratchSize];
        if (options.rw !== true && forNew.some((flag) => flag !== undefined)) {
          throw new DatamonError("usage", "--message, --label, --on-conflict and --scratch-… are for a new bundle", {
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

  withOutput(mount.command("status"))
    .description("show what a mount has done: requests and their latencies, where content came from, restarts")
    .argument("<dir>", "the mounted directory")
    .addHelpText("after", "\nExample:\n  datamon mount status -o json /mnt/birds")
    .action(async (directory: string, options: OutputOptions) => {
      const { reportMount } = await import("../fs/index.ts");
      const report = await reportMount(homeDirectory(), directory);
      if (options.output === "json") printJson(report);
      else for (const line of reportLines(report)) printLine(line);
    });

  withOnConflict(program.command("unmount"))
    .description("take a mount away; a writable one is committed first and the new bundle's id printed")
    .argument("<dir>", "the mounted directory")
    .option("--no-commit", "leave the changes of a writable mount in its scratch")
    .addHelpText("after", "\nExamples:\n  datamon unmount /mnt/birds\n  datamon unmount --no-commit /mnt/birds")
    .action(async (directory: string, { commit, onConflict }: { commit: boolean; onConflict?: OnConflict }) => {
      const { unmount } = await import("../fs/index.ts");
      const onCommit = () => say("committing the changes …");
      printOutcome(await unmount({ home: homeDirectory(), directory, commit, onConflict, onCommit }));
    });
}

/** Flags that every mounting command takes. */
export interface MountFlags {
  cacheDir?: string;
  cacheSize?: number;
  prefetch?: number;
  channel?: "kernel" | "fuse-native";
  allowOther?: boolean;
  allowAll?: boolean;
  openMode?: OpenMode | "auto";
  giveUpAfter?: number;
  daemon?: string;
  supervised?: boolean;
}

/** Flags of a writable mount. */
export interface NewBundleFlags {
  message?: string;
  label?: string;
  onConflict?: OnConflict;
  scratchDir?: string;
  scratchSize?: number;
}

/** Adds the flags of where a writable mount keeps its changes. */
export function withScratchFlags(command: Command): Command {
  return command
    .option("--scratch-dir <dir>", "where changes are kept until they are committed (default: ~/.datamon/scratch)")
    .option("--scratch-size <size>", "how much they may take of the disk, such as 20G", parseSize);
}

/** Adds the flags that every mounting command takes. */
export function withMountFlags(command: Command): Command {
  return command
    .option("--cache-dir <dir>", "directory for cached data (default: the configuration's)")
    .option("--cache-size <size>", "how much it may hold, such as 20G", parseSize)
    .option("--prefetch <size>", "memory for content that is fetched ahead; 0 for none (default: 64M)", parseSize)
    .addOption(new Option("--channel <kind>", "how to speak to the kernel").choices(["kernel", "fuse-native"]))
    .option("--allow-other", "let other users see the mount, with the permissions that its files give")
    .option("--allow-all", "let every user do everything on the mount, whatever owners and modes say")
    .addOption(
      new Option("--open-mode <mode>", "how files are opened: by what is mounted, or as said").choices([
        "auto",
        "noopen",
        "passthrough",
        "plain",
      ]),
    )
    .option("--give-up-after <deaths>", "unmount when the daemon dies this often in a minute (default: 5)", parseCount)
    .addOption(new Option("--daemon <id>").hideHelp())
    .addOption(new Option("--supervised").hideHelp());
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
  /** Id of the scratch with the changes to go on with. */
  resume?: string;
  flags: MountFlags & NewBundleFlags;
}

/**
 * Mounts. In the background, the process that the user started repeats its own command line in a
 * daemon and returns once the mount answers.
 */
export async function mountBundle(request: MountRequest, foreground: boolean): Promise<void> {
  const { flags } = request;
  await checkNewLabel(flags.label);
  const { becomeSupervisor, DEATHS, runDaemon, runMount, startMount, Supervision } = await import("../fs/index.ts");
  if (flags.daemon === undefined) {
    const args = process.argv.slice(2);
    // The kernel channel alone can go from one process to another.
    const outlives = (flags.channel ?? "kernel") === "kernel" && process.platform === "linux";
    const care = outlives ? { deaths: flags.giveUpAfter ?? DEATHS } : undefined;
    if (foreground && care !== undefined) await becomeSupervisor(homeDirectory(), args, care);
    if (!foreground) {
      const record = await startMount(homeDirectory(), args, care);
      const bundle = record.bundle === undefined ? "" : ` bundle ${record.bundle}`;
      say(`mounted ${record.repo}${bundle} on ${record.directory}`);
      return;
    }
  }
  const supervision = flags.supervised === true ? await Supervision.connect() : undefined;
  const inherited = supervision?.inherited;
  // The working directory is another one now, and may hold another configuration.
  if (inherited !== undefined) process.env.DATAMON_CONFIG = inherited.mount.config;
  const context = await openConfiguredContext();
  const { repo, reference, selector } = request;
  const options: MountOptions = {
    repo,
    ref: reference === undefined || inherited !== undefined ? selector : await labelOrBundle(context, repo, reference),
    directory: request.directory,
    rw: request.rw,
    empty: request.empty ?? false,
    resume: request.resume,
    message: flags.message,
    label: flags.label,
    onConflict: flags.onConflict,
    scratchDirectory: flags.scratchDir,
    scratchSize: flags.scratchSize,
    home: homeDirectory(),
    cacheDirectory: flags.cacheDir ?? cacheDirectoryOf(context.config.cache),
    cacheSize: flags.cacheSize,
    prefetch: flags.prefetch,
    channel: flags.channel,
    allowOther: flags.allowOther,
    allowAll: flags.allowAll,
    openMode: flags.openMode === "auto" ? undefined : flags.openMode,
    id: flags.daemon,
    supervision,
  };
  if (inherited !== undefined) {
    const outcome = await runMount(context, options);
    if (foreground) printOutcome(outcome);
    return;
  }
  if (flags.daemon !== undefined && !foreground) {
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

/** What mounts a scratch again: the bundle that it belongs to, with its changes. */
async function resumption(id: string, directory: string, flags: MountFlags & NewBundleFlags): Promise<MountRequest> {
  const { message, label, onConflict, scratchDir, scratchSize } = flags;
  if ([message, label, onConflict, scratchDir, scratchSize].some((flag) => flag !== undefined)) {
    throw new DatamonError("usage", "a scratch has its message, label and place from the mount that made it", {
      hint: "Give others when it is committed: datamon scratch commit --message TEXT --label NAME ID",
    });
  }
  const { getScratch } = await import("../fs/index.ts");
  const scratch = await getScratch(join(homeDirectory(), "scratch"), id);
  const { repo, base } = scratch.record;
  const selector = base === undefined ? {} : { bundle: base.bundle };
  return { repo, selector, directory, rw: true, empty: base === undefined, resume: scratch.id, flags };
}

/** Says how a mount ended; the id of a new bundle is data. */
function printOutcome(outcome: MountOutcome): void {
  if (outcome.kind === "committed") printLine(`bundle: ${outcome.bundle}`);
  else if (outcome.kind === "unchanged") say("nothing was changed, so there is no new bundle");
  else if (outcome.kind === "kept") {
    say(
      `the changes are kept in scratch ${outcome.scratch}; commit them with: datamon scratch commit ${outcome.scratch}`,
    );
  }
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

function reportLines(report: MountReport): string[] {
  const { tiers, fetched, requests, stores, replicas } = report;
  const hits = ({ hits, misses }: { hits: number; misses: number }) =>
    `${formatCount(hits)} of ${formatCount(hits + misses)}`;
  const columns = (name: string, ...numbers: string[]) =>
    name.padEnd(14) + numbers.map((one) => one.padStart(12)).join("");
  return [
    `repo: ${report.repo}`,
    `bundle: ${report.bundle ?? "(empty)"}`,
    `mode: ${report.mode}`,
    `channel: ${report.channel}`,
    `open mode: ${report.openMode} (${report.openModeReason})`,
    `mounted: ${report.since}`,
    `daemon: ${report.daemonPid}, ${plural(report.restarts, "restart")}, counting since ${report.countedSince}`,
    `found on disk: ${hits(tiers.disk)}`,
    `found in memory: ${hits(tiers.memory)}`,
    `found in the store: ${hits(tiers.store)}`,
    `fetched: ${plural(fetched.blobs, "blob")} (${formatCount(fetched.ahead)} ahead), ${formatBytes(fetched.bytes)}`,
    ...stores.map(storeLine),
    ...replicas.map(replicaLine),
    columns("request", "count", "p50 µs", "p90 µs", "p99 µs"),
    ...requests.map(({ request, count, p50Us, p90Us, p99Us }) =>
      columns(request, formatCount(count), ...[p50Us, p90Us, p99Us].map((time) => time.toFixed(1))),
    ),
  ];
}

function storeLine({ request, count, failures, bytes, meanMs, slowestMs }: MountReport["stores"][number]): string {
  const times = `${meanMs.toFixed(1)} ms on average, ${slowestMs.toFixed(1)} at most`;
  return `sent to stores: ${formatCount(count)} ${request}, ${plural(failures, "failure")}, ${formatBytes(bytes)}, ${times}`;
}

function replicaLine({ url, answers, failures, missed, lastFailure }: MountReport["replicas"][number]): string {
  const state = `store ${url}: ${answers ? "answers" : "does not answer"}`;
  if (failures === 0 && missed === 0) return state;
  return `${state}, ${plural(failures, "failure")}, lacks ${plural(missed, "object")} of this mount; last: ${lastFailure}`;
}
