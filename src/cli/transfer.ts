import { readFile } from "node:fs/promises";
import type { Command } from "commander";
import { bytesOf, DatamonError, display, ioError, isBucketUrl } from "../cas/index.ts";
import type { DiffEntry, DiffSide } from "../fs/transfer/index.ts";
import type { Bundle, Context } from "../meta/index.ts";
import {
  type BundleSelector,
  cacheDirectoryOf,
  checkNewLabel,
  interruptSignal,
  labelOrBundle,
  localState,
  openConfiguredContext,
  wholeNumber,
  withBundleSelector,
} from "./context.ts";
import {
  formatBytes,
  jsonName,
  type OutputOptions,
  plural,
  printJson,
  printLine,
  printList,
  say,
  withOutput,
} from "./output.ts";
import { Progress } from "./progress.ts";

/** `datamon bundle upload`. */
export function registerUpload(bundle: Command): void {
  withOutput(bundle.command("upload"))
    .description("make a bundle of a folder, or of what lies in a bucket")
    .requiredOption("--repo <name>", "the repo")
    .option("--path <dir or url>", "the folder, or a bucket with a prefix: gs://bucket/prefix or s3://bucket/prefix")
    .option("--folder <dir>", "the same as --path")
    .requiredOption("--message <text>", "what the bundle says of itself")
    .option("--label <name>", "a label for the bundle")
    .option("--files <list>", "a file with the paths to upload, one a line, relative to the folder or prefix")
    .option("--name-filter <regexp>", "upload only paths that match")
    .option("--skip-on-error", "leave out files that cannot be read, with a warning each")
    .option("--concurrency-factor <number>", "objects to put at once", wholeNumber(1))
    .addHelpText(
      "after",
      `
Examples:
  datamon bundle upload --repo birds --path ./birds --message "first" --label v1
  datamon bundle upload --repo birds --path ./birds --message "tables only" --name-filter '\\.csv$'
  datamon bundle upload --repo birds --path gs://field-data/birds --message "from the field"
  datamon bundle upload --repo birds --path 's3://field-data/birds?region=eu-central-1' --message "from the field"`,
    )
    .action(async (options: UploadFlags & OutputOptions) => {
      const { countTree, parseFileList, uploadTree } = await import("../fs/transfer/index.ts");
      const path = folderOf(options);
      const files = options.files === undefined ? undefined : parseFileList(await readListFile(options.files));
      const filter = filterOf(options);
      await checkNewLabel(options.label);
      const context = await openConfiguredContext();
      const progress = await Progress.start("Uploading");
      if (filter === undefined && files === undefined && !isBucketUrl(path))
        progress.expect((signal) => countTree(path, signal));
      try {
        const result = await uploadTree(context, {
          repo: options.repo,
          path,
          message: options.message,
          label: options.label,
          files,
          filter,
          skipOnError: options.skipOnError,
          concurrency: options.concurrencyFactor,
          ...localState(context),
          signal: interruptSignal(),
          onProgress: (state) => progress.update(state),
          onWarning: (line) => progress.warn(line),
        });
        progress.stop();
        const { stats, failed } = result;
        const left = failed === 0 ? "" : `; left out ${plural(failed, "entry", "entries")}`;
        say(`Uploaded ${progress.summary()}; ${formatBytes(stats.bytesPut)} new in the store${left}`);
        if (options.label !== undefined) say(`set label '${options.label}'`);
        if (options.output === "json") {
          const { storeRequests } = await import("../fs/index.ts");
          const stores = storeRequests(context.requests);
          printJson({ ...result.bundle, failed, skipped: result.skipped, stats, stores });
        } else printLine(`Uploaded bundle id:${result.bundle.id}`);
      } finally {
        progress.stop();
      }
    });
}

interface UploadFlags {
  repo: string;
  path?: string;
  folder?: string;
  message: string;
  label?: string;
  files?: string;
  nameFilter?: string;
  skipOnError?: boolean;
  concurrencyFactor?: number;
}

/** `datamon bundle download` and `download file`. */
export function registerDownload(bundle: Command): void {
  const download = withBundleSelector(bundle.command("download"))
    .description("write a bundle's files into a folder that is empty or missing")
    .requiredOption("--destination <dir>", "the folder")
    .option("--name-filter <regexp>", "download only paths that match")
    .option("--force-dest", "into a folder that is not empty: replace what is in the way, keep the rest")
    .option("--concurrency-factor <number>", "objects to get at once", wholeNumber(1))
    .addHelpText("after", "\nExample:\n  datamon bundle download --repo birds --label v1 --destination ./birds-v1")
    .action(async (options: DownloadFlags & { nameFilter?: string }) => {
      const { downloadBundle } = await import("../fs/transfer/index.ts");
      const filter = filterOf(options);
      await transfer("Downloading", options, async (context, found, parts) => {
        return await downloadBundle(context, { bundle: found, filter, ...transferFlags(options), ...parts });
      });
    });

  withBundleSelector(download.command("file"))
    .description("download one file")
    .requiredOption("--file <path>", "its path in the bundle")
    .requiredOption("--destination <dir>", "the folder below which it gets the same path")
    .option("--force-dest", "replace a file that is there")
    .addHelpText(
      "after",
      "\nExample:\n  datamon bundle download file --repo birds --file 2019/counts.csv --destination /tmp",
    )
    .action(async (options: DownloadFlags & { file: string }) => {
      const { downloadFile } = await import("../fs/transfer/index.ts");
      await transfer("Downloading", options, async (context, found, parts) => {
        return await downloadFile(context, {
          bundle: found,
          file: bytesOf(options.file),
          ...transferFlags(options),
          ...parts,
        });
      });
    });
}

interface DownloadFlags extends BundleSelector {
  destination: string;
  forceDest?: boolean;
  concurrencyFactor?: number;
}

/** `datamon bundle diff`. */
export function registerDiff(bundle: Command): void {
  withOutput(withBundleSelector(bundle.command("diff")))
    .description("compare a folder, or another bundle, with a bundle by content")
    .option("--destination <dir>", "the folder to compare")
    .option("--folder <dir>", "the same as --destination")
    .option("--path <dir>", "the same as --destination")
    .option("--to <label or id>", "compare with this bundle of the repo instead of a folder")
    .option("--exit-code", "exit with 1 where something differs, as git does")
    .addHelpText(
      "after",
      `
Lines: A (only the bundle has it), D (only the folder has it) or U (both have it, different), then
  name , remoteSize , remoteHash , localSize , localHash
With --to, the bundle of --to stands on the remote side.

Examples:
  datamon bundle diff --repo birds --label v1 --destination ./birds-v1
  datamon bundle diff --repo birds --label v1 --to v2 --exit-code`,
    )
    .action(async (options: DiffFlags & OutputOptions) => {
      const { resolveBundle } = await import("../meta/index.ts");
      const directory = options.destination ?? options.folder ?? options.path;
      if ((directory === undefined) === (options.to === undefined)) {
        throw new DatamonError("usage", "diff compares a bundle with a folder or with another bundle", {
          hint: "Give either --destination DIR or --to LABEL-OR-ID.",
        });
      }
      const context = await openConfiguredContext();
      const found = await resolveBundle(context, options.repo, options);
      let differs = false;
      const notice = async function* () {
        for await (const entry of differences(context, found, directory, options.to)) {
          differs = true;
          yield entry;
        }
      };
      await printList(notice(), options, diffLine, diffJson);
      if (differs && options.exitCode === true) process.exitCode = 1;
    });
}

interface DiffFlags extends BundleSelector {
  destination?: string;
  folder?: string;
  path?: string;
  to?: string;
  exitCode?: boolean;
}

async function* differences(
  context: Context,
  bundle: Bundle,
  directory: string | undefined,
  to: string | undefined,
): AsyncGenerator<DiffEntry> {
  const { diffBundles, diffTree } = await import("../fs/transfer/index.ts");
  if (directory !== undefined) {
    yield* diffTree(context, { bundle, directory, ...localState(context), signal: interruptSignal() });
  } else if (to !== undefined) {
    const { resolveBundle } = await import("../meta/index.ts");
    const other = await resolveBundle(context, bundle.repo, await labelOrBundle(context, bundle.repo, to));
    yield* diffBundles(context, { from: bundle, to: other, cacheDirectory: cacheDirectoryOf(context.config.cache) });
  }
}

/** `datamon bundle update`. */
export function registerUpdate(bundle: Command): void {
  withBundleSelector(bundle.command("update"))
    .description("bring a downloaded folder to a bundle, touching only what differs")
    .requiredOption("--destination <dir>", "the folder")
    .option("--force", "overwrite local edits")
    .addHelpText("after", "\nExample:\n  datamon bundle update --repo birds --label v2 --destination ./birds")
    .action(async (options: BundleSelector & { destination: string; force?: boolean }) => {
      const { updateTree } = await import("../fs/transfer/index.ts");
      await transfer("Updating", options, async (context, found, parts) => {
        const { destination: directory, force } = options;
        const { stateFile } = localState(context);
        const result = await updateTree(context, { bundle: found, directory, force, stateFile, ...parts });
        const kept = result.kept === 0 ? "" : `, left ${plural(result.kept, "file")} that no bundle put there`;
        say(`wrote ${plural(result.written, "file")}, removed ${result.removed}${kept}`);
        return result;
      });
    });
}

/** What every transfer gets besides its own flags. */
interface TransferEnvironment {
  cacheDirectory: string;
  signal: AbortSignal;
  onProgress(state: { files: number; bytes: number; totalFiles: number; totalBytes: number }): void;
  onWarning(line: string): void;
}

/** Resolves the bundle, says which it is, and runs `work` with a progress line. */
async function transfer(
  verb: string,
  selector: BundleSelector,
  work: (context: Context, bundle: Bundle, environment: TransferEnvironment) => Promise<unknown>,
): Promise<void> {
  const { resolveBundle } = await import("../meta/index.ts");
  const context = await openConfiguredContext();
  const found = await resolveBundle(context, selector.repo, selector);
  printLine(`Using bundle: ${found.id}`);
  const progress = await Progress.start(verb);
  try {
    await work(context, found, {
      cacheDirectory: cacheDirectoryOf(context.config.cache),
      signal: interruptSignal(),
      onProgress: (state) => progress.update(state),
      onWarning: (line) => progress.warn(line),
    });
    progress.stop();
    say(`${verb} done: ${progress.summary()}`);
  } finally {
    progress.stop();
  }
}

function transferFlags({ destination, forceDest, concurrencyFactor }: DownloadFlags) {
  return { destination, forceDest, concurrency: concurrencyFactor };
}

function folderOf({ path, folder }: { path?: string; folder?: string }): string {
  const given = path ?? folder;
  if (given === undefined) throw new DatamonError("usage", "upload needs the folder", { hint: "Give --path DIR." });
  return given;
}

function filterOf({ nameFilter }: { nameFilter?: string }): RegExp | undefined {
  if (nameFilter === undefined) return undefined;
  try {
    return new RegExp(nameFilter, "u");
  } catch (error) {
    throw new DatamonError("usage", `--name-filter ${nameFilter} is not a regular expression`, { cause: error });
  }
}

async function readListFile(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw ioError(`read the file list ${file}`, error);
  }
}

function diffLine({ kind, path, remote, local }: DiffEntry): string {
  return `${kind} , ${display(path)} , ${sideText(remote)} , ${sideText(local)}`;
}

function sideText(side: DiffSide | undefined): string {
  return side === undefined ? " , " : `${side.size} , ${side.hash ?? ""}`;
}

function diffJson({ kind, path, remote, local }: DiffEntry): unknown {
  return { kind, name: jsonName(path), remote: remote ?? null, local: local ?? null };
}
