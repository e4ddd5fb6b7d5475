import { randomBytes } from "node:crypto";
import type { Dirent } from "node:fs";
import { type FileHandle, link, lstat, mkdir, open, readdir, rename, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { DatamonError, ioError, isErrno, ObjectNotFoundError } from "../errors.ts";
import { faultPoint } from "../faults.ts";
import type { ByteRange, ListOptions, ObjectBody, ObjectInfo, ObjectStore, PutOptions } from "../store.ts";
import { DirectorySync } from "./directory-sync.ts";
import { checkKey, isSegment } from "./keys.ts";

const DEFAULT_PAGE = 1000;
const COPY_CHUNK = 4 * 1024 * 1024;
const LEFTOVER_AGE_MS = 24 * 60 * 60 * 1000;
/** Below the root, out of the way of keys, which never start with a dot. */
const TEMPORARY = ".tmp";

/**
 * Objects as files below a directory: the key is the path. A put writes a temporary file, syncs it,
 * and links it to its final name, so that an object is there whole or not at all and the first of
 * several writers wins. The file system must have hard links and tell upper from lower case.
 */
export class LocalStore implements ObjectStore {
  readonly url: string;
  readonly #root: string;
  readonly #directorySync = new DirectorySync();
  /** Directories that are known to survive a crash, with all above them. */
  readonly #durable = new Set<string>();
  /** The topmost directory at or above the root that this process had to make. */
  #topmostMade: string | undefined;

  private constructor(url: string, root: string) {
    this.url = url;
    this.#root = root;
  }

  /**
   * Opens the store at `url` (`file:///absolute/path`). Its directory is made by the first put, for
   * this user only; one that is to be shared is made beforehand.
   * Temporary files that a killed process left behind more than a day ago are removed.
   */
  static async open(url: string): Promise<LocalStore> {
    const store = new LocalStore(url, rootOf(url));
    await store.#sweep();
    return store;
  }

  async get(key: string, range?: ByteRange): Promise<Buffer> {
    const path = this.#pathOf(key);
    try {
      const file = await open(path, "r");
      try {
        const info = await file.stat();
        if (!info.isFile()) throw new ObjectNotFoundError(this.url, key);
        const start = Math.min(range?.offset ?? 0, info.size);
        return await readFully(file, start, Math.min(range?.length ?? info.size, info.size - start));
      } finally {
        await file.close();
      }
    } catch (error) {
      if (isErrno(error, "ENOENT", "ENOTDIR")) throw new ObjectNotFoundError(this.url, key);
      throw this.#failure("read", key, error);
    }
  }

  async head(key: string): Promise<ObjectInfo | undefined> {
    try {
      return await infoOf(key, this.#pathOf(key));
    } catch (error) {
      throw this.#failure("look up", key, error);
    }
  }

  async put(key: string, body: ObjectBody, options: PutOptions = {}): Promise<boolean> {
    const path = this.#pathOf(key);
    const place = options.ifAbsent === true ? linkUnlessThere : replace;
    try {
      return await this.#put(key, path, body, place);
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw this.#failure("store", key, error);
    }
    // A directory that was there has been removed by somebody else: once more, from the root down.
    this.#durable.clear();
    try {
      return await this.#put(key, path, body, place);
    } catch (error) {
      throw this.#failure("store", key, error);
    }
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ObjectInfo[]> {
    const limit = options.limit ?? DEFAULT_PAGE;
    const directory = prefix.slice(0, prefix.lastIndexOf("/") + 1);
    if (directory !== "") this.#pathOf(directory.slice(0, -1));
    const keys = this.#keys(directory, prefix, options.after);
    const page: ObjectInfo[] = [];
    try {
      // An object may vanish between the listing and its stat, so one batch need not fill the page.
      for (let ended = false; !ended && page.length < limit; ) {
        const batch: string[] = [];
        while (!ended && page.length + batch.length < limit) {
          const next = await keys.next();
          if (next.done === true) ended = true;
          else batch.push(next.value);
        }
        const infos = await Promise.all(batch.map((key) => infoOf(key, join(this.#root, key))));
        for (const info of infos) if (info !== undefined) page.push(info);
      }
      return page;
    } catch (error) {
      throw ioError(`list objects below ${prefix} in ${this.url}`, error);
    }
  }

  async delete(key: string): Promise<void> {
    const path = this.#pathOf(key);
    try {
      if ((await infoOf(key, path)) === undefined) return;
      faultPoint("delete", key);
      await unlink(path);
      await this.#directorySync.sync([dirname(path)]);
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw this.#failure("delete", key, error);
    }
  }

  async #put(key: string, path: string, body: ObjectBody, place: typeof replace): Promise<boolean> {
    const directory = dirname(path);
    await this.#makeDirectory(directory);
    const temporary = await this.#temporaryPath();
    let placed: boolean;
    try {
      await writeDurably(temporary, body);
      faultPoint("put", key);
      placed = await place(temporary, path);
      faultPoint("put", key, "done");
    } finally {
      // Should this fail, the file is swept at some later open.
      await unlink(temporary).catch(() => undefined);
    }
    // Also where somebody else was first: the caller may rely on the object whoever put it.
    const undurable = this.#undurable(directory);
    await this.#directorySync.sync([directory, ...undurable.map(dirname)]);
    for (const made of undurable) this.#durable.add(made);
    return placed;
  }

  async #makeDirectory(directory: string): Promise<void> {
    if (this.#durable.has(directory)) return;
    // A store that its first user did not prepare for others is for that user alone.
    const first = await mkdir(this.#root, { recursive: true, mode: 0o700 });
    // Concurrent puts may each make a part of the way.
    if (first !== undefined && first.length < (this.#topmostMade?.length ?? Number.POSITIVE_INFINITY)) {
      this.#topmostMade = first;
    }
    await mkdir(directory, { recursive: true });
  }

  /**
   * `directory` and those above it whose own entries may still have to be synced. Between it and the
   * root these are also the ones that were there: their maker may be another process, not yet done.
   */
  #undurable(directory: string): string[] {
    const shortest = this.#topmostMade?.length ?? this.#root.length + 1;
    const found: string[] = [];
    for (let at = directory; at.length >= shortest && !this.#durable.has(at); at = dirname(at)) found.push(at);
    return found;
  }

  async #temporaryPath(): Promise<string> {
    const directory = join(this.#root, TEMPORARY);
    if (!this.#durable.has(directory)) {
      await mkdir(directory, { recursive: true });
      this.#durable.add(directory);
    }
    return join(directory, randomBytes(16).toString("hex"));
  }

  /** Keys in order; of each directory only what the range may hold is entered. */
  async *#keys(directory: string, prefix: string, after: string | undefined): AsyncGenerator<string, undefined> {
    const found: string[] = [];
    for (const entry of await entriesOf(join(this.#root, directory))) {
      if (!isSegment(entry.name) || (directory === "" && entry.name.startsWith("."))) continue;
      if (entry.isFile()) {
        const key = directory + entry.name;
        if (key.startsWith(prefix) && (after === undefined || key > after)) found.push(key);
      } else if (entry.isDirectory()) {
        const below = `${directory}${entry.name}/`;
        if (!below.startsWith(prefix) && !prefix.startsWith(below)) continue;
        if (after === undefined || below > after || after.startsWith(below)) found.push(below);
      }
    }
    // With its slash, a directory sorts where the keys below it belong: "a-b" before "a/b".
    for (const key of found.sort()) {
      if (key.endsWith("/")) yield* this.#keys(key, prefix, after);
      else yield key;
    }
  }

  async #sweep(): Promise<void> {
    const directory = join(this.#root, TEMPORARY);
    const oldest = Date.now() - LEFTOVER_AGE_MS;
    const names = await readdir(directory).catch(() => []);
    for (const name of names) {
      const path = join(directory, name);
      const info = await lstat(path).catch(() => undefined);
      // A leftover that cannot be removed (a read-only store, another user's) does no harm.
      if (info !== undefined && info.mtimeMs < oldest) await unlink(path).catch(() => undefined);
    }
  }

  #pathOf(key: string): string {
    checkKey(key, this.url);
    return join(this.#root, key);
  }

  #failure(verb: string, key: string, error: unknown): DatamonError {
    return ioError(`${verb} object ${key} in ${this.url}`, error);
  }
}

function rootOf(url: string): string {
  try {
    if (!url.startsWith("file:///")) throw new Error("it must be file:// and an absolute path");
    const path = fileURLToPath(url);
    return path.length > 1 && path.endsWith("/") ? path.slice(0, -1) : path;
  } catch (error) {
    throw new DatamonError("usage", `${url} is not a local store: ${(error as Error).message}`, { cause: error });
  }
}

async function entriesOf(directory: string): Promise<Dirent[]> {
  try {
    return await readdir(directory, { withFileTypes: true });
  } catch (error) {
    if (isErrno(error, "ENOENT", "ENOTDIR")) return [];
    throw error;
  }
}

async function infoOf(key: string, path: string): Promise<ObjectInfo | undefined> {
  try {
    const info = await lstat(path);
    return info.isFile() ? { key, size: info.size } : undefined;
  } catch (error) {
    if (isErrno(error, "ENOENT", "ENOTDIR")) return undefined;
    throw error;
  }
}

async function linkUnlessThere(temporary: string, path: string): Promise<boolean> {
  try {
    await link(temporary, path);
    return true;
  } catch (error) {
    if (isErrno(error, "EEXIST")) return false;
    throw error;
  }
}

async function replace(temporary: string, path: string): Promise<boolean> {
  await rename(temporary, path);
  return true;
}

async function writeDurably(path: string, body: ObjectBody): Promise<void> {
  const target = await open(path, "wx");
  try {
    if (body instanceof Uint8Array) await writeFully(target, body);
    else if ("file" in body) await copyInto(target, body.file);
    else for (const piece of body) await writeFully(target, piece);
    await target.datasync();
  } finally {
    await target.close();
  }
}

async function copyInto(target: FileHandle, file: string): Promise<void> {
  const source = await open(file, "r");
  try {
    const buffer = Buffer.allocUnsafe(Math.min(COPY_CHUNK, (await source.stat()).size + 1));
    for (;;) {
      const { bytesRead } = await source.read(buffer, 0, buffer.length);
      if (bytesRead === 0) return;
      await writeFully(target, buffer.subarray(0, bytesRead));
    }
  } finally {
    await source.close();
  }
}

/** Writes at the file's position in as few calls as the system allows. */
async function writeFully(target: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) done += (await target.write(bytes, done, bytes.length - done)).bytesWritten;
}

async function readFully(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(length);
  let done = 0;
  while (done < length) {
    const { bytesRead } = await file.read(buffer, done, length - done, offset + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return buffer.subarray(0, done);
}
