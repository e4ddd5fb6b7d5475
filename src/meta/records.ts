import { parse, stringify } from "yaml";
import * as z from "zod/mini";
import { DamagedObjectError, DatamonError, type ObjectStore, readCopy } from "../cas/index.ts";
import { isBundleId } from "./bundle-id.ts";
import type { Bundle } from "./bundles.ts";
import type { ConfigValues } from "./config.ts";
import type { Contributor } from "./context.ts";
import type { Repo } from "./repos.ts";

/**
 * The YAML records of the metadata store and the configuration file. This module is imported when a
 * record is read or written, not before: the libraries behind it take longer to load than a short
 * command takes to run.
 */

/** A record of one kind: how it is written, and how it is read by what its schema allows. */
export interface RecordForm<T> {
  /** The record's bytes. Throws `usage` where it would be too long. */
  encode(value: T): Buffer;
  /** Throws an `Error` that says what is wrong, or `unsupported` where a later version wrote it. */
  decode(bytes: Uint8Array): T;
}

/** An entry of a ref's log. */
export interface RefRecord {
  /** What the ref names from here on; null where it was deleted. */
  bundle: string | null;
  timestamp: Date;
  contributor: Contributor;
}

/** Far beyond any record, far below what would be a burden. */
const MAX_RECORD_SIZE = 1024 * 1024;

const timestamp = z.codec(z.iso.datetime(), z.date(), {
  decode: (text) => new Date(text),
  encode: (date) => date.toISOString(),
});
const count = z.int().check(z.nonnegative());
const hash = z.string().check(z.regex(/^[0-9a-f]{64}$/));
const bundleId = z.string().check(z.refine(isBundleId));
const contributor = z.strictObject({ name: z.string(), email: z.string() });

/** `repos/<repo>/repo.yaml` */
export const repoRecord: RecordForm<Repo> = recordForm(
  "repo",
  z.strictObject({
    kind: z.literal("repo"),
    version: z.literal(1),
    name: z.string(),
    description: z.string(),
    timestamp,
    contributor,
  }),
);

/** `bundles/<repo>/<id>.yaml` */
export const bundleRecord: RecordForm<Bundle> = recordForm(
  "bundle",
  z.strictObject({
    kind: z.literal("bundle"),
    version: z.literal(1),
    id: bundleId,
    repo: z.string(),
    message: z.string(),
    parents: z.array(bundleId),
    timestamp,
    contributors: z.array(contributor),
    catalog: hash,
    tree: hash,
    files: count,
    bytes: count,
  }),
);

/** `refs/<repo>/labels/<label>/<number>.yaml` */
export const refRecord: RecordForm<RefRecord> = recordForm(
  "ref",
  z.strictObject({
    kind: z.literal("ref"),
    version: z.literal(1),
    bundle: z.nullable(bundleId),
    timestamp,
    contributor,
  }),
);

const stores = z.union([z.string(), z.array(z.string())]);

const configSchema = z.strictObject({
  metadata: z.optional(stores),
  blob: z.optional(stores),
  copies: z.optional(z.int().check(z.positive())),
  email: z.optional(z.string()),
  name: z.optional(z.string()),
  credential: z.optional(z.string()),
  cache: z.optional(z.string()),
});

/**
 * Reads the record at `key`, from a store that has it right where there are several. Throws `DamagedObjectError` for one that is damaged, something else, or
 * of which `verify` throws that it does not belong there.
 */
export async function readRecord<T>(
  store: ObjectStore,
  key: string,
  form: RecordForm<T>,
  verify?: (value: T) => void,
): Promise<T> {
  return await readCopy(store, async (copy, signal) => {
    const bytes = await getRecord(copy, key, signal);
    try {
      const value = form.decode(bytes);
      verify?.(value);
      return value;
    } catch (error) {
      const why = (error as Error).message;
      if (error instanceof DatamonError) {
        throw new DatamonError(error.code, `object ${key} in ${copy.url}: ${why}`, { hint: error.hint, cause: error });
      }
      throw new DamagedObjectError(copy.url, key, why, error);
    }
  });
}

/** The bytes of the record at `key` in this store alone, and one more of what is too long for one. */
export async function getRecord(store: ObjectStore, key: string, signal?: AbortSignal): Promise<Buffer> {
  return await store.get(key, { offset: 0, length: MAX_RECORD_SIZE + 1 }, signal === undefined ? {} : { signal });
}

/** The values of a configuration file's text. Throws an `Error` that says what is wrong with which key. */
export function decodeConfig(text: string): ConfigValues {
  return check(configSchema, parseYaml(text) ?? {});
}

/** A configuration file's text. */
export function encodeConfig(values: ConfigValues): string {
  return writeYaml(values);
}

type Shape<T> = z.ZodMiniType<{ kind: string; version: number } & T, unknown>;

function recordForm<T extends object>(kind: string, schema: Shape<T>): RecordForm<T> {
  return {
    encode(value) {
      const record = z.encode(schema, { ...value, kind, version: 1 });
      const bytes = Buffer.from(writeYaml(record));
      if (bytes.length > MAX_RECORD_SIZE) throw new DatamonError("usage", `the ${kind}'s record would be too long`);
      return bytes;
    },
    decode(bytes) {
      if (bytes.length > MAX_RECORD_SIZE) throw new Error("it is too long for a record");
      const record = parseYaml(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
      checkKind(record, kind);
      const { kind: _kind, version: _version, ...value } = check(schema, record);
      return value as unknown as T;
    },
  };
}

function checkKind(record: unknown, kind: string): void {
  const found = record as { kind?: unknown; version?: unknown } | null;
  if (typeof found !== "object" || found?.kind !== kind) throw new Error(`it is not a ${kind} record of Datamon`);
  if (typeof found.version === "number" && found.version > 1) {
    throw new DatamonError("unsupported", `it is a ${kind} record of version ${found.version}, this Datamon reads 1`, {
      hint: "Use a newer version of Datamon.",
    });
  }
}

function parseYaml(text: string): unknown {
  try {
    return parse(text);
  } catch (error) {
    const [why] = (error as Error).message.split("\n");
    throw new Error(`it is not valid YAML: ${why}`, { cause: error });
  }
}

function writeYaml(value: unknown): string {
  return stringify(value, { lineWidth: 0 });
}

function check<T>(schema: z.ZodMiniType<T>, value: unknown): T {
  const result = z.safeParse(schema, value);
  if (result.success) return result.data;
  throw new Error(result.error.issues.map(explain).join("; "));
}

function explain(issue: z.core.$ZodIssue): string {
  const place = issue.path.length === 0 ? "" : `${issue.path.join(".")}: `;
  switch (issue.code) {
    case "unrecognized_keys":
      return `${place}unknown ${issue.keys.length > 1 ? "keys" : "key"} ${issue.keys.join(", ")}`;
    case "invalid_type":
      return `${place}must be ${issue.expected === "object" ? "a mapping of keys to values" : `of type ${issue.expected}`}`;
    case "invalid_union":
      return `${place}must be a text or a list of texts`;
    case "invalid_format":
      return `${place}has the wrong form`;
    default:
      return `${place}is not valid`;
  }
}
