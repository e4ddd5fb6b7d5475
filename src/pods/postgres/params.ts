import { DatamonError } from "../../cas/index.ts";

/** One PostgreSQL server: where its data directory comes from, and what becomes of it. */
export interface DatabaseParams {
  /** Names it in logs, in the coordination directory and below the directory of data directories. */
  id: string;
  /** Port on 127.0.0.1. */
  port: number;
  /** The bundle to start from, the newest where neither is given; without a source, a fresh database. */
  source?: { repo: string; bundle?: string; label?: string };
  /** Where it is saved; without a destination it is discarded. */
  destination?: { repo: string; message: string; label?: string };
  /** Run on a writable mount of the source instead of a download of it. */
  stream: boolean;
  /** A superuser that a fresh database has besides `postgres`. */
  owner?: string;
}

/** What a PostgreSQL sidecar is to do. */
export interface PostgresParams {
  /** The coordination directory. */
  coordination: string;
  /** Start a fresh database where the bundle is of another major version. */
  ignoreVersion: boolean;
  /** Sleep at the end instead of exiting. */
  sleep: boolean;
  /** Directory for the data directories, one for each database. */
  dataRoot?: string;
  databases: DatabaseParams[];
}

const OPTIONS = "dm_pg_opts";
const DATABASE = "dm_pg_db_";
const DEFAULT_FILE = "/config/pgparams.yaml";
const DEFAULT_COORDINATION = "/tmp/coord";
/** An entry without a value. */
const TRUE = "true";

/**
 * What the environment asks for: `dm_pg_opts` with one `dm_pg_db_<id>` for each database, or else the YAML
 * file that `SIDECAR_CONFIG` names (default: /config/pgparams.yaml) and the `SIDECAR_<SECTION>_<KEY>`
 * variables that override it. Throws "usage" with the name of the variable or key that makes no sense.
 *
 * @param stream whether every database with a source is streamed, whatever is said of each
 */
export async function postgresParams(env: NodeJS.ProcessEnv, stream = false): Promise<PostgresParams> {
  const params = env[OPTIONS] === undefined ? await fromYaml(env) : fromVariables(env[OPTIONS], env);
  const ports = new Map<number, string>();
  for (const one of params.databases) {
    const { id, port } = one;
    if (stream && one.source !== undefined) one.stream = true;
    checkStream(id, one);
    const other = ports.get(port);
    if (other !== undefined) throw new DatamonError("usage", `databases ${other} and ${id} have the same port ${port}`);
    ports.set(port, id);
  }
  return params;
}

/** The coordination directory that the environment names, however wrong the rest of it is; undefined where it names none. */
export async function coordinationOf(env: NodeJS.ProcessEnv): Promise<string | undefined> {
  try {
    if (env[OPTIONS] !== undefined) return parseEntries(env[OPTIONS], OPTIONS).get("c");
    const { sections } = await sectionsOf(env);
    return sections && (sections.globalOpts.get("coordPoint") ?? DEFAULT_COORDINATION);
  } catch {
    return undefined;
  }
}

/**
 * Reads `<entry separator><key-value separator><entry><entry separator><entry>…`, where an entry is `key`,
 * which stands for `key` with the value `true`, or `key<key-value separator>value`. Neither separator
 * may be `.`. Throws "usage".
 *
 * @param name the variable, for messages
 */
export function parseEntries(text: string, name: string): Map<string, string> {
  const [between, assign, ...rest] = [...text];
  if (between === undefined || assign === undefined || between === "." || assign === "." || between === assign) {
    throw senseless(
      name,
      "it has to begin with two different separators, of which none is a dot, as in ;:p:5432;r:birds",
    );
  }
  const entries = new Map<string, string>();
  for (const entry of rest.join("").split(between)) {
    if (entry === "") continue;
    const at = entry.indexOf(assign);
    const key = at === -1 ? entry : entry.slice(0, at);
    if (entries.has(key)) throw senseless(name, `${key} is given twice`);
    entries.set(key, at === -1 ? TRUE : entry.slice(at + assign.length));
  }
  return entries;
}

function fromVariables(options: string, env: NodeJS.ProcessEnv): PostgresParams {
  const global = taker(parseEntries(options, OPTIONS), OPTIONS);
  const coordination = global.required("c", "the coordination directory");
  const ignoreVersion = global.flag("V");
  const sleep = global.flag("S");
  const dataRoot = global.optional("d");
  global.end();
  const databases = Object.keys(env)
    .filter((name) => name.startsWith(DATABASE))
    .sort()
    .map((name) => fromVariable(name, env[name] ?? ""));
  if (databases.length === 0) {
    throw new DatamonError("usage", `there is ${OPTIONS}, but no database: no variable ${DATABASE}<id>`);
  }
  return { coordination, ignoreVersion, sleep, ...(dataRoot !== undefined && { dataRoot }), databases };
}

function fromVariable(name: string, text: string): DatabaseParams {
  const take = taker(parseEntries(text, name), name);
  const port = take.required("p", "the port");
  const [repo, message, label] = [take.optional("r"), take.optional("m"), take.optional("l")];
  const [from, bundle, fromLabel] = [take.optional("sr"), take.optional("sb"), take.optional("sl")];
  const stream = take.flag("st");
  take.end();
  if (from !== undefined && (bundle === undefined) === (fromLabel === undefined)) {
    throw senseless(name, "a source repo (sr) needs exactly one of label (sl) and bundle (sb)");
  }
  return database(name, {
    id: name.slice(DATABASE.length),
    port,
    stream,
    destination: { repo, message, label },
    source: { repo: from, bundle, label: fromLabel },
  });
}

async function fromYaml(env: NodeJS.ProcessEnv): Promise<PostgresParams> {
  const { file, sections } = await sectionsOf(env);
  if (sections === undefined) {
    throw new DatamonError("usage", `nothing says which databases to run: there is neither ${OPTIONS} nor ${file}`, {
      hint: `Set ${OPTIONS} and ${DATABASE}<id>, or SIDECAR_CONFIG to a YAML file; docs/pods.md describes both.`,
    });
  }
  const global = taker(sections.globalOpts, `${file}: globalOpts`);
  const coordination = global.optional("coordPoint") ?? DEFAULT_COORDINATION;
  const sleep = global.flag("sleepInsteadOfExit");
  const ignoreVersion = global.flag("ignoreVersion");
  // Of no use here: waiting is not polling, and a sleep ends when the pod does.
  global.optional("pollInterval");
  global.optional("sleepTimeout");
  global.end();
  const where = `${file}: database`;
  const take = taker(sections.database, where);
  const dataRoot = take.optional("dataDir");
  const owner = take.optional("owner");
  const one = database(where, {
    id: take.optional("name") ?? "db",
    port: take.optional("pgPort") ?? "5432",
    stream: take.flag("stream"),
    destination: {
      repo: take.optional("destRepo"),
      message: take.optional("destMessage"),
      label: take.optional("destLabel"),
    },
    source: { repo: take.optional("srcRepo"), bundle: take.optional("srcBundle"), label: take.optional("srcLabel") },
  });
  take.end();
  if (owner !== undefined && owner !== "postgres") one.owner = owner;
  return { coordination, ignoreVersion, sleep, ...(dataRoot !== undefined && { dataRoot }), databases: [one] };
}

async function sectionsOf(env: NodeJS.ProcessEnv) {
  const { readSections } = await import("./params-file.ts");
  const file = env.SIDECAR_CONFIG === undefined || env.SIDECAR_CONFIG === "" ? DEFAULT_FILE : env.SIDECAR_CONFIG;
  return { file, sections: await readSections(file, env) };
}

/** A database as it is written, before anything is checked. */
interface Written {
  id: string;
  port: string;
  stream: boolean;
  destination: Record<"repo" | "message" | "label", string | undefined>;
  source: Record<"repo" | "bundle" | "label", string | undefined>;
}

function database(name: string, { id, port, stream, destination, source }: Written): DatabaseParams {
  if (!/^\w[\w.-]*$/.test(id)) throw senseless(name, `${id} cannot be the name of a directory`);
  if (!/^[1-9]\d{0,4}$/.test(port) || Number(port) > 65535) throw senseless(name, `${port} is not a port`);
  const result: DatabaseParams = { id, port: Number(port), stream };
  if (source.repo !== undefined) {
    const { repo, bundle, label } = source;
    if (bundle !== undefined && label !== undefined) {
      throw senseless(name, "the source is given by its bundle or by a label, not by both");
    }
    result.source = { repo, ...(bundle !== undefined && { bundle }), ...(label !== undefined && { label }) };
  } else if (source.bundle !== undefined || source.label !== undefined) {
    throw senseless(name, "it has a source bundle or label without the source's repo");
  }
  if (destination.repo !== undefined) {
    const { repo, message, label } = destination;
    if (message === undefined) throw senseless(name, `a database that is saved to ${repo} needs a message`);
    result.destination = { repo, message, ...(label !== undefined && { label }) };
  } else if (destination.message !== undefined || destination.label !== undefined) {
    throw senseless(name, "it has a message or a label without a repo to save to");
  }
  return result;
}

/** A mount is committed to the repo that it shows. */
function checkStream(name: string, { stream, source, destination }: DatabaseParams): void {
  if (!stream) return;
  if (source === undefined) throw senseless(name, "only a database with a source can be streamed");
  if (destination !== undefined && destination.repo !== source.repo) {
    throw senseless(
      name,
      `a streamed database is saved to the repo that it comes from, ${source.repo}, and not to ${destination.repo}`,
    );
  }
}

/** Takes entries by key; what nobody took in the end is an entry that does not exist. */
function taker(entries: Map<string, string>, name: string) {
  const left = new Map(entries);
  const optional = (key: string): string | undefined => {
    const value = left.get(key);
    left.delete(key);
    return value === "" ? undefined : value;
  };
  return {
    optional,
    required(key: string, what: string): string {
      const value = optional(key);
      if (value === undefined) throw senseless(name, `${what} (${key}) is missing`);
      return value;
    },
    flag(key: string): boolean {
      const value = optional(key) ?? "false";
      if (value !== "true" && value !== "false") throw senseless(name, `${key} is true or false, and not ${value}`);
      return value === TRUE;
    },
    end(): void {
      for (const key of left.keys()) throw senseless(name, `there is no ${key}`);
    },
  };
}

function senseless(name: string, why: string): DatamonError {
  return new DatamonError("usage", `${name} makes no sense: ${why}`, {
    hint: "docs/pods.md lists what it may say.",
  });
}
