import { Command, CommanderError } from "commander";
import { ioError, isErrno } from "../cas/index.ts";
import { registerBackup } from "./backup.ts";
import { registerBundle } from "./bundle.ts";
import { registerCache } from "./cache.ts";
import { registerCommit } from "./commit.ts";
import { registerCompletion } from "./completion.ts";
import { registerConfig } from "./config.ts";
import { registerDatamover } from "./datamover.ts";
import { exitCodeOf, reportError } from "./failure.ts";
import { registerLabel } from "./label.ts";
import { registerMount } from "./mount.ts";
import { registerRepo } from "./repo.ts";
import { registerScratch } from "./scratch.ts";
import { registerSidecar } from "./sidecar.ts";
import { registerStore } from "./store.ts";
import { registerVersion } from "./version.ts";

/** The whole command line: every noun adds its commands. */
export function buildProgram(): Command {
  const program = new Command("datamon")
    .description("Dataset versions that you mount.")
    // `bundle list` and `bundle list files` both take --repo: what follows a command's name is for that command.
    .enablePositionalOptions()
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, "datamon: ")) })
    .helpCommand("help [command]", "show what a command does")
    .showHelpAfterError("(run with --help for what it takes)")
    .addHelpText(
      "after",
      `
A first tour:
  datamon repo create --repo birds --description "Bird counts"
  datamon bundle upload --repo birds --path ./birds --message "first" --label v1
  datamon mount birds@v1 /mnt/birds
  ls /mnt/birds
  datamon unmount /mnt/birds

Exit status: 0 done, 1 failed, 2 not found, 130 interrupted.`,
    );
  registerConfig(program);
  registerRepo(program);
  registerBundle(program);
  registerLabel(program);
  registerMount(program);
  registerCommit(program);
  registerScratch(program);
  registerCache(program);
  registerStore(program);
  registerSidecar(program);
  registerDatamover(program);
  registerBackup(program);
  registerCompletion(program);
  registerVersion(program);
  return program;
}

/**
 * Runs one command line and prints what it has to say.
 *
 * @param args the words after `datamon`
 * @returns the exit status
 */
export async function run(args: string[]): Promise<number> {
  process.stdout.on("error", (error) => {
    // `datamon … | head` closes our output early; that is no failure.
    if (isErrno(error, "EPIPE")) process.exit(0);
    reportError(ioError("write to the standard output", error));
    process.exit(1);
  });
  const program = buildProgram();
  prepare(program);
  try {
    await program.parseAsync(args, { from: "user" });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode;
    reportError(error);
    return exitCodeOf(error);
  }
}

function prepare(command: Command): void {
  command.exitOverride();
  command.hook("preSubcommand", dropRequirements);
  for (const child of command.commands) prepare(child);
}

/** Commander would ask for the required options of `bundle list` where `bundle list files` is what runs. */
function dropRequirements(command: Command): void {
  for (const option of command.options) option.makeOptionMandatory(false);
}
