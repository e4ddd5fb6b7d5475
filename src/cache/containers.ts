import { randomBytes } from "node:crypto";
import {
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Hash, isErrno, isHash } from "../cas/index.ts";

/** Temporary files older than this belong to no living writer: writing one takes seconds at the most. */
const LEFTOVER_AGE_MS = 10 * 60 * 1000;
/** What sizes on disk are rounded up to where the file system has not been asked. */
const DISK_BLOCK = 4096;
const CATALOG = /^[0-9a-f]{64}\.sqlite$/;

/** A container as a walk over the directory finds it. */
export interface FoundContainer {
  readonly name: Hash;
  /** Length in bytes. */
  readonly length: number;
  /** Bytes allocated on disk. */
  readonly allocated: number;
  /** Last modification, milliseconds since the epoch. */
  readonly modified: number;
}

/**
 * The files of a cache directory. A blob's container is `containers/<2 hex>/<64 hex>`, named by the
 * blob, and appears whole by a rename from `tmp/`. Nothing is synced to disk: what a power failure
 * tears is found out by its hash when it is first opened.
 */
export class ContainerFiles {
  readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
  }

  /** Makes the directories that are missing. */
  prepare(): void {
    for (const name of ["containers", "tmp", "index"]) mkdirSync(join(this.directory, name), { recursive: true });
  }

  pathOf(name: Hash): string {
    return join(this.directory, "containers", name.slice(0, 2), name);
  }

  /** True where the directory can be listed. */
  isReadable(): boolean {
    try {
      readdirSync(this.directory);
      return true;
    } catch {
      return false;
    }
  }

  /** The container's length in bytes, undefined where it is not there. */
  lengthOf(name: Hash): number | undefined {
    return statSync(this.pathOf(name), { throwIfNoEntry: false })?.size;
  }

  /** Writes `content` to a new temporary file and returns its path. */
  writeTemporary(content: Buffer): string {
    const path = this.#temporary();
    try {
      const fd = openSync(path, "wx");
      try {
        for (let at = 0; at < content.length; ) at += writeSync(fd, content, at);
      } finally {
        closeSync(fd);
      }
    } catch (error) {
      this.removeTemporary(path);
      throw error;
    }
    return path;
  }

  /** The same without blocking this thread. */
  async writeTemporaryAsync(content: Buffer): Promise<string> {
    const path = this.#temporary();
    try {
      await writeFile(path, content, { flag: "wx" });
    } catch (error) {
      this.removeTemporary(path);
      throw error;
    }
    return path;
  }

  /** Removes a temporary file that is not wanted after all. */
  removeTemporary(path: string): void {
    try {
      rmSync(path, { force: true });
    } catch {
      // A later opener removes it.
    }
  }

  /** Moves a temporary file to its place as container `name`. */
  publish(temporary: string, name: Hash): void {
    try {
      try {
        renameSync(temporary, this.pathOf(name));
      } catch (error) {
        if (!isErrno(error, "ENOENT")) throw error;
        mkdirSync(join(this.directory, "containers", name.slice(0, 2)), { recursive: true });
        renameSync(temporary, this.pathOf(name));
      }
    } catch (error) {
      this.removeTemporary(temporary);
      throw error;
    }
  }

  /** Removes a container; open descriptors keep its bytes. */
  remove(name: Hash): void {
    unlinkIfThere(this.pathOf(name));
  }

  /** Every container that is there, in no order. */
  *list(): Generator<FoundContainer> {
    const root = join(this.directory, "containers");
    for (const prefix of namesIn(root)) {
      if (!/^[0-9a-f]{2}$/.test(prefix)) continue;
      for (const name of namesIn(join(root, prefix))) {
        if (!isHash(name) || !name.startsWith(prefix)) continue;
        const info = lstatSync(this.pathOf(name), { throwIfNoEntry: false });
        if (info?.isFile())
          yield { name, length: info.size, allocated: info.blocks * 512, modified: Math.floor(info.mtimeMs) };
      }
    }
  }

  /** Removes every container and returns the bytes freed. */
  removeAll(): number {
    let freed = 0;
    for (const { name, allocated } of this.list()) {
      this.remove(name);
      freed += allocated;
    }
    return freed;
  }

  /** Number and allocated bytes of the catalogs that lie in the same directory. */
  catalogs(): { count: number; bytes: number } {
    let count = 0;
    let bytes = 0;
    for (const path of this.#catalogPaths()) {
      bytes += allocatedBytes(path);
      count++;
    }
    return { count, bytes };
  }

  /** Removes the catalogs and returns the bytes freed; whoever has one open keeps it. */
  removeCatalogs(): number {
    let freed = 0;
    for (const path of this.#catalogPaths()) {
      freed += allocatedBytes(path);
      unlinkIfThere(path);
    }
    return freed;
  }

  /** Removes what killed writers left behind. */
  removeLeftovers(): void {
    const oldest = Date.now() - LEFTOVER_AGE_MS;
    for (const name of namesIn(join(this.directory, "tmp"))) {
      const path = join(this.directory, "tmp", name);
      const info = lstatSync(path, { throwIfNoEntry: false });
      if (info !== undefined && info.mtimeMs < oldest) rmSync(path, { force: true });
    }
  }

  *#catalogPaths(): Generator<string> {
    const root = join(this.directory, "catalogs");
    for (const name of namesIn(root)) if (CATALOG.test(name)) yield join(root, name);
  }

  #temporary(): string {
    return join(this.directory, "tmp", randomBytes(16).toString("hex"));
  }
}

/** The bytes that a file of `length` bytes takes on disk. */
export function onDisk(length: number): number {
  return Math.ceil(length / DISK_BLOCK) * DISK_BLOCK;
}

function allocatedBytes(path: string): number {
  return (lstatSync(path, { throwIfNoEntry: false })?.blocks ?? 0) * 512;
}

function unlinkIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (!isErrno(error, "ENOENT")) throw error;
  }
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if (isErrno(error, "ENOENT", "ENOTDIR")) return [];
    throw error;
  }
}
