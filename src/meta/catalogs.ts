/** Catalogs on their way between the metadata store and this machine's disk. */
import { randomBytes } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { copyFile, mkdir, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { constants, createZstdCompress, createZstdDecompress } from "node:zlib";
import {
  againIfDamaged,
  DamagedObjectError,
  DatamonError,
  type Hash,
  ioError,
  isErrno,
  isSettled,
  type ObjectInfo,
  ObjectNotFoundError,
  type ObjectStore,
  readCopy,
} from "../cas/index.ts";
import { Catalog } from "./catalog/catalog.ts";
import { hashFile } from "./catalog/hashing.ts";

/** zstd level of stored catalogs: the next ones cost twice the time for a few hundredths of the size. */
const LEVEL = 3;
/** log2 of the largest window that decoding makes room for: 8 MiB. Level 3 uses 2 MiB. */
const MAX_WINDOW_LOG = 23;
/** Bytes that compression hands on at once. */
const CHUNK = 256 * 1024;
/** Bytes of a stored catalog fetched at once. */
const RANGE = 8 * 1024 * 1024;
/**
 * The longest file that a stored catalog may decode to: this many bytes, and this many for each
 * stored byte. Catalogs are some 2 to 30 times as long as their stored form.
 */
const DECODED_BASE = 64 * 1024 * 1024;
const DECODED_RATIO = 256;

/** The key of a catalog: `catalogs/ab/abcd…`. */
export function catalogKey(hash: Hash): string {
  return `catalogs/${hash.slice(0, 2)}/${hash}`;
}

/**
 * Stores the catalog in `file`, whose hash is `hash`, compressed. A catalog that the store has
 * already is left alone. A temporary file next to `file` is used and removed.
 */
export async function putCatalog(context: { readonly metadata: ObjectStore }, file: string, hash: Hash): Promise<void> {
  const key = catalogKey(hash);
  if (await isSettled(context.metadata, key)) return;
  const actual = hashFile(file);
  if (actual !== hash)
    throw new DatamonError("damaged", `catalog ${file} is damaged: its hash is ${actual}, not ${hash}`);
  const temporary = temporaryName(file);
  try {
    const compress = createZstdCompress({ params: { [constants.ZSTD_c_compressionLevel]: LEVEL }, chunkSize: CHUNK });
    await pipeline(createReadStream(file, { highWaterMark: 1024 * 1024 }), compress, createWriteStream(temporary));
    await context.metadata.put(key, { file: temporary }, { ifAbsent: true });
  } catch (error) {
    throw ioError(`store catalog ${hash}`, error);
  } finally {
    await removeTemporary(temporary);
  }
}

/**
 * Brings the catalog `hash` to this machine and returns the path of its file,
 * `<directory>/<hash>.sqlite`, which is complete, verified and validated. One that is there already
 * is verified and used; one that is damaged is fetched anew.
 *
 * @throws ObjectNotFoundError, DamagedObjectError, or what the disk and the store throw
 */
export async function fetchCatalog(
  context: { readonly metadata: ObjectStore },
  hash: Hash,
  directory: string,
): Promise<string> {
  const file = join(directory, `${hash}.sqlite`);
  if (isIntact(file, hash)) return file;
  // Of one store from its beginning to its end: the stored forms of a catalog need not be the same everywhere.
  const fetch = (copy: ObjectStore) => fetchTo(file, copy, hash);
  return await againIfDamaged(() => readCopy(context.metadata, fetch, { hurry: false }));
}

async function fetchTo(file: string, metadata: ObjectStore, hash: Hash): Promise<string> {
  const key = catalogKey(hash);
  const temporary = temporaryName(file);
  try {
    await mkdir(dirname(file), { recursive: true });
    const stored = await headCatalog(metadata, key);
    await decodeTo(temporary, Readable.from(ranges(metadata, stored), { objectMode: false }), metadata, stored);
    const actual = hashFile(temporary);
    if (actual !== hash) throw new DamagedObjectError(metadata.url, key, `its content has the hash ${actual}`);
    validate(temporary, metadata, key);
    await rename(temporary, file);
    return file;
  } catch (error) {
    throw ioError(`fetch catalog ${hash} into ${dirname(file)}`, error);
  } finally {
    await removeTemporary(temporary);
  }
}

/**
 * Gives a catalog that was made here, in `file`, its name in `directory`, where `fetchCatalog` finds it without the store;
 * `file` is gone afterwards. A cache that cannot take it is no failure.
 */
export async function keepCatalog(file: string, hash: Hash, directory: string): Promise<void> {
  const kept = join(directory, `${hash}.sqlite`);
  const temporary = temporaryName(kept);
  try {
    await mkdir(directory, { recursive: true });
    await rename(file, kept).catch(async (error) => {
      if (!isErrno(error, "EXDEV")) throw error;
      await copyFile(file, temporary);
      await rename(temporary, kept);
    });
  } catch {
    // Whoever needs it fetches it.
  } finally {
    await removeTemporary(temporary);
  }
}

function isIntact(file: string, hash: Hash): boolean {
  try {
    return hashFile(file) === hash;
  } catch (error) {
    // What cannot be read any more is replaced, like what reads wrong.
    if (error instanceof DatamonError && ["not-found", "io", "denied"].includes(error.code)) return false;
    throw error;
  }
}

/**
 * Writes the stored form of a catalog to `file`, as this store alone has it, verified. A temporary file
 * next to it is used and removed. Throws `ObjectNotFoundError` or `DamagedObjectError`.
 *
 * @returns its length in bytes
 */
export async function fetchStoredCatalog(store: ObjectStore, hash: Hash, file: string): Promise<number> {
  const key = catalogKey(hash);
  const stored = await headCatalog(store, key);
  const temporary = temporaryName(file);
  try {
    await pipeline(Readable.from(ranges(store, stored), { objectMode: false }), createWriteStream(file));
    await decodeTo(temporary, createReadStream(file), store, stored);
    const actual = hashFile(temporary);
    if (actual !== hash) throw new DamagedObjectError(store.url, key, `its content has the hash ${actual}`);
    return stored.size;
  } catch (error) {
    throw ioError(`fetch catalog ${hash} into ${dirname(file)}`, error);
  } finally {
    await removeTemporary(temporary);
  }
}

async function headCatalog(store: ObjectStore, key: string): Promise<ObjectInfo> {
  const stored = await store.head(key);
  if (stored === undefined) throw new ObjectNotFoundError(store.url, key);
  return stored;
}

/** Decodes a stored catalog, within limits. */
async function decodeTo(file: string, source: Readable, store: ObjectStore, stored: ObjectInfo): Promise<void> {
  const { key, size } = stored;
  const most = DECODED_BASE + size * DECODED_RATIO;
  let decoded = 0;
  const limit = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      decoded += chunk.length;
      if (decoded <= most) done(null, chunk);
      else done(new DamagedObjectError(store.url, key, `its ${size} bytes decode to more than ${most}`));
    },
  });
  const decompress = createZstdDecompress({
    params: { [constants.ZSTD_d_windowLogMax]: MAX_WINDOW_LOG },
    chunkSize: CHUNK,
  });
  try {
    await pipeline(source, decompress, limit, createWriteStream(file, { flags: "wx" }));
  } catch (error) {
    if (isZstdError(error)) throw new DamagedObjectError(store.url, key, (error as Error).message, error);
    throw error;
  }
}

async function* ranges(store: ObjectStore, { key, size }: ObjectInfo): AsyncGenerator<Buffer> {
  for (let offset = 0; offset < size; offset += RANGE) {
    yield await store.get(key, { offset, length: Math.min(RANGE, size - offset) });
  }
}

function validate(file: string, store: ObjectStore, key: string): void {
  try {
    const catalog = Catalog.open(file);
    try {
      catalog.validate();
    } finally {
      catalog.close();
    }
  } catch (error) {
    if (!(error instanceof DatamonError) || error.code !== "damaged") throw error;
    throw new DamagedObjectError(store.url, key, error.message, error);
  }
}

/** Errors of the decoder: zlib's own, and an object that ends in the middle of a frame. */
function isZstdError(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return isErrno(error, "Z_BUF_ERROR") || (typeof code === "string" && code.startsWith("ZSTD_error"));
}

/** A file that cannot be removed must not hide why it was given up. */
async function removeTemporary(file: string): Promise<void> {
  await rm(file, { force: true }).catch(() => undefined);
}

/** A name next to `file` that no other process or call uses. */
function temporaryName(file: string): string {
  return `${file}.${randomBytes(8).toString("hex")}.tmp`;
}
