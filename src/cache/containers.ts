import { randomBytes } from "node:crypto";
import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { LRUCache } from "lru-cache";
import { type Hash, isErrno } from "../cas/index.ts";
import { ContainerWriter } from "./container-writer.ts";
import { DirectWrites } from "./direct-write.ts";
import { decodePieces, type Piece } from "./piece-map.ts";

/** Temporary files older than this belong to no living writer: writing one takes seconds at the most. */
const LEFTOVER_AGE_MS = 10 * 60 * 1000;
/** Large files' containers that are kept open for writing: as many as are commonly read at a time. */
const WRITERS = 16;
/** What sizes on disk are rounded up to where the file system has not been asked. */
const DISK_BLOCK = 4096;
const CATALOG = /^[0-9a-f]{64}\.sqlite$/;
const CONTAINER = /^[0-9a-f]{64}(\.file)?$/;
const PIECE_MAP = /^[0-9a-f]{64}\.map$/;

/** A container's name: a blob's hash, or the hash of a large file's content and `.file`. */
export type ContainerName = string;

/** The name of the container in which the file with this content hash is assembled. */
export function fileContainer(file: Hash): ContainerName {
  return `${file}.file`;
}

/** True for the container of a file, as opposed to that of one blob. */
export function isFileContainer(name: ContainerName): boolean {
  return name.endsWith(".file");
}

export function isContainerName(name: string): boolean {
  return CONTAINER.test(name);
}

/** A container as a walk over the directory finds it. */
export interface FoundContainer {
  readonly name: ContainerName;
  /** Length in bytes. */
  readonly length: number;
  /** Bytes allocated on disk; of a file's container with those of its map. */
  readonly allocated: number;
  /** Last modification, milliseconds since the epoch. */
  readonly modified: number;
}

/**
 * The files of a cache directory. A blob's container is `containers/<2 hex>/<64 hex>`, named by the
 * blob, and appears whole by a rename from `tmp/`. The container of a large file is
 * `containers/<2 hex>/<64 hex>.file`, named by the file's content hash, of the file's size from the
 * start and with holes where blobs are missing; `<64 hex>.map` beside it notes the blobs that came.
 * Nothing is synced to disk: what a power failure tears is found out by its hash when it is first opened.
 */
export class ContainerFiles {
  readonly directory: string;
  /** Modes of directories and files where others than their owner may write, too; else the process's own choice holds. */
  #shared: { readonly directory: number; readonly file: number } | undefined;
  readonly #directWrites = new DirectWrites();
  readonly #writers = new LRUCache<ContainerName, ContainerWriter>({
    max: WRITERS,
    dispose: (writer) => writer.retire(),
  });

  constructor(directory: string) {
    this.directory = directory;
  }

  /**
   * Makes the directories that are missing. Where the cache directory lets its group or everybody write,
   * all that is made in it does, too, whatever the umask.
   */
  prepare(): void {
    mkdirSync(this.directory, { recursive: true });
    const { mode } = statSync(this.directory);
    this.#shared = (mode & 0o022) === 0 ? undefined : { directory: mode & 0o2777, file: mode & 0o666 };
    for (const name of ["containers", "tmp", "index", "catalogs"]) this.#makeDirectory(join(this.directory, name));
  }

  /** True where nobody but this user, and root, can write. */
  isPrivate(): boolean {
    try {
      const { uid, mode } = statSync(this.directory);
      return uid === process.geteuid?.() && (mode & 0o022) === 0;
    } catch {
      return false;
    }
  }

  /** Makes an empty file of a name that is not there, as it is to be for all users of the cache, and opens it. */
  create(path: string): number {
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o666);
    try {
      if (this.#shared !== undefined) fchmodSync(fd, this.#shared.file);
      return fd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  #makeDirectory(path: string): void {
    try {
      mkdirSync(path);
    } catch (error) {
      if (!isErrno(error, "EEXIST")) throw error;
    }
    if (this.#shared === undefined) return;
    const { uid, mode } = statSync(path);
    // One that another user made is for that user to change.
    if (uid === process.geteuid?.() && (mode & 0o7777) !== this.#shared.directory)
      chmodSync(path, this.#shared.directory);
  }

  pathOf(name: ContainerName): string {
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
  lengthOf(name: ContainerName): number | undefined {
    return statSync(this.pathOf(name), { throwIfNoEntry: false })?.size;
  }

  /** Writes `content` to a new temporary file and returns its path. */
  writeTemporary(content: Buffer): string {
    const path = this.#temporary();
    try {
      const fd = this.create(path);
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
      closeSync(this.create(path));
      await writeFile(path, content, { flag: "r+" });
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
        this.#makeDirectory(join(this.directory, "containers", name.slice(0, 2)));
        renameSync(temporary, this.pathOf(name));
      }
    } catch (error) {
      this.removeTemporary(temporary);
      throw error;
    }
  }

  /**
   * Writes a blob to its place in the container of a file of `size` bytes, which is made where it is not
   * there. False where the container was removed meanwhile.
   */
  writePiece(name: ContainerName, size: number, piece: Piece, content: Buffer): boolean {
    return this.#writerOf(name, size).write(piece, content);
  }

  /** The same without blocking this thread for the bytes. */
  writePieceAsync(name: ContainerName, size: number, piece: Piece, content: Buffer): Promise<boolean> {
    return this.#writerOf(name, size).writeAsync(piece, content);
  }

  /** The blobs that are noted to be in a file's container. */
  piecesOf(name: ContainerName): Piece[] {
    try {
      return decodePieces(readFileSync(mapOf(this.pathOf(name))));
    } catch (error) {
      if (isErrno(error, "ENOENT")) return [];
      throw error;
    }
  }

  /** Removes a container; open descriptors of others keep its bytes. */
  remove(name: ContainerName): void {
    this.#writers.delete(name);
    if (isFileContainer(name)) unlinkIfThere(mapOf(this.pathOf(name)));
    unlinkIfThere(this.pathOf(name));
  }

  /** Closes the containers that were removed, or not written to since the last call. */
  closeIdle(): void {
    // A copy: the cache's own iteration starts again when the oldest is deleted.
    for (const [name, writer] of [...this.#writers]) {
      if (!writer.used || writer.isRemoved()) this.#writers.delete(name);
      writer.used = false;
    }
  }

  /** Closes all containers, those that are being written to when that is done. */
  close(): void {
    this.#writers.clear();
  }

  #writerOf(name: ContainerName, size: number): ContainerWriter {
    const kept = this.#writers.get(name);
    if (kept?.size === size && kept.isInPlace()) {
      kept.used = true;
      return kept;
    }
    this.#writers.delete(name);
    const path = this.pathOf(name);
    const opened = [this.#openContainer(path)];
    try {
      const [fd, map] = [opened[0]!, this.#openOrCreate(mapOf(path), constants.O_WRONLY | constants.O_APPEND)];
      opened.push(map);
      const writer = new ContainerWriter(path, fd, map, size, this.#directWrites);
      this.#writers.set(name, writer);
      return writer;
    } catch (error) {
      for (const fd of opened) closeSync(fd);
      throw error;
    }
  }

  #openContainer(path: string): number {
    try {
      return openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw error;
    }
    // What the map of one that was removed says is not true of the next one.
    unlinkIfThere(mapOf(path));
    this.#makeDirectory(dirname(path));
    return this.#openOrCreate(path, constants.O_RDWR);
  }

  #openOrCreate(path: string, flags: number): number {
    for (;;) {
      try {
        return openSync(path, flags | constants.O_NOFOLLOW);
      } catch (error) {
        if (!isErrno(error, "ENOENT")) throw error;
      }
      try {
        closeSync(this.create(path));
      } catch (error) {
        if (!isErrno(error, "EEXIST")) throw error;
      }
    }
  }

  /** Every container that is there, in no order. */
  *list(): Generator<FoundContainer> {
    const root = join(this.directory, "containers");
    for (const prefix of namesIn(root)) {
      if (!/^[0-9a-f]{2}$/.test(prefix)) continue;
      for (const name of namesIn(join(root, prefix))) {
        if (!isContainerName(name) || !name.startsWith(prefix)) continue;
        const info = lstatSync(this.pathOf(name), { throwIfNoEntry: false });
        if (!info?.isFile()) continue;
        const map = isFileContainer(name) ? allocatedBytes(mapOf(this.pathOf(name))) : 0;
        yield { name, length: info.size, allocated: info.blocks * 512 + map, modified: Math.floor(info.mtimeMs) };
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
    this.#removeLoneMaps();
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

  /** Removes the maps whose containers are gone: of writers that were overtaken by an eviction. */
  #removeLoneMaps(): void {
    const root = join(this.directory, "containers");
    for (const prefix of namesIn(root)) {
      for (const name of namesIn(join(root, prefix))) {
        if (!PIECE_MAP.test(name)) continue;
        const path = join(root, prefix, name);
        if (lstatSync(path.replace(/map$/, "file"), { throwIfNoEntry: false }) === undefined) unlinkIfThere(path);
      }
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

/** Path of the map that belongs to the file container at `path`. */
function mapOf(path: string): string {
  return path.replace(/file$/, "map");
}

/** The bytes that `length` bytes from `start` of a file take on disk. */
export function pieceOnDisk(start: number, length: number): number {
  return onDisk(start + length) - Math.floor(start / DISK_BLOCK) * DISK_BLOCK;
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
