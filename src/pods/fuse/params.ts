import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parse } from "yaml";
import * as z from "zod/mini";
import { DatamonError, ioError } from "../../cas/index.ts";

const text = z.string().check(z.minLength(1));

const bundleSchema = z.strictObject({
  name: z.optional(text),
  srcPath: z.optional(text),
  srcRepo: z.optional(text),
  srcLabel: z.optional(text),
  srcBundle: z.optional(text),
  destPath: z.optional(text),
  destRepo: z.optional(text),
  destMessage: z.optional(text),
  destLabel: z.optional(text),
  destBundleID: z.optional(text),
});

const paramsSchema = z.strictObject({
  globalOpts: z.strictObject({
    coordPoint: text,
    sleepInsteadOfExit: z.optional(z.boolean()),
    /** Of no use here: the configuration file says which stores. */
    configBucketName: z.optional(z.string()),
    contextName: z.optional(z.string()),
    /** Where writable mounts keep their changes until they are committed. */
    scratchDir: z.optional(text),
    /** Who the bundles are by. */
    contributor: z.optional(z.strictObject({ name: text, email: text })),
  }),
  bundles: z.array(bundleSchema).check(z.minLength(1)),
});

type BundleParams = z.infer<typeof bundleSchema>;

/** What a sidecar is asked for in YAML. */
export interface FuseParams {
  readonly directory: string;
  readonly sleep: boolean;
  /** Command lines in words, with the file that gets the id of the bundle that results. */
  readonly commands: { readonly words: string[]; readonly bundleIdFile?: string }[];
}

/**
 * Reads the parameters from a file, or from the text itself.
 *
 * @param source path of a YAML file, or YAML
 * @throws DatamonError "usage" that names each key that is wrong
 */
export function readFuseParams(source: string): FuseParams {
  const isFile = existsSync(source);
  if (!isFile && !source.includes(":")) {
    throw new DatamonError("not-found", `the parameters' file ${source} is not there`);
  }
  const where = isFile ? source : "the fuse parameters";
  let document: unknown;
  try {
    document = parse(isFile ? readFileSync(source, "utf8") : source);
  } catch (error) {
    if (isFile && (error as NodeJS.ErrnoException).syscall !== undefined) throw ioError(`read ${source}`, error);
    throw new DatamonError("usage", `${where}: not YAML: ${(error as Error).message.split("\n")[0]}`);
  }
  const parsed = paramsSchema.safeParse(withoutEmpty(document));
  if (!parsed.success) {
    const wrong = parsed.error.issues.map((issue) => `${pathOf(issue.path)}: ${explain(issue)}`);
    throw new DatamonError("usage", `${where}: ${wrong.join("; ")}`);
  }
  const { globalOpts, bundles } = parsed.data;
  const { contributor, scratchDir } = globalOpts;
  const config =
    contributor === undefined
      ? []
      : [{ words: ["config", "create", "--name", contributor.name, "--email", contributor.email] }];
  const commands = bundles.flatMap((bundle, at) => commandsOf(bundle, `${where}: bundles[${at}]`, scratchDir));
  return {
    directory: globalOpts.coordPoint,
    sleep: globalOpts.sleepInsteadOfExit === true,
    commands: [...config, ...commands],
  };
}

/** Earlier versions wrote keys that say nothing as empty texts. */
function withoutEmpty(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutEmpty);
  if (typeof value !== "object" || value === null) return value;
  const said = Object.entries(value).filter(([, item]) => item !== "" && item !== null);
  return Object.fromEntries(said.map(([key, item]) => [key, withoutEmpty(item)]));
}

function commandsOf(bundle: BundleParams, where: string, scratchDir: string | undefined): FuseParams["commands"] {
  const named = bundle.name === undefined ? where : `${where} (${bundle.name})`;
  const need = (key: keyof BundleParams, why: string): string => {
    const value = bundle[key];
    if (value === undefined) throw new DatamonError("usage", `${named}.${key}: missing; ${why}`);
    return value;
  };
  const { srcPath, srcLabel, srcBundle, destPath, destLabel, destBundleID } = bundle;
  if (srcPath === undefined && destPath === undefined) {
    throw new DatamonError("usage", `${named}: srcPath or destPath is missing`);
  }
  for (const [side, path] of [
    ["src", srcPath],
    ["dest", destPath],
  ] as const) {
    const stray = Object.keys(bundle).find((key) => key.startsWith(side));
    if (path === undefined && stray !== undefined) need(`${side}Path`, `${stray} is given`);
  }
  if (srcLabel !== undefined && srcBundle !== undefined) {
    throw new DatamonError("usage", `${named}: srcLabel and srcBundle are both given; one says which bundle`);
  }
  const label = destLabel === undefined ? [] : ["--label", destLabel];
  const id = destBundleID === undefined ? {} : { bundleIdFile: destBundleID };
  if (srcPath !== undefined && destPath !== undefined && resolve(srcPath) === resolve(destPath)) {
    const repo = need("srcRepo", "srcPath is given");
    if ((bundle.destRepo ?? repo) !== repo) {
      throw new DatamonError("usage", `${named}.destRepo: changes to a mounted bundle go to its own repo, ${repo}`);
    }
    const message = need("destMessage", "destPath is given");
    const scratch = scratchDir === undefined ? [] : ["--scratch-dir", scratchDir];
    const reference = srcLabel ?? srcBundle;
    const spec = reference === undefined ? repo : `${repo}@${reference}`;
    return [{ words: ["mount", "--rw", "--message", message, ...label, ...scratch, "--", spec, srcPath], ...id }];
  }
  const commands: { words: string[]; bundleIdFile?: string }[] = [];
  if (srcPath !== undefined) {
    const reference =
      srcLabel !== undefined ? ["--label", srcLabel] : srcBundle !== undefined ? ["--bundle", srcBundle] : [];
    const repo = need("srcRepo", "srcPath is given");
    commands.push({ words: ["bundle", "mount", "--repo", repo, ...reference, "--mount", srcPath] });
  }
  if (destPath !== undefined) {
    const repo = need("destRepo", "destPath is given");
    const message = need("destMessage", "destPath is given");
    commands.push({
      words: ["bundle", "upload", "--repo", repo, "--path", destPath, "--message", message, ...label],
      ...id,
    });
  }
  return commands;
}

function pathOf(path: PropertyKey[]): string {
  if (path.length === 0) return "the document";
  return path
    .map((part) => (typeof part === "number" ? `[${part}]` : `.${String(part)}`))
    .join("")
    .replace(/^\./, "");
}

function explain(issue: z.core.$ZodIssue): string {
  if (issue.code === "unrecognized_keys") return `unknown key ${issue.keys.join(", ")}`;
  if (issue.code === "invalid_type") return `must be ${issue.expected}`;
  return issue.message;
}
