import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  DamagedObjectError,
  isHash,
  MAX_FRAME_SIZE,
  type ObjectBody,
  type ObjectStore,
  verifyBlob,
} from "../../cas/index.ts";
import { fetchStoredCatalog } from "../catalogs.ts";
import { bundleRecord, getRecord, refRecord, repoRecord } from "../records.ts";

/** One store's copy of an object, read and found right. */
export interface Copy {
  readonly body: ObjectBody;
  /** Of a record, which nothing but its own content tells to be right. */
  readonly record: Buffer | undefined;
  /** Stored length in bytes. */
  readonly size: number;
}

/** True for a record: short, and without a hash that tells whether it is right. */
export function isRecord(key: string): boolean {
  return /^(repos|bundles|refs)\//.test(key);
}

/** The hash that an object's key tells, of its content. */
export function hashInKey(key: string): string | undefined {
  const name = key.slice(key.lastIndexOf("/") + 1);
  return isHash(name) ? name : undefined;
}

/** False where no object of that key can be that long. */
export function isPossible(key: string, size: number): boolean {
  if (!key.startsWith("blobs/")) return size > 0;
  return size > 8 && size <= MAX_FRAME_SIZE;
}

/**
 * Reads an object from one store, verifies it and gives it to `use`.
 *
 * @param directory for temporary files
 * @throws ObjectNotFoundError, DamagedObjectError, or what the store throws
 */
export async function withCopy<T>(
  store: ObjectStore,
  key: string,
  directory: string,
  use: (copy: Copy) => Promise<T> | T,
): Promise<T> {
  const hash = hashInKey(key);
  if (hash !== undefined && key.startsWith("catalogs/")) {
    const file = join(directory, randomBytes(8).toString("hex"));
    try {
      const size = await fetchStoredCatalog(store, hash, file);
      return await use({ body: { file }, record: undefined, size });
    } finally {
      await rm(file, { force: true });
    }
  }
  if (hash !== undefined && key.startsWith("blobs/")) {
    const body = await store.get(key, { offset: 0, length: MAX_FRAME_SIZE + 1 });
    await verifyBlob(store, hash, body);
    return await use({ body, record: undefined, size: body.length });
  }
  if (!isRecord(key)) throw new DamagedObjectError(store.url, key, "its name is that of no object of Datamon");
  const record = await getRecord(store, key);
  try {
    checkRecord(key, record);
  } catch (error) {
    throw new DamagedObjectError(store.url, key, (error as Error).message, error);
  }
  return await use({ body: record, record, size: record.length });
}

function checkRecord(key: string, bytes: Buffer): void {
  const [kind, repo, ...rest] = key.split("/");
  const file = rest.at(-1)?.replace(/\.yaml$/, "");
  if (kind === "repos") {
    if (repoRecord.decode(bytes).name !== repo) throw new Error("it is the record of another repo");
  } else if (kind === "bundles") {
    const bundle = bundleRecord.decode(bytes);
    if (bundle.repo !== repo || bundle.id !== file) throw new Error("it is the record of another bundle");
  } else {
    refRecord.decode(bytes);
  }
}
