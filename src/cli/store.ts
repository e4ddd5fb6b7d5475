import type { Command } from "commander";
import { display } from "../cas/index.ts";
import type { Finding } from "../meta/index.ts";
import { cacheDirectoryOf, interruptSignal, openConfiguredContext } from "./context.ts";
import { jsonName, type OutputOptions, plural, printList, say, withOutput } from "./output.ts";
import { Progress } from "./progress.ts";

/** `datamon store check|repair`. */
export function registerStore(program: Command): void {
  const store = program.command("store").description("the stores themselves");

  withCheckFlags(store.command("check"))
    .description("find what is missing or damaged in any store; exit status 1 where something is")
    .addHelpText(
      "after",
      `
Compares all stores of the configuration with each other and with what bundles need. Lines:
  missing , key , store , where it is        damaged , key , store , why
  differs , key , store , which store counts  lost , key , why (no store has it right)
  harmed , repo , bundle , path              (what is lost of bundles; without a path, all)
  unreachable , store , why

Examples:
  datamon store check
  datamon store check --read-data --repo birds -o json`,
    )
    .action(async (options: CheckFlags) => await examine("Checking", options, false));

  withCheckFlags(store.command("repair"))
    .description("copy what is missing or damaged in one store from another that has it right")
    .addHelpText(
      "after",
      `
Nothing is copied that was not verified before. Prints what was wrong, as 'store check' does; exit status 1
where something is left. Without --read-data, damaged content that a listing does not show is not found.

Example:
  datamon store repair --read-data`,
    )
    .action(async (options: CheckFlags) => await examine("Repairing", options, true));
}

interface CheckFlags extends OutputOptions {
  readData?: boolean;
  repo?: string;
}

function withCheckFlags(command: Command): Command {
  return withOutput(command)
    .option("--read-data", "read and verify the content of every object in every store")
    .option("--repo <name>", "only what this repo needs");
}

async function examine(verb: string, options: CheckFlags, repair: boolean): Promise<void> {
  const { checkStores } = await import("../meta/index.ts");
  const context = await openConfiguredContext();
  const counts = { repaired: 0, left: 0, lost: 0 };
  const progress = await Progress.start(verb, "object");
  const found = async function* (): AsyncGenerator<Finding> {
    const findings = checkStores(context, {
      readData: options.readData,
      repo: options.repo,
      repair,
      cacheDirectory: cacheDirectoryOf(context.config.cache),
      signal: interruptSignal(),
      onProgress: (state) => progress.update(state),
    });
    for await (const finding of findings) {
      if ("repaired" in finding && finding.repaired) counts.repaired++;
      else if (finding.kind !== "harmed") counts.left++;
      if (finding.kind === "lost") counts.lost++;
      // Two that write to one terminal would write over each other.
      if (process.stdout.isTTY) progress.stop();
      yield finding;
    }
  };
  try {
    await printList(found(), options, findingLine, findingJson);
  } finally {
    progress.stop();
  }
  const repaired = counts.repaired === 0 ? "" : `; repaired ${plural(counts.repaired, "copy", "copies")}`;
  const left = counts.left === 0 ? "nothing is wrong" : plural(counts.left, "thing is wrong", "things are wrong");
  say(
    `${verb} done: ${progress.summary()}${repaired}; ${counts.repaired > 0 && counts.left === 0 ? "nothing is left" : left}`,
  );
  if (counts.lost > 0) {
    say("  What is lost can come from nowhere but another copy of the store: name it as one more store in the");
    say("  configuration and run 'datamon store repair'.");
  } else if (counts.left > 0 && !repair) {
    say("  'datamon store repair' copies it from a store that has it right.");
  }
  if (counts.left > 0) process.exitCode = 1;
}

function findingLine(finding: Finding): string {
  switch (finding.kind) {
    case "unreachable":
      return `unreachable , ${finding.store} , ${finding.why}`;
    case "lost":
      return `lost , ${finding.key} , ${finding.why}`;
    case "harmed":
      return `harmed , ${finding.repo} , ${finding.bundle} , ${finding.path === undefined ? "" : display(finding.path)}`;
    default: {
      const done = finding.repaired ? " , repaired" : "";
      return `${finding.kind} , ${finding.key} , ${finding.store} , ${finding.why}${done}`;
    }
  }
}

function findingJson(finding: Finding): unknown {
  if (finding.kind !== "harmed") return finding;
  return { ...finding, path: finding.path === undefined ? null : jsonName(finding.path) };
}
