import type { Command } from "commander";
import { homeDirectory, parseCount, readConfig } from "./context.ts";
import { type OutputOptions, printJson, printLine, say, withOutput } from "./output.ts";

/** `datamon config create|show`. */
export function registerConfig(program: Command): void {
  const config = program.command("config").description("who you are and which stores you use");

  config
    .command("create")
    .description("write ~/.datamon/datamon.yaml (or the file that $DATAMON_CONFIG names)")
    .requiredOption("--email <address>", "your e-mail address, kept with what you make")
    .requiredOption("--name <name>", "your name, kept with what you make")
    .option("--credential <file>", "a Google Cloud credential file")
    .option(
      "--metadata <url>",
      "store for repos, bundles and labels: file:///dir, gs://bucket or s3://bucket; given again, another one with the same",
      collect,
    )
    .option("--blob <url>", "store for the data: likewise", collect)
    .option(
      "--copies <number>",
      "of several stores: how many must have an object (default: all that answer)",
      parseCount,
    )
    .option("--cache <dir>", "directory for cached data")
    .addHelpText(
      "after",
      `
Examples:
  datamon config create --email ada@example.org --name "Ada Lovelace"
  datamon config create --email ada@example.org --name Ada --metadata file:///data/meta --blob file:///data/blob
  datamon config create --email ada@example.org --name Ada --metadata gs://lab/meta --blob gs://lab/blob
  datamon config create --email ada@example.org --name Ada \\
    --metadata 's3://lab/meta?region=eu-central-1' --blob 's3://lab/blob?region=eu-central-1'
  datamon config create --email ada@example.org --name Ada \\
    --metadata gs://lab/meta --metadata file:///backup/meta --blob gs://lab/blob --blob file:///backup/blob`,
    )
    .action(async (options: CreateOptions) => {
      homeDirectory();
      const { writeConfig } = await import("../meta/index.ts");
      const { metadata, blob, ...values } = options;
      const stores = { ...(metadata && { metadata: storesOf(metadata) }), ...(blob && { blob: storesOf(blob) }) };
      say(`wrote ${await writeConfig({ ...values, ...stores })}`);
    });

  withOutput(config.command("show"))
    .description("print the configuration in force")
    .addHelpText("after", "\nExample:\n  datamon config show -o json")
    .action(async (options: OutputOptions) => {
      const { file, ...settings } = await readConfig();
      say(file === undefined ? "No configuration file; these are the defaults." : `Using config file: ${file}`);
      if (options.output === "json") return printJson(settings);
      for (const [key, value] of Object.entries(settings)) {
        if (value !== undefined) for (const one of [value].flat()) printLine(`${key}: ${one}`);
      }
    });
}

interface CreateOptions {
  email: string;
  name: string;
  credential?: string;
  metadata?: string[];
  blob?: string[];
  copies?: number;
  cache?: string;
}

/** One store is written as such, several as a list. */
function storesOf(urls: string[]): string | string[] {
  return urls.length === 1 ? urls[0]! : urls;
}

function collect(url: string, before: string[] = []): string[] {
  return [...before, url];
}
