import { createInterface } from "node:readline/promises";
import type { Command } from "commander";
import { DatamonError } from "../cas/index.ts";
import type { Repo } from "../meta/index.ts";
import { openConfiguredContext } from "./context.ts";
import { formatTime, type OutputOptions, printJson, printLine, printList, say, withOutput } from "./output.ts";

/** `datamon repo create|list|get|delete`. */
export function registerRepo(program: Command): void {
  const repo = program.command("repo").description("datasets");

  repo
    .command("create")
    .description("make a repo")
    .requiredOption("--repo <name>", "its name: letters, digits and hyphens")
    .requiredOption("--description <text>", "what it holds")
    .option("--email <address>", "the contributor's e-mail address (default: the configuration's)")
    .option("--name <name>", "the contributor's name (default: the configuration's)")
    .addHelpText("after", '\nExample:\n  datamon repo create --repo birds --description "Bird counts since 1970"')
    .action(async (options: { repo: string; description: string; email?: string; name?: string }) => {
      const { createRepo } = await import("../meta/index.ts");
      const context = await openConfiguredContext();
      const contributor = { ...context.contributor };
      if (options.email !== undefined) contributor.email = options.email;
      if (options.name !== undefined) contributor.name = options.name;
      await createRepo(context, { name: options.repo, description: options.description, contributor });
    });

  withOutput(repo.command("list"))
    .description("list the repos: name , description , contributor , e-mail , time")
    .addHelpText("after", "\nExample:\n  datamon repo list -o json")
    .action(async (options: OutputOptions) => {
      const { listRepos } = await import("../meta/index.ts");
      await printList(listRepos(await openConfiguredContext()), options, repoLine, repoJson);
    });

  withOutput(repo.command("get"))
    .description("print one repo; exit status 2 where it is not there")
    .requiredOption("--repo <name>", "the repo")
    .addHelpText("after", "\nExample:\n  datamon repo get --repo birds")
    .action(async (options: OutputOptions & { repo: string }) => {
      const { getRepo } = await import("../meta/index.ts");
      const found = await getRepo(await openConfiguredContext(), options.repo);
      if (options.output === "json") printJson(repoJson(found));
      else printLine(repoLine(found));
    });

  repo
    .command("delete")
    .description("delete a repo with all its bundles and labels; asks first on a terminal")
    .requiredOption("--repo <name>", "the repo")
    .option("--force", "do not ask")
    .addHelpText("after", "\nExample:\n  datamon repo delete --repo birds --force")
    .action(async (options: { repo: string; force?: boolean }) => {
      const { deleteRepo, getRepo } = await import("../meta/index.ts");
      const context = await openConfiguredContext();
      await getRepo(context, options.repo);
      if (options.force !== true) await confirm(`Delete ${options.repo} with all its bundles and labels?`);
      await deleteRepo(context, options.repo);
      say(`deleted repo ${options.repo}`);
    });
}

async function confirm(question: string): Promise<void> {
  if (!process.stdin.isTTY || !process.stderr.isTTY) return;
  const prompt = createInterface({ input: process.stdin, output: process.stderr });
  const answer = await prompt.question(`${question} [y/N] `);
  prompt.close();
  if (!/^y(es)?$/i.test(answer.trim())) throw new DatamonError("interrupted", "nothing was deleted");
}

function repoLine(repo: Repo): string {
  const { name, description, contributor, timestamp } = repo;
  return `${name} , ${description} , ${contributor.name} , ${contributor.email} , ${formatTime(timestamp)}`;
}

function repoJson(repo: Repo): unknown {
  const { name, description, contributor, timestamp } = repo;
  return { name, description, contributor, timestamp };
}
