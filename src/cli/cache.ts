import type { Command } from "commander";
import type { DiskCache } from "../cache/index.ts";
import {
  cacheDirectoryOf,
  interruptSignal,
  labelOrBundle,
  openConfiguredContext,
  parseSize,
  readConfig,
} from "./context.ts";
import { parseBundleSpec } from "./mount.ts";
import { formatBytes, type OutputOptions, plural, printJson, printLine, say, withOutput } from "./output.ts";
import { Progress } from "./progress.ts";

/** `datamon cache status|warm|clear`. */
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

  withOutput(cache.command("warm"))
    .description("bring a bundle's content into the cache, so that reading it needs no store")
    .argument("<bundle>", "REPO, REPO@LABEL or REPO@BUNDLE-ID (default: the repo's newest bundle)")
    .option("--path <glob>", "only the files at or below this path, with * ** ? […] {…}; may be given again", collect)
    .option("--cache-dir <dir>", "the cache (default: the configuration's)")
    .option("--cache-size <size>", "how much it may hold, such as 20G; give a mount the same", parseSize)
    .addHelpText(
      "after",
      `
Examples:
  datamon cache warm birds@v1
  datamon cache warm --path "2019/**/*.csv" --path labels birds@v1`,
    )
    .action(async (spec: string, options: WarmFlags) => await warm(spec, options));

  cache
    .command("clear")
    .description("empty the cache; mounts go on and fetch again what they need")
    .option("--cache-dir <dir>", "the cache (default: the configuration's)")
    .addHelpText("after", "\nExample:\n  datamon cache clear")
    .action(async (options: { cacheDir?: string }) => {
      await withCache(options.cacheDir, (opened) => say(`freed ${formatBytes(opened.clear())}`));
    });
}

interface WarmFlags extends OutputOptions {
  path?: string[];
  cacheDir?: string;
  cacheSize?: number;
}

async function warm(spec: string, { path, cacheDir, cacheSize, output }: WarmFlags): Promise<void> {
  const [{ resolveBundle }, { warmCache }] = await Promise.all([import("../meta/index.ts"), import("../fs/index.ts")]);
  const context = await openConfiguredContext();
  const { repo, reference } = parseBundleSpec(spec);
  const selector = reference === undefined ? { repo } : await labelOrBundle(context, repo, reference);
  const bundle = await resolveBundle(context, repo, selector);
  const cacheDirectory = cacheDir ?? cacheDirectoryOf(context.config.cache);
  const progress = await Progress.start("Warming");
  try {
    const result = await warmCache(context, {
      bundle,
      cacheDirectory,
      cacheSize,
      signal: interruptSignal(),
      onProgress: (state) => progress.update(state),
      ...(path !== undefined && { paths: path }),
    });
    progress.stop();
    if (output === "json") printJson({ repo, bundle: bundle.id, cacheDirectory, ...result });
    else {
      printLine(`Using bundle: ${bundle.id}`);
      const fetched = `${plural(result.fetchedBlobs, "blob")}, ${formatBytes(result.fetchedBytes)}`;
      say(`Warming done: ${progress.summary()}; fetched ${fetched}`);
    }
  } finally {
    progress.stop();
  }
}

function collect(value: string, before: string[] = []): string[] {
  return [...before, value];
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
