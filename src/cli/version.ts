import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { type OutputOptions, printJson, printLine, withOutput } from "./output.ts";

/** `datamon version`. */
export function registerVersion(program: Command): void {
  withOutput(program.command("version"))
    .description("print the version")
    .addHelpText("after", "\nExample:\n  datamon version")
    .action((options: OutputOptions) => {
      const version = readVersion();
      if (options.output === "json") printJson({ version, node: process.versions.node });
      else printLine(version);
    });
}

/** The version in package.json, which lies two folders up both in a checkout and in a packed release. */
function readVersion(): string {
  const manifest: { version: string } = JSON.parse(
    readFileSync(new URL("../../package.json", import.meta.url), "utf8"),
  );
  return manifest.version;
}
