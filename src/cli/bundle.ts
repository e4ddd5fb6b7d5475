import { constants } from "node:fs";
import type { Command } from "commander";
import { type ByteString, display } from "../cas/index.ts";
import type { Bundle, Context, Inode } from "../meta/index.ts";
import { type BundleSelector, cacheDirectoryOf, openConfiguredContext, withBundleSelector } from "./context.ts";
import { type MountFlags, mountBundle, type NewBundleFlags, withMountFlags, withScratchFlags } from "./mount.ts";
import { formatTime, jsonName, type OutputOptions, printJson, printLine, printList, withOutput } from "./output.ts";
import { registerDiff, registerDownload, registerUpdate, registerUpload } from "./transfer.ts";

/** `datamon bundle …`. */
export function registerBundle(program: Command): void {
  const bundle = program.command("bundle").description("versions of a repo");
  registerUpload(bundle);
  registerList(bundle);
  registerGet(bundle);
  registerDownload(bundle);
  registerDiff(bundle);
  registerUpdate(bundle);
  registerBundleMount(bundle);
}

function registerList(bundle: Command): void {
  const list = withOutput(bundle.command("list"))
    .description("list the bundles of a repo, oldest first: id , time , message")
    .requiredOption("--repo <name>", "the repo")
    .addHelpText(
      "after",
      "\nExamples:\n  datamon bundle list --repo birds\n  datamon bundle list files --repo birds --label v1",
    )
    .action(async (options: OutputOptions & { repo: string }) => {
      const { listBundles } = await import("../meta/index.ts");
      await printList(listBundles(await openConfiguredContext(), options.repo), options, bundleLine);
    });

  withOutput(withBundleSelector(list.command("files")))
    .description("list what a bundle holds: its files and symbolic links, with size and hash")
    .option("--prefix <path>", "only paths that begin so")
    .addHelpText("after", "\nExample:\n  datamon bundle list files --repo birds --label v1 -o json")
    .action(async (options: OutputOptions & BundleSelector & { prefix?: string }) => {
      const { resolveBundle } = await import("../meta/index.ts");
      const context = await openConfiguredContext();
      const found = await resolveBundle(context, options.repo, options);
      if (options.output === "text") printLine(`Using bundle: ${found.id}`);
      await printList(contentsOf(context, found, options.prefix), options, entryLine, entryJson);
    });
}

function registerGet(bundle: Command): void {
  withOutput(withBundleSelector(bundle.command("get")))
    .description("print one bundle; exit status 2 where it is not there")
    .addHelpText("after", "\nExample:\n  datamon bundle get --repo birds --label v1 -o json")
    .action(async (options: OutputOptions & BundleSelector) => {
      const { resolveBundle } = await import("../meta/index.ts");
      const found = await resolveBundle(await openConfiguredContext(), options.repo, options);
      if (options.output === "json") printJson(found);
      else printLine(bundleLine(found));
    });
}

function registerBundleMount(bundle: Command): void {
  const mount = withMountFlags(withBundleSelector(bundle.command("mount")))
    .description("mount a bundle read-only, in the foreground unless --daemonize is given")
    .requiredOption("--mount <dir>", "where: an empty directory, made where it is missing")
    .option("--destination <dir>", "directory for cached data, like --cache-dir")
    .option("--stream [boolean]", "accepted for compatibility: content is always streamed")
    .option("--daemonize", "in the background, once the mount answers")
    .addHelpText(
      "after",
      "\nExamples:\n  datamon bundle mount --repo birds --label v1 --mount /mnt/birds --daemonize\n  datamon bundle mount new --repo birds --message counted --mount /mnt/new",
    )
    .action(async (options: BundleMountFlags & BundleSelector) => {
      const { repo, bundle: id, label, mount: directory } = options;
      const flags = { ...mountFlagsOf(options), label: undefined };
      await mountBundle(
        { repo, selector: { bundle: id, label }, directory, rw: false, flags },
        options.daemonize !== true,
      );
    });

  withScratchFlags(withMountFlags(mount.command("new")))
    .description("mount an empty directory whose files become a new bundle when it is unmounted")
    .requiredOption("--repo <name>", "the repo")
    .requiredOption("--mount <dir>", "where: an empty directory, made where it is missing")
    .requiredOption("--message <text>", "what the new bundle says of itself")
    .option("--label <name>", "a label for the new bundle")
    .option("--destination <dir>", "directory for cached data, like --cache-dir")
    .option("--daemonize", "in the background, once the mount answers")
    .addHelpText(
      "after",
      "\nExample:\n  datamon bundle mount new --repo birds --message counted --mount /mnt/new --daemonize",
    )
    .action(async (options: BundleMountFlags & { repo: string }) => {
      const { repo, mount: directory } = options;
      const request = { repo, directory, rw: true, empty: true, flags: mountFlagsOf(options) };
      await mountBundle(request, options.daemonize !== true);
    });
}

interface BundleMountFlags extends MountFlags, NewBundleFlags {
  mount: string;
  destination?: string;
  daemonize?: boolean;
}

function mountFlagsOf(options: BundleMountFlags): MountFlags & NewBundleFlags {
  return { ...options, cacheDir: options.cacheDir ?? options.destination };
}

/** An entry of a bundle as it is listed. */
interface ListedEntry {
  path: ByteString;
  inode: Inode;
}

/** The files and symbolic links of a bundle, in path order. */
async function* contentsOf(context: Context, bundle: Bundle, prefix = ""): AsyncGenerator<ListedEntry> {
  const { openBundleCatalog } = await import("../fs/index.ts");
  const catalog = await openBundleCatalog(context, bundle, cacheDirectoryOf(context.config.cache));
  try {
    for (const { path, inode } of catalog.walk()) {
      if (!isDirectory(inode) && display(path).startsWith(prefix)) yield { path, inode };
    }
  } finally {
    catalog.close();
  }
}

function isDirectory(inode: Inode): boolean {
  return (inode.mode & constants.S_IFMT) === constants.S_IFDIR;
}

function entryLine({ path, inode }: ListedEntry): string {
  return `name:${display(path)}, size:${inode.size}, hash:${inode.hash ?? ""}`;
}

function entryJson({ path, inode }: ListedEntry): unknown {
  const { mode, size, mtimeNs, hash, target } = inode;
  return {
    name: jsonName(path),
    size,
    hash,
    mode: mode.toString(8),
    mtime: mtimeNs,
    target: target === undefined ? undefined : jsonName(target),
  };
}

function bundleLine(bundle: Bundle): string {
  return `${bundle.id} , ${formatTime(bundle.timestamp)} , ${bundle.message}`;
}
