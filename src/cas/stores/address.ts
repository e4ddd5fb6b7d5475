import { DatamonError } from "../errors.ts";
import { isKey } from "./keys.ts";

/** Where a bucket's objects are, as a store's URL tells it. */
export interface BucketAddress {
  readonly url: string;
  readonly bucket: string;
  /** What stands before each key: empty, or a path with its slash. */
  readonly prefix: string;
  readonly parameters: ReadonlyMap<string, string>;
  /** Whose objects they are: Datamon's, under keys of its own kind, or anybody's. */
  readonly objects: "own" | "any";
}

/**
 * Takes a URL such as `s3://bucket/some/prefix?region=eu-west-1` apart. A parameter that is not among
 * `known` is a `usage` error, so that a misspelt one is not ignored.
 */
export function parseBucketUrl(url: string, known: readonly string[], objects: "own" | "any" = "own"): BucketAddress {
  const match = /^[a-z0-9]+:\/\/([^/?#@]+)(\/[^?#]*)?(?:\?([^#]*))?$/i.exec(url);
  if (match === null) throw senseless(url, "it must be like gs://bucket/prefix");
  const [, bucket = "", path = "", query = ""] = match;
  const prefix = path.replace(/^\/+|\/+$/g, "");
  if (objects === "own" && prefix !== "" && !isKey(prefix))
    throw senseless(url, `${JSON.stringify(prefix)} cannot stand before keys`);
  const parameters = new Map<string, string>();
  for (const [name, value] of new URLSearchParams(query)) {
    if (!known.includes(name)) throw senseless(url, `${name} is none of the parameters ${known.join(", ")}`);
    parameters.set(name, value);
  }
  return { url, bucket, prefix: prefix === "" ? "" : `${prefix}/`, parameters, objects };
}

/** A store's URL that makes no sense. */
export function senseless(url: string, why: string): DatamonError {
  return new DatamonError("usage", `${url} is not the URL of a store: ${why}`, {
    hint: "'datamon config create --help' tells how stores are named.",
  });
}
