import { closeSync, constants, fstatSync, lstatSync, openSync, readSync } from "node:fs";
import { LRUCache } from "lru-cache";
import { type Hash, hashOf, isErrno, MAX_BLOB_SIZE } from "../cas/index.ts";
import { type ContainerFiles, type ContainerName, isFileContainer } from "./containers.ts";

/** Blobs whose place and verification are remembered, about 500 bytes each. */
const REMEMBERED = 16384;

/** Where a blob's decoded bytes lie: an open, verified container. Valid until the next call of the cache. */
export interface Resident {
  readonly fd: number;
  readonly offset: number;
  readonly length: number;
}

/** What `open` finds out about a blob's bytes: verified, not there, or not what the name says. */
export type Opened = VerifiedSlice | "absent" | "damaged";

interface Container {
  readonly name: ContainerName;
  /** -1 while it is not open. */
  fd: number;
  inode: number;
  size: number;
  mtimeMs: number;
  ctimeMs: number;
  /** Counts the changes that were seen of the file; what was verified before one is verified again. */
  version: number;
  /** The version of which it is known whether all of it was verified by others, and whether it was. */
  asked: number;
  stamped: boolean;
  /** Those of its blobs that are remembered. */
  readonly blobs: Set<Hash>;
}

/** A blob in a container. */
export class VerifiedSlice implements Resident {
  readonly container: Container;
  readonly blob: Hash;
  readonly offset: number;
  readonly length: number;
  /** The container's version that was verified. */
  version = -1;

  constructor(container: Container, blob: Hash, offset: number, length: number) {
    this.container = container;
    this.blob = blob;
    this.offset = offset;
    this.length = length;
  }

  get fd(): number {
    return this.container.fd;
  }
}

/**
 * Open containers and what is known of their content. A blob's bytes are hashed when this thread
 * first meets them, and again whenever the file's inode, size or times are not those of then; the
 * answer outlives the descriptor, of which only so many are kept, since an open descriptor keeps an
 * evicted container's bytes allocated. An evicted container that is still open is as good as ever.
 */
export class VerifiedContainers {
  readonly #files: ContainerFiles;
  readonly #slices: LRUCache<Hash, VerifiedSlice>;
  readonly #containers = new Map<ContainerName, Container>();
  readonly #open: LRUCache<Container, number>;
  readonly #isStamped: (name: ContainerName, fd: number) => boolean;
  #buffer: Buffer | undefined;

  /**
   * @param descriptors how many are kept open
   * @param isStamped whether all of a file's container was verified, by whomever, since it last changed
   */
  constructor(files: ContainerFiles, descriptors: number, isStamped: (name: ContainerName, fd: number) => boolean) {
    this.#files = files;
    this.#isStamped = isStamped;
    this.#open = new LRUCache<Container, number>({
      max: descriptors,
      dispose: (fd, container) => {
        container.fd = -1;
        closeSync(fd);
      },
    });
    this.#slices = new LRUCache<Hash, VerifiedSlice>({
      max: REMEMBERED,
      dispose: ({ container }, blob) => {
        container.blobs.delete(blob);
        if (container.blobs.size > 0) return;
        this.#open.delete(container);
        this.#containers.delete(container.name);
      },
    });
  }

  /** A blob met before, verified again where its file has changed; undefined where it was not met. */
  recall(blob: Hash): Opened | undefined {
    const slice = this.#slices.get(blob);
    return slice === undefined ? undefined : this.#verify(slice);
  }

  /** True where the blob was met before. */
  has(blob: Hash): boolean {
    return this.#slices.has(blob);
  }

  /** The container in which a blob was met. */
  nameOf(blob: Hash): ContainerName | undefined {
    return this.#slices.peek(blob)?.container.name;
  }

  /** Opens container `name` and verifies a blob in it; without `offset` and `length` the blob is the whole container. */
  open(blob: Hash, name: ContainerName, offset: number, length: number | undefined): Opened {
    this.#slices.delete(blob);
    let container = this.#containers.get(name);
    if (container === undefined) {
      const unknown = { inode: 0, size: 0, mtimeMs: 0, ctimeMs: 0, version: 0, asked: -1, stamped: false };
      container = { name, fd: -1, ...unknown, blobs: new Set() };
      this.#containers.set(name, container);
    }
    const size = length ?? this.#files.lengthOf(name) ?? 0;
    const slice = new VerifiedSlice(container, blob, offset, size);
    container.blobs.add(blob);
    this.#slices.set(blob, slice);
    return this.#verify(slice);
  }

  /** Forgets a container and closes it. */
  drop(name: ContainerName): void {
    const container = this.#containers.get(name);
    if (container === undefined) return;
    for (const blob of [...container.blobs]) this.#slices.delete(blob);
  }

  /**
   * Forgets a blob whose bytes are wrong. Its own container is removed, unless another has come into
   * its place meanwhile; a file's container stays, less this blob, unless what stands there is no file.
   *
   * @returns the blob's place in a file's container that stays
   */
  discard(blob: Hash): { name: ContainerName; offset: number } | undefined {
    const slice = this.#slices.peek(blob);
    if (slice === undefined) return undefined;
    const { container, offset } = slice;
    const there = lstatSync(this.#files.pathOf(container.name), { throwIfNoEntry: false });
    if (isFileContainer(container.name) && (there === undefined || there.isFile())) {
      this.#slices.delete(blob);
      return { name: container.name, offset };
    }
    if (container.fd === -1 || there?.ino === container.inode) this.#files.remove(container.name);
    this.drop(container.name);
    return undefined;
  }

  /** Closes containers that were removed from the directory, so that their space comes free. */
  closeRemoved(): void {
    for (const [container, fd] of this.#open) if (fstatSync(fd).nlink === 0) this.#open.delete(container);
  }

  close(): void {
    this.#slices.clear();
  }

  #verify(slice: VerifiedSlice): Opened {
    const { container } = slice;
    const problem = this.#refresh(container);
    if (problem === undefined && (slice.version === container.version || this.#isVerified(slice))) return slice;
    if (problem === "absent") this.drop(container.name);
    return problem ?? "damaged";
  }

  /** Opens the container where it is not open, and looks whether it has changed. */
  #refresh(container: Container): "absent" | "damaged" | undefined {
    try {
      if (container.fd === -1) {
        // Whatever stands in the container's place must neither be followed nor block.
        const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
        container.fd = openSync(this.#files.pathOf(container.name), flags);
        this.#open.set(container, container.fd);
      } else {
        this.#open.get(container);
      }
      const info = fstatSync(container.fd);
      if (
        info.ino !== container.inode ||
        info.size !== container.size ||
        info.mtimeMs !== container.mtimeMs ||
        info.ctimeMs !== container.ctimeMs
      ) {
        container.stamped = false;
        container.version++;
        container.inode = info.ino;
        container.size = info.size;
        container.mtimeMs = info.mtimeMs;
        container.ctimeMs = info.ctimeMs;
      }
      return info.isFile() ? undefined : "damaged";
    } catch (error) {
      return isErrno(error, "ELOOP", "EIO", "ENXIO") ? "damaged" : "absent";
    }
  }

  #isVerified(slice: VerifiedSlice): boolean {
    const { container, offset, length } = slice;
    if (isFileContainer(container.name) && container.asked !== container.version) {
      container.asked = container.version;
      container.stamped = this.#isStamped(container.name, container.fd);
    }
    if (!container.stamped) return this.#matches(slice);
    if (offset + length > container.size) return false;
    slice.version = container.version;
    return true;
  }

  #matches(slice: VerifiedSlice): boolean {
    const { container, offset, length } = slice;
    if (length > MAX_BLOB_SIZE || offset + length > container.size) return false;
    this.#buffer ??= Buffer.allocUnsafeSlow(MAX_BLOB_SIZE);
    try {
      for (let done = 0; done < length; ) {
        const count = readSync(container.fd, this.#buffer, done, length - done, offset + done);
        if (count === 0) return false;
        done += count;
      }
    } catch {
      return false;
    }
    if (hashOf(this.#buffer.subarray(0, length)) !== slice.blob) return false;
    slice.version = container.version;
    return true;
  }
}
