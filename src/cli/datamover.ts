import type { Command } from "commander";
import type { DatamoverResult } from "../pods/index.ts";
import { checkNewLabel, interruptSignal, localState, openConfiguredContext, wholeNumber } from "./context.ts";
import { type OutputOptions, plural, printJson, printLine, say, withOutput } from "./output.ts";
import { Progress } from "./progress.ts";

/** `datamon datamover`. */
export function registerDatamover(program: Command): void {
  withOutput(program.command("datamover"))
    .description("upload a folder's files and, on request, unlink those that are old")
    .requiredOption("-d, --directory <dir>", "the folder")
    .option("--repo <name>", "the repo, made where it is missing", process.env.DATAMON_REPO ?? "datamover")
    .option("-l, --label <name>", "the bundle's label (default: datamover-<time>)")
    .option("-t, --before <time>", "what was last changed before it is removable", "090725000000")
    .option("-f, --lists <dir>", "where to write upload.list, uploaded.list and removable.list", "/tmp")
    .option("-c, --concurrency <number>", "objects to put at once", wholeNumber(1), 200)
    .option("-u, --unlink", "unlink what is removable, once the bundle is complete")
    .option("--dry-run", "only write upload.list and removable.list, the latter by times alone")
    .addHelpText(
      "after",
      `
Times are of the machine's time zone: 2006-Jan-02, 0601021504 (year, month, day, hour, minute) or
060102150405 (and second). A file is removable if the bundle has it with the size and modification
time that it still has. Lists of an earlier run are not overwritten. Exit status 1 where files
could not be read or unlinked; those that vanish meanwhile are left out and reported.

Examples:
  datamon datamover -d /mnt/shared/results -l results-june -f /var/tmp/june
  datamon datamover -d /mnt/shared/results -t 2026-Jun-01 -u -f /var/tmp/june`,
    )
    .action(async (options: Flags & OutputOptions) => {
      const { datamover, parseMoment } = await import("../pods/index.ts");
      const before = parseMoment(options.before);
      const label = options.label ?? `datamover-${new Date().toISOString().replace(/[-:]|\.\d+/g, "")}`;
      await checkNewLabel(label);
      const context = await openConfiguredContext();
      const progress = await Progress.start("Uploading");
      try {
        const result = await datamover(context, {
          directory: options.directory,
          repo: options.repo,
          label,
          before,
          lists: options.lists,
          concurrency: options.concurrency,
          unlink: options.unlink === true,
          dryRun: options.dryRun === true,
          ...localState(context),
          signal: interruptSignal(),
          onProgress: (state) => progress.update(state),
          onWarning: (line) => progress.warn(line),
          onStep: (line) => progress.warn(line),
        });
        progress.stop();
        if (options.output === "json") printJson({ label, ...result });
        else print(label, result, options.lists);
        if (result.failed > 0) process.exitCode = 1;
      } finally {
        progress.stop();
      }
    });
}

interface Flags {
  directory: string;
  repo: string;
  label?: string;
  before: string;
  lists: string;
  concurrency: number;
  unlink?: boolean;
  dryRun?: boolean;
}

function print(label: string, { bundle, listed, unlinked, vanished, failed }: DatamoverResult, lists: string): void {
  say(
    `lists in ${lists}: ${plural(listed.upload, "file")} met, ${listed.uploaded} uploaded, ${listed.removable} removable`,
  );
  if (vanished > 0) say(`${plural(vanished, "file")} vanished before being read`);
  if (unlinked > 0) say(`unlinked ${plural(unlinked, "file")}`);
  if (failed > 0)
    say(`${plural(failed, "file")} could not be read or unlinked, and ${failed === 1 ? "stays" : "stay"}`);
  if (bundle === undefined) return;
  say(`set label '${label}'`);
  printLine(`Uploaded bundle id:${bundle.id}`);
}
