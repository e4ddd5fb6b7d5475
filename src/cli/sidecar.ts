import { join } from "node:path";
import { type Command, CommanderError } from "commander";
import { DatamonError } from "../cas/index.ts";
import type { FusePlan, SidecarCommand, SidecarKind } from "../pods/index.ts";
import { homeDirectory, wholeNumber } from "./context.ts";
import { registerPostgres } from "./sidecar-postgres.ts";

/** `datamon sidecar …`. */
export function registerSidecar(program: Command): void {
  const sidecar = program.command("sidecar").description("what runs beside an application in a pod");
  registerFuse(sidecar);
  registerPostgres(sidecar);
  registerWrap(sidecar);
}

/** Adds the flags that every sidecar takes. */
export function withSidecarFlags(command: Command): Command {
  return command
    .option("-s, --sleep", "sleep until a signal comes instead of ending, to look around")
    .option("--timeout <seconds>", "how long the application may be silent; 0: for ever (default: 60)", wholeNumber(0));
}

interface FuseFlags {
  coordination?: string;
  datamon: string[];
  bundleId?: string;
  params?: string;
  sleep?: boolean;
  timeout?: number;
  grace?: number;
}

function registerFuse(sidecar: Command): void {
  withSidecarFlags(sidecar.command("fuse"))
    .description("mount bundles for the application beside, and make bundles of its results")
    .option("-c, --coordination <dir>", "the directory that is shared with the application's wrapper")
    .option(
      "-d, --datamon <command>",
      "a config, bundle mount, bundle upload or mount command; repeatable",
      collect,
      [],
    )
    .option("-i, --bundle-id <file>", "write the id of the one bundle that results there")
    .option("--params <yaml>", "instead of -c and -d: a YAML file or its text (default: $dm_fuse_params)")
    .option("--grace <seconds>", "after SIGTERM, wait so long for the application's word (default: 20)", wholeNumber(0))
    .addHelpText(
      "after",
      `
Order: config; all mounts at once; mountdone; wait for initupload; unmount; commit writable mounts; uploads in
turn; the id; uploaddone. A command's words are quoted as in a shell. A writable mount (mount --rw, or bundle
mount new) is a destination: its changes become a bundle. What could not be saved is kept, and the log
says where.

Examples:
  datamon sidecar fuse -c /coord -d 'config create --name "Ada" --email ada@example.org' \\
    -d 'bundle mount --repo birds --label v1 --mount /mnt/birds' \\
    -d 'bundle upload --repo counts --path /results --message "counted" --label v1' -i /results/bundle-id
  datamon sidecar fuse -c /coord -d 'mount --rw --message "cleaned" --label v2 birds@v1 /mnt/birds'
  datamon sidecar fuse --params /config/fuse.yaml`,
    )
    .action(async (flags: FuseFlags) => {
      const { runFuseSidecar } = await import("../pods/index.ts");
      const { directory, plan, sleep } = await tellingOf(flags.coordination, "fuse", requestOf(flags));
      const { timeout, grace } = flags;
      process.exitCode = await runFuseSidecar({ directory, plan, sleep, timeout, grace, home: homeDirectory() });
    });
}

function registerWrap(sidecar: Command): void {
  sidecar
    .command("wrap")
    .description("run an application beside sidecars: the same as wrap_application.sh, which needs only a shell")
    .usage("-c <dir> [-b fuse|postgres]… [-d <databases>] [--] <application> [args…]")
    .argument("[args...]")
    .allowUnknownOption()
    .passThroughOptions()
    .addHelpText("after", "\nExample:\n  datamon sidecar wrap -c /coord -b fuse -- python3 count.py /mnt/birds")
    .action((args: string[]) => {
      const script = join(import.meta.dirname, "..", "..", "scripts", "wrap_application.sh");
      process.execve?.("/bin/sh", ["sh", script, ...args], process.env as Record<string, string>);
      throw new DatamonError("unsupported", "this system cannot replace a process by another", {
        hint: `Run ${script} itself.`,
      });
    });
}

/** Has the application told where the sidecar's own parameters are wrong, for it would wait in vain. */
export async function tellingOf<T>(directory: string | undefined, kind: SidecarKind, request: Promise<T>): Promise<T> {
  try {
    return await request;
  } catch (error) {
    if (directory !== undefined && error instanceof DatamonError) {
      const { Coordination, logOf } = await import("../pods/index.ts");
      const coordination = await Coordination.open({ directory, kind, log: logOf(`${kind} sidecar`) });
      await coordination.fail(error.message);
    }
    throw error;
  }
}

function collect(value: string, before: string[]): string[] {
  return [...before, value];
}

async function requestOf(flags: FuseFlags): Promise<{ directory: string; plan: FusePlan; sleep: boolean }> {
  const { planOf, readFuseParams, splitWords } = await import("../pods/index.ts");
  const source = flags.params ?? (flags.datamon.length === 0 ? process.env.dm_fuse_params : undefined);
  if (source === undefined) {
    if (flags.coordination === undefined)
      throw new DatamonError("usage", "the coordination directory is missing: -c DIR");
    const commands: SidecarCommand[] = [];
    for (const line of flags.datamon) commands.push(await understand(splitWords(line)));
    return { directory: flags.coordination, plan: planOf(commands, flags.bundleId), sleep: flags.sleep === true };
  }
  if (flags.datamon.length > 0 || flags.bundleId !== undefined) {
    throw new DatamonError("usage", "-d and -i do not go with parameters in YAML, which say the same");
  }
  const params = readFuseParams(source);
  const commands: SidecarCommand[] = [];
  for (const { words, bundleIdFile } of params.commands) {
    const command = await understand(words);
    const results = command.kind === "upload" || command.kind === "writable";
    commands.push(results && bundleIdFile !== undefined ? { ...command, bundleIdFile } : command);
  }
  const directory = flags.coordination ?? params.directory;
  return { directory, plan: planOf(commands), sleep: flags.sleep === true || params.sleep };
}

/** What a command line asks a sidecar for. It is checked as the command itself would, before anything is done. */
async function understand(words: string[]): Promise<SidecarCommand> {
  const { buildProgram } = await import("./program.ts");
  let command = buildProgram();
  let depth = 0;
  for (let next: Command | undefined = command; next !== undefined; depth++) {
    command = next;
    next = command.commands.find((child) => child.name() === words[depth]);
  }
  depth -= 1;
  const name = words.slice(0, depth).join(" ");
  const kind = kinds[name];
  if (kind === undefined) {
    throw new DatamonError("usage", `a sidecar does not run: datamon ${words.join(" ")}`, {
      hint: `It runs ${Object.keys(kinds).join(", ")}.`,
    });
  }
  const { options, operands } = parse(command, name, words.slice(depth));
  const background = (flag: string | undefined) => [
    ...words.slice(0, depth),
    ...(flag === undefined || options[flag.slice(2)] === true ? [] : [flag]),
    ...shared(options),
    ...words.slice(depth),
  ];
  const text = (key: string) => options[key] as string;
  const label = options.label as string | undefined;
  if (kind === "config") return { kind, words };
  if (kind === "upload") {
    const directory = text("path") ?? text("folder");
    if (directory === undefined) throw new DatamonError("usage", `${name}: --path is missing`);
    return { kind, words, directory };
  }
  if (kind === "source") return { kind, words: background("--daemonize"), directory: text("mount") };
  if (kind === "new") {
    return { kind: "writable", words: background("--daemonize"), directory: text("mount"), repo: text("repo"), label };
  }
  const [spec, directory] = operands;
  if (spec === undefined || directory === undefined || options.resume !== undefined || options.foreground === true) {
    throw new DatamonError(
      "usage",
      "mount: in a sidecar it takes a bundle and a directory, and no --resume or --foreground",
    );
  }
  if (options.rw !== true) return { kind: "source", words: background(undefined), directory };
  return { kind: "writable", words: background(undefined), directory, repo: spec.split("@")[0] as string, label };
}

const kinds: Record<string, "config" | "source" | "new" | "mount" | "upload"> = {
  "config create": "config",
  "bundle mount": "source",
  "bundle mount new": "new",
  mount: "mount",
  "bundle upload": "upload",
};

/**
 * The application runs in another container and often as another user, who is to use the mount all the same: it
 * is the pod that bounds who sees it. Anybody but root needs leave for this in fuse.conf.
 */
function shared(options: Record<string, unknown>): string[] {
  return process.getuid?.() === 0 && options.allowOther !== true && options.allowAll !== true ? ["--allow-all"] : [];
}

function parse(
  command: Command,
  name: string,
  args: string[],
): { options: Record<string, unknown>; operands: string[] } {
  command.exitOverride().configureOutput({ writeErr: () => {} });
  try {
    const { operands, unknown } = command.parseOptions(args);
    if (unknown.length > 0) throw new DatamonError("usage", `${name}: unknown option ${unknown[0]}`);
    const extra = operands[command.registeredArguments.length];
    if (extra !== undefined) throw new DatamonError("usage", `${name}: one word too many: ${extra}`);
    const options: Record<string, unknown> = command.opts();
    const missing = command.options.find((option) => option.mandatory && options[option.attributeName()] === undefined);
    if (missing !== undefined) throw new DatamonError("usage", `${name}: ${missing.long} is missing`);
    return { options, operands };
  } catch (error) {
    if (error instanceof CommanderError)
      throw new DatamonError("usage", `${name}: ${error.message.replace(/^error: /, "")}`);
    throw error;
  }
}
