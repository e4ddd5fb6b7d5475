import { basename, dirname, join, resolve } from "node:path";
import type { Command } from "commander";
import type { OnConflict, Scratch, ScratchStatus } from "../fs/index.ts";
import { withOnConflict } from "./commit.ts";
import { cacheDirectoryOf, checkNewLabel, homeDirectory, interruptSignal, openConfiguredContext } from "./context.ts";
import {
  formatBytes,
  formatTime,
  type OutputOptions,
  plural,
  printLine,
  printList,
  say,
  withOutput,
} from "./output.ts";
import { Progress } from "./progress.ts";

/** `datamon scratch list|commit|discard`. */
export function registerScratch(program: Command): void {
  const scratch = program.command("scratch").description("changes of writable mounts that are not committed yet");

  withOutput(scratch.command("list"))
    .description("list them: id , repo , base bundle , since , changes , whether a mount is using it")
    .addHelpText("after", "\nExample:\n  datamon scratch list")
    .action(async (options: OutputOptions) => {
      const { listScratches } = await import("../fs/index.ts");
      const found = await listScratches(scratchRoot(), (error) => say(error.message));
      await printList(found, options, scratchLine, scratchJson);
    });

  withOnConflict(scratch.command("commit"))
    .description("make a bundle of the changes that a mount left behind")
    .argument("<id>", "the scratch, or its directory where it came from another machine")
    .option("--message <text>", "what the bundle says of itself (default: what the mount was given)")
    .option("--label <name>", "a label for the bundle (default: what the mount was given)")
    .addHelpText("after", "\nExample:\n  datamon scratch commit 3f2a9c01")
    .action(async (id: string, options: { message?: string; label?: string; onConflict?: OnConflict }) => {
      const { commitScratch, discardScratch } = await import("../fs/index.ts");
      const scratch = await scratchOf(id);
      await checkNewLabel(options.label);
      const context = await openConfiguredContext();
      const progress = await Progress.start("Committing");
      try {
        const bundle = await commitScratch(context, scratch, {
          ...options,
          cacheDirectory: cacheDirectoryOf(context.config.cache),
          signal: interruptSignal(),
          onProgress: (state) => progress.update(state),
          onWarning: (line) => progress.warn(line),
        });
        await discardScratch(scratch);
        progress.stop();
        if (bundle === undefined) say("nothing was changed, so there is no new bundle");
        else printLine(`bundle: ${bundle.id}`);
      } finally {
        progress.stop();
      }
    });

  scratch
    .command("discard")
    .description("throw the changes away")
    .argument("<id>", "the scratch, or its directory where it came from another machine")
    .addHelpText("after", "\nExample:\n  datamon scratch discard 3f2a9c01")
    .action(async (id: string) => {
      const { discardScratch } = await import("../fs/index.ts");
      const scratch = await scratchOf(id);
      await discardScratch(scratch);
      say(`discarded scratch ${scratch.id}`);
    });
}

/** A scratch of this user's, or by its path one that a container left on a volume. */
async function scratchOf(id: string): Promise<Scratch> {
  const { getScratch } = await import("../fs/index.ts");
  return id.includes("/") ? await getScratch(dirname(resolve(id)), basename(id)) : await getScratch(scratchRoot(), id);
}

function scratchRoot(): string {
  return join(homeDirectory(), "scratch");
}

function scratchLine({ id, record, changes, bytes, alive }: ScratchStatus): string {
  const amount = changes === undefined ? "journal unreadable" : plural(changes, "change");
  const state = alive ? `mounted on ${record.directory}` : "not mounted";
  const since = formatTime(new Date(record.created));
  return `${id} , ${record.repo} , ${record.base?.bundle ?? "(empty)"} , ${since} , ${amount} , ${formatBytes(bytes)} , ${state}`;
}

function scratchJson({ id, directory, record, changes, bytes, alive }: ScratchStatus): unknown {
  const { repo, base, created, message, label, directory: mount } = record;
  return { id, repo, base: base?.bundle ?? null, created, message, label, changes, bytes, alive, mount, directory };
}
