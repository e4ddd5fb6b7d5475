import { closeSync, constants, fstatSync, openSync, readSync, statfsSync } from "node:fs";
import { DatamonError, faultPoint, type Hash, ioError } from "../cas/index.ts";
import { ContainerFiles, type ContainerName, fileContainer, onDisk, pieceOnDisk } from "./containers.ts";
import { GuardedIndex, isTrouble } from "./guarded-index.ts";
import type { Piece } from "./piece-map.ts";
import type { Home } from "./plan.ts";
import type { Reservation, ResidencyIndex } from "./residency.ts";
import { sealed, stampOf } from "./stamp.ts";
import { type Resident, VerifiedContainers, type VerifiedSlice } from "./verified.ts";

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
/** The default size limit is this, or half of what the disk could give to the cache if that is less. */
const DEFAULT_LIMIT = 50 * GIB;
/** Eviction goes below the limit by a twentieth of it, but by no more than this, so that no insert stalls on it. */
const EVICTION_STEP = 256 * MIB;
/** How often last uses are written to the index, and removed containers and replaced indexes looked for. */
const MAINTENANCE_MS = 5000;
/** Descriptors kept open may hold a twentieth of the limit in evicted containers of this size, within bounds. */
const TYPICAL_CONTAINER = 4 * MIB;
const MIN_DESCRIPTORS = 8;
const MAX_DESCRIPTORS = 256;
/** A file is assembled in one container where it is no more than this part of the limit: it is evicted as one. */
const LARGEST_SHARE = 0.5;

export interface DiskCacheOptions {
  /** Bytes that containers may take on disk; by default the smaller of 50 GiB and half of free space and cache together. */
  readonly sizeLimit?: number;
  /** Told once when the cache stops accepting content; it goes on serving what it has. */
  onDegraded?(reason: string): void;
}

/** Bytes on disk that are counted for the map of a file's container: one block has the notes of 85 blobs. */
const MAP_SIZE = 4096;

/** A blob with its place in the container of its file. */
interface Placed extends Piece {
  readonly name: ContainerName;
  /** Of the file, in bytes. */
  readonly size: number;
  /** Bytes that it takes there. */
  readonly onDisk: number;
}

export interface CacheStatus {
  readonly directory: string;
  /** Bytes that containers take on disk, including those being written. */
  readonly bytes: number;
  /** This opener's size limit in bytes. */
  readonly limit: number;
  readonly containers: number;
  readonly catalogs: number;
  readonly catalogBytes: number;
  /** Why nothing new is accepted at present. */
  readonly degraded: string | undefined;
}

/** Counts since the cache was opened in this thread. */
export interface DiskCacheStats {
  /** Blobs that this thread found for the first time, or again after it forgot them. */
  met: number;
  hits: number;
  misses: number;
  inserted: number;
  evicted: number;
  /** Containers that were removed because their bytes were wrong. */
  damaged: number;
}

/**
 * Decoded blobs in a directory on disk, shared by any number of processes and threads, each with a
 * `DiskCache` of its own. All calls but `insertAsync` are synchronous; nothing but `open` throws for
 * trouble with the directory: content that cannot be read is not resident, and content that cannot
 * be written is not kept.
 *
 * No byte is served that was not hashed, by this thread or for `setWhole`, since the file last changed
 * (as far as its times and size tell). There are no pins: an evicted container's open descriptor stays good, and a blob that is
 * wanted again is fetched again.
 */
export class DiskCache {
  readonly directory: string;
  readonly limit: number;
  readonly stats: DiskCacheStats = { met: 0, hits: 0, misses: 0, inserted: 0, evicted: 0, damaged: 0 };
  readonly #files: ContainerFiles;
  readonly #containers: VerifiedContainers;
  readonly #private: boolean;
  readonly #timer: NodeJS.Timeout;
  /** Last uses that the index has not been told yet. */
  readonly #uses = new Map<ContainerName, number>();
  readonly #index: GuardedIndex;
  #lastMaintenance = Date.now();

  private constructor(files: ContainerFiles, options: DiskCacheOptions) {
    this.directory = files.directory;
    this.#files = files;
    this.#private = files.isPrivate();
    this.#index = new GuardedIndex(files, options.onDegraded);
    this.limit = options.sizeLimit ?? defaultLimit(this.directory, this.#cachedBytes());
    const descriptors = Math.floor(this.limit / 20 / TYPICAL_CONTAINER);
    this.#containers = new VerifiedContainers(
      files,
      Math.min(Math.max(descriptors, MIN_DESCRIPTORS), MAX_DESCRIPTORS),
      (name, fd) => {
        const stamp = this.#index.ask((index) => index.stamp(name));
        return stamp !== undefined && stamp === this.#sealed(name, stampOf(fd));
      },
    );
    this.#timer = setInterval(() => this.#maintain(), MAINTENANCE_MS).unref();
  }

  /**
   * Opens the cache in `directory`, which is made where it is missing. A directory that cannot be
   * written (read-only, full) still serves what it holds. Throws where it can neither be made nor read.
   */
  static open(directory: string, options: DiskCacheOptions = {}): DiskCache {
    const files = new ContainerFiles(directory);
    try {
      files.prepare();
      files.removeLeftovers();
    } catch (error) {
      if (!files.isReadable()) throw ioError(`use the cache directory ${directory}`, error);
    }
    return new DiskCache(files, options);
  }

  /** Where the blob's bytes lie on disk. Good until the next call of this cache or the end of the synchronous turn. */
  locate(hash: Hash): Resident | undefined {
    const now = Date.now();
    if (now - this.#lastMaintenance > MAINTENANCE_MS) this.#maintain();
    let found = this.#recall(hash);
    if (found === undefined) {
      found = this.#lookUp(hash, now);
      if (found !== undefined) this.stats.met++;
    }
    if (found === undefined) {
      this.stats.misses++;
      return undefined;
    }
    this.stats.hits++;
    this.#uses.set(found.container.name, now);
    return found;
  }

  /** True where the blob seems to be resident; its bytes are not looked at. */
  has(hash: Hash): boolean {
    if (this.#containers.has(hash) || this.#files.lengthOf(hash) !== undefined) return true;
    return (this.#index.ask((index) => index.find(hash)) ?? []).length > 0;
  }

  /**
   * Reads the part of a blob that starts at `offset` into `target` at `at`. False where the blob is
   * not resident. Throws where the blob is shorter than that.
   */
  read(hash: Hash, offset: number, length: number, target: Buffer, at: number): boolean {
    const resident = this.locate(hash);
    if (resident === undefined) return false;
    if (offset + length > resident.length) throw beyondBlob(hash, offset, length, resident.length);
    return this.#readInto(hash, resident, offset, length, target, at);
  }

  /** The whole blob in a new buffer, or undefined where it is not resident. */
  load(hash: Hash): Buffer | undefined {
    const resident = this.locate(hash);
    if (resident === undefined) return undefined;
    const content = Buffer.allocUnsafeSlow(resident.length);
    return this.#readInto(hash, resident, 0, content.length, content, 0) ? content : undefined;
  }

  /**
   * Keeps a blob's decoded bytes, which the caller has verified: with a `home` in the container of
   * that file, or in one of its own. False where they could not be kept: larger than the limit, or
   * the directory does not take them; then nothing is tried for 30 seconds.
   */
  insert(hash: Hash, content: Buffer, home?: Home): boolean {
    const piece = this.#pieceOf(hash, content, home);
    if (piece !== undefined) {
      const admitted = this.#index.attempt(() => this.#admitPiece(piece));
      if (admitted !== "admitted") return admitted === "resident";
      return this.#settlePiece(
        piece,
        this.#index.attempt(() => this.#files.writePiece(piece.name, piece.size, piece, content)),
      );
    }
    const place = this.#index.attempt(() => this.#admit(hash, content.length)) ?? "refused";
    if (typeof place === "string") return place === "resident";
    return this.#settle(
      this.#index.attempt(() => this.#publish(hash, content.length, this.#files.writeTemporary(content))),
      place,
    );
  }

  /** The same, with the bytes written by another thread meanwhile. */
  async insertAsync(hash: Hash, content: Buffer, home?: Home): Promise<boolean> {
    const piece = this.#pieceOf(hash, content, home);
    if (piece !== undefined) return await this.#insertPiece(piece, content);
    const place = this.#index.attempt(() => this.#admit(hash, content.length)) ?? "refused";
    if (typeof place === "string") return place === "resident";
    const temporary = await this.#index.attemptAsync(() => this.#files.writeTemporaryAsync(content));
    if (temporary === undefined) return this.#settle(undefined, place);
    const published = this.#index.attempt(() => this.#publish(hash, content.length, temporary));
    if (!published) this.#files.removeTemporary(temporary);
    return this.#settle(published, place);
  }

  /**
   * A new descriptor, for the caller to close, of the container of a file that is whole and was
   * verified blob by blob since it last changed, as far as its times and size tell; undefined where
   * there is none.
   */
  openWhole(file: Hash): number | undefined {
    const name = fileContainer(file);
    const stamp = this.#index.ask((index) => index.stamp(name));
    if (stamp === undefined) return undefined;
    const fd = this.#openFile(name);
    if (fd === undefined) return undefined;
    if (this.#sealed(name, stampOf(fd)) === stamp) {
      this.#uses.set(name, Date.now());
      return fd;
    }
    closeSync(fd);
    return undefined;
  }

  /** The same, whole or not, and verified or not. */
  openPartial(file: Hash): number | undefined {
    return this.#openFile(fileContainer(file));
  }

  /** The blobs that are in a file's container, as the index has it. */
  piecesOf(file: Hash): Piece[] {
    return this.#index.ask((index) => index.pieces(fileContainer(file))) ?? [];
  }

  /** Notes that the container of `file` behind the descriptor is whole and was verified while its stamp was `stamp`. */
  setWhole(file: Hash, fd: number, stamp: string): boolean {
    if (stampOf(fd) !== stamp) return false;
    const size = fstatSync(fd).blocks * 512 + MAP_SIZE;
    const name = fileContainer(file);
    const note = (index: ResidencyIndex) => {
      index.setStamp(name, this.#sealed(name, stamp), size);
      return true;
    };
    return this.#index.attempt(() => this.#index.write(note)) === true;
  }

  /** Copies a blob that is resident elsewhere to its place in a file's container, and removes the container that held it alone. */
  async moveHome(hash: Hash, home: Home): Promise<boolean> {
    const content = this.load(hash);
    const piece = content && this.#pieceOf(hash, content, home);
    if (content === undefined || piece === undefined || !(await this.#insertPiece(piece, content, true))) return false;
    if (this.#files.lengthOf(hash) !== undefined) {
      this.#index.attempt(() => {
        this.#containers.drop(hash);
        this.#files.remove(hash);
        this.#index.write((index) => index.remove(index.find(hash).filter(({ name }) => name === hash)));
      });
    }
    return true;
  }

  /** A file's container is found to hold what is not the file's; its blobs are fetched again. */
  removeFile(file: Hash): void {
    const name = fileContainer(file);
    this.stats.damaged++;
    this.#index.attempt(() => {
      this.#containers.drop(name);
      this.#files.remove(name);
      this.#index.write((index) => index.remove(index.all().filter((seen) => seen.name === name)));
    });
  }

  /** A blob found to be wrong in a file's container. */
  dropPiece(file: Hash, { blob, offset }: Piece): void {
    this.stats.damaged++;
    this.#index.attempt(() => this.#index.write((index) => index.removePiece(fileContainer(file), blob, offset)));
  }

  /** What is in the cache, by all processes. */
  status(): CacheStatus {
    const { count, bytes } = this.#files.catalogs();
    return {
      directory: this.directory,
      bytes: this.#cachedBytes(),
      limit: this.limit,
      containers: this.#index.ask((index) => index.containers()) ?? [...this.#files.list()].length,
      catalogs: count,
      catalogBytes: bytes,
      degraded: this.#index.degraded,
    };
  }

  /** Removes all containers and catalogs and returns the bytes freed. Whoever uses one meanwhile fetches it again. */
  clear(): number {
    const rows = this.#index.attempt(() => this.#index.write((index) => index.all())) ?? [];
    for (const { name } of rows) this.#containers.drop(name);
    try {
      const freed = this.#files.removeAll() + this.#files.removeCatalogs();
      this.#index.attempt(() => this.#index.write((index) => index.remove(rows)));
      return freed;
    } catch (error) {
      throw ioError(`clear the cache directory ${this.directory}`, error);
    }
  }

  /** Writes what the index has not been told yet and closes everything. What is inserted later is not kept. */
  close(): void {
    if (this.#index.closed) return;
    clearInterval(this.#timer);
    this.#index.close(() => this.#flush());
    this.#containers.close();
    this.#files.close();
  }

  /** False where the container turns out to be cut short or unreadable; then it is discarded. */
  #readInto(hash: Hash, resident: Resident, offset: number, length: number, target: Buffer, at: number): boolean {
    for (let done = 0; done < length; ) {
      let count = 0;
      try {
        count = readSync(resident.fd, target, at + done, length - done, resident.offset + offset + done);
      } catch (error) {
        if (!isTrouble(error)) throw error;
      }
      if (count === 0) {
        this.#discard(hash);
        return false;
      }
      done += count;
    }
    return true;
  }

  #recall(hash: Hash): VerifiedSlice | undefined {
    const opened = this.#containers.recall(hash);
    if (opened === "damaged") this.#discard(hash);
    return typeof opened === "string" ? undefined : opened;
  }

  /** Looks in the index, or else, since a blob's container has the blob's name, for the container itself. */
  #lookUp(hash: Hash, now: number): VerifiedSlice | undefined {
    if (this.#index.closed) return undefined;
    const rows = this.#index.ask((index) => index.find(hash)) ?? [];
    for (const row of rows) {
      if (row.name === hash) continue;
      const opened = this.#containers.open(hash, row.name, row.offset, row.length);
      if (typeof opened !== "string") return opened;
      if (opened === "damaged") this.#discard(hash);
      else if (this.#files.lengthOf(row.name) === undefined) this.#forget(row.name, hash);
    }
    const row = rows.find(({ name }) => name === hash);
    const opened = this.#containers.open(hash, hash, 0, row?.length);
    if (opened === "damaged") {
      this.#discard(hash);
      return undefined;
    }
    if (opened === "absent") {
      if (row?.complete === 1 && this.#files.lengthOf(hash) === undefined) this.#forget(hash, hash);
      return undefined;
    }
    const { length } = opened;
    if (row?.complete !== 1) this.#index.tidy((index) => index.publish(hash, length, onDisk(length), now));
    return opened;
  }

  /** Removes what has the wrong bytes, so that the blob is fetched again. */
  #discard(hash: Hash): void {
    this.stats.damaged++;
    const name = this.#containers.nameOf(hash) ?? hash;
    const place = this.#index.attempt(() => this.#containers.discard(hash));
    if (place === undefined) this.#forget(name, hash);
    else this.#index.tidy((index) => index.removePiece(place.name, hash, place.offset));
  }

  /** Removes the row of a container whose file is gone. */
  #forget(name: ContainerName, hash: Hash): void {
    this.#index.tidy((index) => index.remove(index.find(hash).filter((row) => row.name === name)));
  }

  /** Where a blob goes in the container of its file; undefined where it is to have a container of its own. */
  #pieceOf(blob: Hash, content: Buffer, home: Home | undefined): Placed | undefined {
    if (home === undefined || home.size > this.limit * LARGEST_SHARE) return undefined;
    const { file, size, start: offset, length } = home;
    if (content.length !== length || offset + length > size) return undefined;
    return { name: fileContainer(file), size, blob, offset, length, onDisk: pieceOnDisk(offset, length) };
  }

  async #insertPiece(piece: Placed, content: Buffer, copy = false): Promise<boolean> {
    const admitted = this.#index.attempt(() => this.#admitPiece(piece, copy));
    if (admitted !== "admitted") return admitted === "resident";
    const { name, size } = piece;
    const written = await this.#index.attemptAsync(() => this.#files.writePieceAsync(name, size, piece, content));
    return this.#settlePiece(piece, written);
  }

  /** Makes room for a piece and counts it, unless it is there, or anywhere else where no `copy` is wanted. */
  #admitPiece(piece: Placed, copy = false): "resident" | "admitted" {
    const { name, blob, offset } = piece;
    const isThere = (container: ContainerName) => this.#files.lengthOf(container) !== undefined;
    const admit = (index: ResidencyIndex): number | undefined => {
      const rows = index.find(blob);
      const resident = copy
        ? rows.some((row) => row.name === name && row.offset === offset)
        : isThere(blob) || rows.some((row) => row.name !== blob && isThere(row.name));
      return resident ? undefined : index.grow(name, piece.onDisk + (isThere(name) ? 0 : MAP_SIZE), Date.now());
    };
    const bytes = this.#index.write((index) => index.atOnce(() => admit(index)));
    if (bytes === undefined) return "resident";
    faultPoint("cache", "reserved");
    if (bytes > this.limit) this.#makeRoom(name);
    return "admitted";
  }

  /** @param written false where the container was removed meanwhile, and with it what was counted for the piece */
  #settlePiece(piece: Placed, written: boolean | undefined): boolean {
    if (written === false) return false;
    const published =
      written &&
      this.#index.attempt(() => {
        faultPoint("cache", "written");
        this.#index.write((index) => {
          if (index.addPiece(piece.name, piece, piece.onDisk)) return;
          // Its row was removed with a file that was there before this one.
          index.grow(piece.name, piece.onDisk + MAP_SIZE, Date.now());
          index.addPiece(piece.name, piece, piece.onDisk);
        });
        this.stats.inserted++;
        return true;
      });
    if (published) this.#index.recovered();
    else this.#index.undo((index) => index.shrink(piece.name, piece.onDisk));
    return published === true;
  }

  /** Where others can write, too, nobody else's word is taken for what was verified. */
  #sealed(name: ContainerName, stamp: string): string {
    return this.#private ? stamp : sealed(name, stamp);
  }

  #openFile(name: ContainerName): number | undefined {
    try {
      const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
      return openSync(this.#files.pathOf(name), flags);
    } catch (error) {
      if (!isTrouble(error)) throw error;
      return undefined;
    }
  }

  /** Makes room for a new container and counts it, or says why not. */
  #admit(hash: Hash, length: number): Reservation | "resident" | "refused" {
    const size = onDisk(length);
    if (size > this.limit) return "refused";
    if (this.#files.lengthOf(hash) === length) {
      this.#index.write((index) => index.publish(hash, length, size, Date.now()));
      return "resident";
    }
    const reservation = this.#index.write((index) => index.reserve(hash, length, size, Date.now()));
    faultPoint("cache", "reserved");
    this.#makeRoom(hash);
    return reservation;
  }

  #publish(hash: Hash, length: number, temporary: string): true {
    faultPoint("cache", "written");
    this.#files.publish(temporary, hash);
    faultPoint("cache", "renamed");
    this.#index.write((index) => index.publish(hash, length, onDisk(length), Date.now()));
    this.stats.inserted++;
    return true;
  }

  /** Takes the reservation back where the container did not come into place. */
  #settle(published: true | undefined, reservation: Reservation): boolean {
    if (published) this.#index.recovered();
    else {
      this.#index.undo((index) => {
        if (this.#files.lengthOf(reservation.name) === undefined) index.remove([reservation]);
      });
    }
    return published === true;
  }

  /** Evicts until the containers, with the one reserved, are within the limit. */
  #makeRoom(reserved: ContainerName): void {
    for (;;) {
      const excess = this.#index.write((index) => index.bytes()) - this.limit;
      if (excess <= 0) return;
      this.#flush();
      const wanted = excess + Math.min(this.limit / 20, EVICTION_STEP);
      const victims = this.#index.write((index) => index.oldest(wanted, reserved));
      if (victims.length === 0) return;
      for (const { name } of victims) {
        this.#containers.drop(name);
        this.#files.remove(name);
      }
      this.#index.write((index) => index.remove(victims));
      this.stats.evicted += victims.length;
    }
  }

  #maintain(): void {
    this.#lastMaintenance = Date.now();
    this.#index.attempt(() => this.#flush());
    this.#containers.closeRemoved();
    this.#files.closeIdle();
  }

  #flush(): void {
    const uses = [...this.#uses];
    this.#uses.clear();
    if (uses.length > 0 && this.#index.writable) this.#index.write((index) => index.touch(uses));
  }

  #cachedBytes(): number {
    const counted = this.#index.ask((index) => index.bytes());
    return counted ?? [...this.#files.list()].reduce((sum, { allocated }) => sum + allocated, 0);
  }
}

function defaultLimit(directory: string, cached: number): number {
  try {
    const { bavail, bsize } = statfsSync(directory);
    return Math.min(DEFAULT_LIMIT, Math.floor((bavail * bsize + cached) / 2));
  } catch {
    return DEFAULT_LIMIT;
  }
}

/** The error for an extent that reaches beyond its blob: the catalog and the store do not fit together. */
export function beyondBlob(hash: Hash, offset: number, length: number, size: number): DatamonError {
  return new DatamonError("damaged", `blob ${hash} has ${size} bytes, but a file refers to ${offset}+${length} in it`);
}
