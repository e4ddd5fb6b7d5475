import type { Command } from "commander";
import type { LabelVersion } from "../meta/index.ts";
import { openConfiguredContext } from "./context.ts";
import { formatTime, type OutputOptions, printJson, printLine, printList, say, withOutput } from "./output.ts";

/** `datamon label set|get|list|delete`. */
export function registerLabel(program: Command): void {
  const label = program.command("label").description("names for bundles");

  label
    .command("set")
    .description("give a bundle a label, or move the label to it")
    .requiredOption("--repo <name>", "the repo")
    .requiredOption("--label <name>", "the label")
    .requiredOption("--bundle <id>", "the bundle, by its id or the beginning of it")
    .addHelpText(
      "after",
      "\nExample:\n  datamon label set --repo birds --label v2 --bundle 1INzQ5TV4vAAfU2PbRFgPfnzEwR",
    )
    .action(async (options: { repo: string; label: string; bundle: string }) => {
      const { getBundle, setLabel } = await import("../meta/index.ts");
      const context = await openConfiguredContext();
      const bundle = await getBundle(context, options.repo, options.bundle);
      await setLabel(context, options.repo, options.label, bundle.id);
      say(`set label '${options.label}' to bundle ${bundle.id}`);
    });

  withOutput(label.command("get"))
    .description("print one label: name , bundle id , time; exit status 2 where it is not there")
    .requiredOption("--repo <name>", "the repo")
    .requiredOption("--label <name>", "the label")
    .addHelpText("after", "\nExample:\n  datamon label get --repo birds --label v1")
    .action(async (options: OutputOptions & { repo: string; label: string }) => {
      const { getLabel } = await import("../meta/index.ts");
      const found = await getLabel(await openConfiguredContext(), options.repo, options.label);
      if (options.output === "json") printJson(labelJson(found));
      else printLine(labelLine(found));
    });

  withOutput(label.command("list"))
    .description("list the labels of a repo: name , bundle id , time")
    .requiredOption("--repo <name>", "the repo")
    .option("--prefix <text>", "only labels that begin so")
    .option("--with-versions", "every bundle that each label has named, oldest first")
    .addHelpText("after", "\nExample:\n  datamon label list --repo birds --prefix v --with-versions")
    .action(async (options: OutputOptions & { repo: string; prefix?: string; withVersions?: boolean }) => {
      const { listLabels } = await import("../meta/index.ts");
      const context = await openConfiguredContext();
      const { prefix, withVersions } = options;
      const labels = listLabels(context, options.repo, { prefix, withVersions });
      await printList(labels, options, labelLine, labelJson);
    });

  label
    .command("delete")
    .description("take a label away; the bundle stays, and so does the label's history")
    .requiredOption("--repo <name>", "the repo")
    .requiredOption("--label <name>", "the label")
    .addHelpText("after", "\nExample:\n  datamon label delete --repo birds --label v2")
    .action(async (options: { repo: string; label: string }) => {
      const { deleteLabel } = await import("../meta/index.ts");
      await deleteLabel(await openConfiguredContext(), options.repo, options.label);
      say(`deleted label '${options.label}'`);
    });
}

function labelLine(version: LabelVersion): string {
  return `${version.label} , ${version.bundle ?? "(deleted)"} , ${formatTime(version.timestamp)}`;
}

function labelJson(version: LabelVersion): unknown {
  const { label, bundle, number, timestamp, contributor } = version;
  return { label, bundle: bundle ?? null, version: number, timestamp, contributor };
}
