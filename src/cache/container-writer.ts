import { closeSync, fstatSync, ftruncateSync, statSync, writeSync } from "node:fs";
import { blocksOf, type DirectWrites, writeFully } from "./direct-write.ts";
import { encodePiece, type Piece } from "./piece-map.ts";

/**
 * A large file's container and its map, open for writing from one blob to the next. An open descriptor keeps
 * the bytes of a container that was removed, so none is kept for longer than it is used.
 *
 * Blobs are written to the file that was opened and noted in the map that was opened with it, whatever lies
 * at their paths by then: no map speaks of another container's bytes. The descriptors are closed once
 * `retire` was called and nothing is being written.
 */
export class ContainerWriter {
  /** Of the file, in bytes. */
  readonly size: number;
  /** Set whenever it is about to be written to; for others to clear. */
  used = true;
  readonly #path: string;
  readonly #inode: number;
  readonly #fd: number;
  readonly #map: number;
  readonly #writes: DirectWrites;
  /** For writes past the page cache; opened when one is first due. */
  #direct: number | undefined;
  #underWay = 0;
  #retired = false;

  /**
   * Makes a file of `size` bytes of the open container.
   *
   * @param map descriptor of its map, for appending; this object's to close, as the container's is
   */
  constructor(path: string, fd: number, map: number, size: number, writes: DirectWrites) {
    this.#path = path;
    this.#fd = fd;
    this.#map = map;
    this.size = size;
    this.#writes = writes;
    const info = fstatSync(fd);
    this.#inode = info.ino;
    if (info.size !== size) ftruncateSync(fd, size);
  }

  /** True where the container is the one in its place, of its size and with its map. */
  isInPlace(): boolean {
    const there = statSync(this.#path, { throwIfNoEntry: false });
    return there?.ino === this.#inode && there.size === this.size && fstatSync(this.#map).nlink > 0;
  }

  /** True where the container is in no directory any more. */
  isRemoved(): boolean {
    return fstatSync(this.#fd).nlink === 0;
  }

  /** Writes and notes a blob. False where the container was removed meanwhile. */
  write(piece: Piece, content: Buffer): boolean {
    for (let at = 0; at < content.length; ) {
      at += writeSync(this.#fd, content, at, content.length - at, piece.offset + at);
    }
    return this.#note(piece);
  }

  /** The same without blocking this thread, and past the page cache where that can be. */
  async writeAsync(piece: Piece, content: Buffer): Promise<boolean> {
    this.#underWay++;
    try {
      await this.#writeBytes(content, piece.offset);
      return this.#note(piece);
    } finally {
      this.#underWay--;
      this.#closeUnused();
    }
  }

  /** Closes the descriptors as soon as nothing is being written. */
  retire(): void {
    this.#retired = true;
    this.#closeUnused();
  }

  /**
   * The page cache and what is written past it agree for all readers, whatever the order of these writes. Nothing is
   * known to have reached the disk, as ever: stamps end with the machine's run, and then blobs are hashed again.
   */
  async #writeBytes(content: Buffer, position: number): Promise<void> {
    const blocks = this.#writes.on ? blocksOf(content, position) : undefined;
    if (blocks !== undefined) {
      this.#direct ??= this.#writes.open(this.#fd);
      const direct = this.#direct;
      if (direct !== undefined && (await this.#writes.write(direct, this.#fd, content, blocks, position))) return;
    }
    await writeFully(this.#fd, content, position);
  }

  /** After the bytes: a note is never ahead of them. */
  #note(piece: Piece): boolean {
    if (this.isRemoved()) return false;
    writeSync(this.#map, encodePiece(piece));
    return true;
  }

  #closeUnused(): void {
    if (!this.#retired || this.#underWay > 0) return;
    closeSync(this.#fd);
    closeSync(this.#map);
    if (this.#direct !== undefined) closeSync(this.#direct);
  }
}
