import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, isAbsolute, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { DatamonError, ioError, isErrno } from "../cas/index.ts";

/** What a configuration file may say; all of it is optional. */
export interface ConfigValues {
  /**
   * Store of repos, bundles, labels and catalogs: a URL, an absolute path, or the name of a GCS bucket. Several
   * hold the same.
   */
  metadata?: string | string[];
  /** Store of blobs: likewise. Given together with `metadata` or not at all. */
  blob?: string | string[];
  /** In how many of several stores an object has to be before a put is done; in all that answer where absent. */
  copies?: number;
  /** The contributor's e-mail address. */
  email?: string;
  /** The contributor's name. */
  name?: string;
  /** File with credentials for the stores. */
  credential?: string;
  /** Directory for cached data. */
  cache?: string;
}

/** The configuration in force: stores are URLs, files and directories absolute paths. */
export interface Config extends ConfigValues {
  metadata: string | string[];
  blob: string | string[];
  /** The file that it was read from; undefined where there is none and the embedded local store is used. */
  file: string | undefined;
}

/**
 * Reads the configuration from the first of these that is there: the file that `$DATAMON_CONFIG`
 * names (which must be there), `datamon.yaml` in the working directory, `~/.datamon/datamon.yaml`,
 * `/etc/datamon/datamon.yaml`. Without any, or where it names no stores, data is kept in
 * `~/.datamon/store`. A file that makes no sense gives a `usage` error with the file and the key.
 */
export async function loadConfig(): Promise<Config> {
  const chosen = configured();
  if (chosen !== undefined) {
    const values = await readConfig(chosen);
    if (values === undefined) {
      throw new DatamonError("usage", `the configuration file ${chosen}, named by $DATAMON_CONFIG, is not there`, {
        hint: "Make it with 'datamon config create', or unset DATAMON_CONFIG.",
      });
    }
    return normalise(values, chosen);
  }
  for (const file of [resolve("datamon.yaml"), homeConfig(), "/etc/datamon/datamon.yaml"]) {
    const values = await readConfig(file);
    if (values !== undefined) return normalise(values, file);
  }
  return { ...embeddedStores(), file: undefined };
}

/**
 * Writes `values` to the file that `$DATAMON_CONFIG` names, or to `~/.datamon/datamon.yaml`, readable
 * by its owner only. What the file said before and `values` does not mention is kept.
 *
 * @returns the file's path
 */
export async function writeConfig(values: ConfigValues): Promise<string> {
  const file = configured() ?? homeConfig();
  const { decodeConfig, encodeConfig } = await import("./records.ts");
  const merged = { ...(await readConfig(file)) };
  for (const key of ["metadata", "blob", "copies", "email", "name", "credential", "cache"] as const) {
    if (values[key] !== undefined) Object.assign(merged, { [key]: values[key] });
  }
  const text = encodeConfig(merged);
  normalise(decodeConfig(text), file);
  const temporary = `${file}.${randomBytes(8).toString("hex")}`;
  try {
    await mkdir(dirname(file), { recursive: true, mode: 0o700 });
    const handle = await open(temporary, "wx", 0o600);
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, file);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw ioError(`write the configuration file ${file}`, error);
  }
  return file;
}

function configured(): string | undefined {
  const { DATAMON_CONFIG } = process.env;
  return DATAMON_CONFIG === undefined || DATAMON_CONFIG === "" ? undefined : resolve(DATAMON_CONFIG);
}

function homeConfig(): string {
  return join(homedir(), ".datamon", "datamon.yaml");
}

function embeddedStores(): { metadata: string; blob: string } {
  const store = join(homedir(), ".datamon", "store");
  return { metadata: pathToFileURL(join(store, "meta")).href, blob: pathToFileURL(join(store, "blob")).href };
}

async function readConfig(file: string): Promise<ConfigValues | undefined> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if (isErrno(error, "ENOENT", "ENOTDIR")) return undefined;
    throw ioError(`read the configuration file ${file}`, error);
  }
  const { decodeConfig } = await import("./records.ts");
  try {
    return decodeConfig(text);
  } catch (error) {
    throw senseless(file, (error as Error).message);
  }
}

function normalise(values: ConfigValues, file: string): Config {
  const { metadata, blob, copies, credential, cache } = values;
  if ((metadata === undefined) !== (blob === undefined)) {
    throw senseless(file, `it has ${metadata === undefined ? "blob without metadata" : "metadata without blob"}`);
  }
  const stores =
    metadata === undefined || blob === undefined
      ? embeddedStores()
      : {
          metadata: storeUrls(metadata, "metadata", copies, file),
          blob: storeUrls(blob, "blob", copies, file),
        };
  const config: Config = { ...values, ...stores, file };
  if (credential !== undefined) config.credential = absolutePath(credential, "credential", file);
  if (cache !== undefined) config.cache = absolutePath(cache, "cache", file);
  return config;
}

/** One store's URL, or the list of several, each of which is another one. */
function storeUrls(
  values: string | readonly string[],
  key: string,
  copies: number | undefined,
  file: string,
): string | string[] {
  if (typeof values === "string") return storeUrl(values, key, file);
  const urls = values.map((value) => storeUrl(value, key, file));
  const twice = urls.find((url, index) => urls.indexOf(url) !== index);
  if (twice !== undefined) throw senseless(file, `${key}: ${twice} stands there twice`);
  if (urls[0] === undefined) throw senseless(file, `${key} is a list of nothing`);
  if (urls.length === 1) return urls[0];
  if (copies === undefined || copies <= urls.length) return urls;
  throw senseless(file, `copies: ${copies} is more than the ${urls.length} stores of ${key}`);
}

/** A store as a URL: a path becomes `file://…`, a bare name is a GCS bucket as in earlier versions. */
function storeUrl(value: string, key: string, file: string): string {
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(value)) return withoutSlash(value);
  if (isPath(value)) return pathToFileURL(absolutePath(value, key, file)).href;
  if (/^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$/.test(value)) return `gs://${value}`;
  throw senseless(file, `${key}: ${value} is neither a URL nor an absolute path nor the name of a bucket`);
}

function withoutSlash(url: string): string {
  return url.replace(/(?<=[^/])\/+$/, "");
}

function absolutePath(value: string, key: string, file: string): string {
  if (value.startsWith("file:///")) return fileURLToPath(value);
  if (!isPath(value)) throw senseless(file, `${key}: ${value} is not an absolute path`);
  return resolve(value.startsWith("~") ? join(homedir(), value.slice(1)) : value);
}

function isPath(value: string): boolean {
  return isAbsolute(value) || value === "~" || value.startsWith("~/");
}

function senseless(file: string, why: string): DatamonError {
  return new DatamonError("usage", `the configuration file ${file} makes no sense: ${why}`, {
    hint: "Mend the file; 'datamon config create --help' tells what it may say.",
  });
}
