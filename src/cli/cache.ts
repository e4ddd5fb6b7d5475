import type { Command } from "commander";
import type { DiskCache } from "../cache/index.ts";
import { cacheDirectoryOf, readConfig } from "./context.ts";
import { formatBytes, type OutputOptions, plural, printJson, printLine, say, withOutput } from "./output.ts";

/** `datamon cache status|clear`. */
export function registerCache(program: Command): void {
  const cache = program.command("cache").description("data kept on this machine");

  withOutput(cache.command("status"))
    .description("what the cache holds")
    .option("--cache-dir <dir>", "the cache (default: the configuration's)")
    .addHelpText("after", "\nExample:\n  datamon cache status -o json")
    .action(async (options: OutputOptions & { cacheDir?: string }) => {
      await withCache(options.cacheDir, (opened) => {
        const status = opened.status();
        if (options.output === "json") return printJson(status);
        printLine(`directory: ${status.directory}`);
        printLine(
          `data: ${formatBytes(status.bytes)} of ${formatBytes(status.limit)}, ${plural(status.containers, "container")}`,
        );
        printLine(`catalogs: ${formatBytes(status.catalogBytes)}, ${plural(status.catalogs, "catalog")}`);
        if (status.degraded !== undefined) printLine(`nothing new is kept: ${status.degraded}`);
      });
    });

  cache
    .command("clear")
    .description("empty the cache; mounts go on and fetch again what they need")
    .option("--cache-dir <dir>", "the cache (default: the configuration's)")
    .addHelpText("after", "\nExample:\n  datamon cache clear")
    .action(async (options: { cacheDir?: string }) => {
      await withCache(options.cacheDir, (opened) => say(`freed ${formatBytes(opened.clear())}`));
    });
}

async function withCache(directory: string | undefined, work: (cache: DiskCache) => void): Promise<void> {
  const { DiskCache } = await import("../cache/index.ts");
  const cache = DiskCache.open(directory ?? cacheDirectoryOf((await readConfig()).cache));
  try {
    work(cache);
  } finally {
    cache.close();
  }
}
