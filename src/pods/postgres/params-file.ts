import { readFile } from "node:fs/promises";
import { parse } from "yaml";
import * as z from "zod/mini";
import { DatamonError, ioError, isErrno } from "../../cas/index.ts";

/** The keys of a sidecar's YAML file, by section. */
const SECTIONS = {
  globalOpts: ["coordPoint", "sleepInsteadOfExit", "ignoreVersion", "pollInterval", "sleepTimeout"],
  database: [
    "name",
    "dataDir",
    "pgPort",
    "srcRepo",
    "srcBundle",
    "srcLabel",
    "destRepo",
    "destLabel",
    "destMessage",
    "owner",
    "stream",
  ],
} as const;

type Section = keyof typeof SECTIONS;

const scalar = z.nullable(z.union([z.string(), z.number(), z.boolean()]));
const section = z.nullish(z.record(z.string(), scalar));
const fileSchema = z.strictObject({ globalOpts: section, database: section });

/**
 * The sections of a YAML file with what `SIDECAR_<SECTION>_<KEY>` overrides, such as
 * `SIDECAR_DATABASE_PGPORT`; undefined where there is neither the file nor such a variable. Empty values
 * count as not given. Throws "usage" for a file that makes no sense.
 */
export async function readSections(
  file: string,
  env: NodeJS.ProcessEnv,
): Promise<Record<Section, Map<string, string>> | undefined> {
  const text = await readIfThere(file);
  const written = text === undefined ? {} : parseFile(file, text);
  let given = text !== undefined;
  const sectionOf = (name: Section): Map<string, string> => {
    const entries = new Map<string, string>();
    for (const [key, value] of Object.entries(written[name] ?? {})) {
      if (value !== null && value !== "") entries.set(key, String(value));
    }
    for (const key of SECTIONS[name]) {
      const value = env[`SIDECAR_${name.toUpperCase()}_${key.toUpperCase()}`];
      if (value === undefined) continue;
      given = true;
      if (value === "") entries.delete(key);
      else entries.set(key, value);
    }
    return entries;
  };
  const sections = { globalOpts: sectionOf("globalOpts"), database: sectionOf("database") };
  return given ? sections : undefined;
}

async function readIfThere(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    if (isErrno(error, "ENOENT", "ENOTDIR")) return undefined;
    throw ioError(`read the sidecar's parameters ${file}`, error);
  }
}

function parseFile(file: string, text: string): z.infer<typeof fileSchema> {
  let document: unknown;
  try {
    document = parse(text) ?? {};
  } catch (error) {
    throw senseless(file, (error as Error).message);
  }
  const parsed = fileSchema.safeParse(document);
  if (parsed.success) return parsed.data;
  throw senseless(file, parsed.error.issues.map(explain).join("; "));
}

function explain(issue: z.core.$ZodIssue): string {
  const where = issue.path.length === 0 ? "the document" : issue.path.join(".");
  return issue.code === "unrecognized_keys"
    ? `${where} has the unknown key ${issue.keys.join(", ")}`
    : `${where} is of the wrong kind`;
}

function senseless(file: string, why: string): DatamonError {
  return new DatamonError("usage", `the sidecar's parameters ${file} make no sense: ${why}`, {
    hint: "docs/pods.md lists what the file may say.",
  });
}
