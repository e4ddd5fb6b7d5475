import { type Command, Option } from "commander";
import type { OnConflict } from "../fs/index.ts";
import { checkNewLabel, homeDirectory } from "./context.ts";
import { type OutputOptions, printJson, printLine, say, withOutput } from "./output.ts";
import { Progress } from "./progress.ts";

interface CommitFlags extends OutputOptions {
  message?: string;
  label?: string;
  onConflict?: OnConflict;
}

/** `datamon commit`. */
export function registerCommit(program: Command): void {
  withOnConflict(withOutput(program.command("commit")))
    .description("make a bundle of what a writable mount shows at this moment; the mount goes on above it")
    .argument("<dir>", "the mounted directory")
    .option("--message <text>", "what the bundle says of itself (default: what the mount was given)")
    .option("--label <name>", "a label for the bundle (default: what the mount was given)")
    .addHelpText(
      "after",
      '\nExamples:\n  datamon commit /mnt/birds\n  datamon commit --message "after epoch 3" --label latest /mnt/birds',
    )
    .action(async (directory: string, { output, ...options }: CommitFlags) => {
      await checkNewLabel(options.label);
      const { commitMount } = await import("../fs/index.ts");
      const progress = await Progress.start("Committing");
      try {
        const onProgress = (state: { files: number; bytes: number }) => progress.update(state);
        const bundle = await commitMount({ ...options, home: homeDirectory(), directory, onProgress });
        progress.stop();
        if (output === "json") printJson({ bundle: bundle ?? null });
        else if (bundle !== undefined) printLine(`bundle: ${bundle}`);
        if (bundle === undefined) say("nothing was changed, so there is no new bundle");
      } finally {
        progress.stop();
      }
    });
}

/** Adds the flag of what becomes of a label that was moved meanwhile. */
export function withOnConflict(command: Command): Command {
  return command.addOption(
    new Option("--on-conflict <what>", "where the label was moved since the mount began: move it, or fail").choices([
      "move",
      "fail",
    ]),
  );
}
