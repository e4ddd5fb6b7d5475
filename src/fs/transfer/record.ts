/**
 * The note that a download leaves of where a folder's content came from, so that an update can tell
 * what was edited since. It is an extended attribute of the folder, which no listing or comparison
 * shows; where there is no support for those, a small file `.datamon/bundle.json` in it.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type ByteString, bytesOf, ioError, isErrno, toBuffer } from "../../cas/index.ts";
import { OWN_NAME } from "./walk.ts";
import { readXattr, writeXattrs } from "./xattr.ts";

const ATTRIBUTE = "user.datamon.origin";
const FILE = "bundle.json";

/** A bundle by its full id. */
export interface BundleName {
  repo: string;
  bundle: string;
}

/** Which bundle a folder holds. */
export interface Origin extends BundleName {
  /** The bundle of an update that began and did not finish: content may come from either. */
  next?: BundleName | undefined;
  /** False while a download or update is under way, and after one that did not finish. */
  complete: boolean;
}

/** The note of a folder, undefined where it has none that can be read. */
export async function readOrigin(folder: ByteString): Promise<Origin | undefined> {
  const text = readXattr(folder, ATTRIBUTE)?.toString() ?? readFile(folder);
  if (text === undefined) return undefined;
  const { z } = await import("zod");
  const name = { repo: z.string(), bundle: z.string() };
  const schema = z.object({ ...name, next: z.object(name).optional(), complete: z.boolean() });
  try {
    return schema.parse(JSON.parse(text));
  } catch {
    // Somebody wrote something else there: the folder is then like any other.
    return undefined;
  }
}

/** Notes where the folder's content comes from. */
export function writeOrigin(folder: ByteString, origin: Origin): void {
  const text = JSON.stringify(origin);
  const failure = writeXattrs(folder, new Map([[bytesOf(ATTRIBUTE), Buffer.from(text)]]));
  const directory = ownDirectory(folder);
  if (failure === undefined) {
    rmSync(join(directory, FILE), { force: true });
    return;
  }
  try {
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, FILE), `${text}\n`);
  } catch (error) {
    throw ioError(`write ${join(directory, FILE)}`, error);
  }
}

function readFile(folder: ByteString): string | undefined {
  try {
    return readFileSync(join(ownDirectory(folder), FILE), "utf8");
  } catch (error) {
    if (isErrno(error, "ENOENT", "ENOTDIR")) return undefined;
    throw ioError(`read ${join(ownDirectory(folder), FILE)}`, error);
  }
}

/** Folders are given on the command line, so their paths are UTF-8. */
function ownDirectory(folder: ByteString): string {
  return join(toBuffer(folder).toString("utf8"), OWN_NAME);
}
