import { readFile } from "node:fs/promises";
import { type Command, Option } from "commander";
import { DatamonError, ioError } from "../cas/index.ts";
import type { BackupPart } from "../pods/index.ts";
import { interruptSignal, localState, openConfiguredContext, wholeNumber } from "./context.ts";
import { type OutputOptions, plural, printList, say, withOutput } from "./output.ts";
import { Progress } from "./progress.ts";

/** `datamon backup`. */
export function registerBackup(program: Command): void {
  withOutput(program.command("backup"))
    .description("back up the folders of a shared disk, a bundle each, and delete what is old there")
    .option("-d, --directory <dir>", "the folder whose folders to back up")
    .option("-f, --files <list>", "or a file with the paths of files to back up, one a line")
    .option("-u, --unlinkable <list>", "write what may be deleted to this file, and delete nothing")
    .addOption(new Option("-t, --test <boolean>", "use the repo's test twin, <repo>-test").choices(["true", "false"]))
    .option("--repo <name>", "the repo, made where it is missing", process.env.DATAMON_REPO ?? "backup")
    .option("-c, --concurrency <number>", "objects to put at once", wholeNumber(1))
    .option("--dry-run", "only say what would be backed up, and how much of it is old")
    .addHelpText(
      "after",
      `
Each folder becomes a bundle with the label 2006-jan-02-<folder>-<index>, the files beside the folders
one with index 0. What was last changed 20 days ago or earlier is then deleted (or listed, with -u):
only what the bundle has with the size and modification time that it still has, and only where the
folder and the bundle hold equally many files.

Lines: label , bundle , files , removable , deleted , folder

Examples:
  datamon backup -d /mnt/shared -u /tmp/unlinkable.list
  datamon backup -d /mnt/shared --dry-run`,
    )
    .action(async (options: Flags & OutputOptions) => {
      const { backup } = await import("../pods/index.ts");
      const from = await source(options);
      const context = await openConfiguredContext();
      const progress = await Progress.start("Uploading");
      let failed = 0;
      const parts = backup(context, {
        from,
        repo: options.test === "true" ? `${options.repo}-test` : options.repo,
        unlinkable: options.unlinkable,
        concurrency: options.concurrency,
        dryRun: options.dryRun === true,
        ...localState(context),
        signal: interruptSignal(),
        onProgress: (state) => progress.update(state),
        onWarning: (line) => progress.warn(line),
        onStep: (line) => progress.warn(line),
      });
      try {
        const noted = async function* () {
          for await (const part of parts) {
            failed += part.failed;
            yield part;
          }
        };
        await printList(noted(), options, partLine);
      } finally {
        progress.stop();
      }
      if (failed === 0) return;
      say(`${plural(failed, "file")} could not be read or deleted, and ${failed === 1 ? "stays" : "stay"}`);
      process.exitCode = 1;
    });
}

interface Flags {
  directory?: string;
  files?: string;
  unlinkable?: string;
  test?: string;
  repo: string;
  concurrency?: number;
  dryRun?: boolean;
}

async function source({ directory, files }: Flags): Promise<{ directory: string } | { files: Uint8Array }> {
  if (directory !== undefined && files === undefined) return { directory };
  if (files === undefined || directory !== undefined) {
    throw new DatamonError("usage", "backup needs a folder or a list of files", {
      hint: "Give either -d DIR or -f LIST.",
    });
  }
  try {
    return { files: await readFile(files) };
  } catch (error) {
    throw ioError(`read the list of files ${files}`, error);
  }
}

function partLine({ label, bundle, files, removable, unlinked, path }: BackupPart): string {
  const counts = [files, removable, unlinked].join(" , ");
  return `${label} , ${bundle?.id ?? "-"} , ${counts} , ${path}`;
}
