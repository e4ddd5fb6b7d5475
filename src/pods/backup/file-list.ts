import { closeSync, openSync, rmSync, writeSync } from "node:fs";
import { type ByteString, DatamonError, ioError, isErrno, toBuffer } from "../../cas/index.ts";

/** Text held back until it is written, in bytes. */
const BATCH_BYTES = 64 * 1024;

/** A text file of paths being written, one a line, in the bytes of their names. */
export class FileList {
  readonly #file: string;
  readonly #fd: number;
  #waiting: Buffer[] = [];
  #bytes = 0;
  /** Paths in the list. */
  count = 0;
  /** Paths with a line break, which the list cannot hold. */
  unlisted = 0;

  /** Makes the file. Throws "exists" where there is one: lists of another run tell of other files. */
  constructor(file: string) {
    this.#file = file;
    try {
      this.#fd = openSync(file, "wx");
    } catch (error) {
      if (!isErrno(error, "EEXIST")) throw ioError(`make the list ${file}`, error);
      throw new DatamonError("exists", `the list ${file} is there already, from another run`, {
        hint: "Move it away, or give another directory for the lists.",
      });
    }
  }

  /** Whether a line can hold the path. */
  static canHold(path: ByteString): boolean {
    return !path.includes("\n");
  }

  add(path: ByteString): void {
    if (!FileList.canHold(path)) {
      this.unlisted++;
      return;
    }
    const line = toBuffer(`${path}\n` as ByteString);
    this.#waiting.push(line);
    this.#bytes += line.length;
    this.count++;
    if (this.#bytes >= BATCH_BYTES) this.#flush();
  }

  close(): void {
    try {
      this.#flush();
    } finally {
      closeSync(this.#fd);
    }
  }

  /** Closes and removes it. */
  discard(): void {
    closeSync(this.#fd);
    rmSync(this.#file, { force: true });
  }

  #flush(): void {
    const batch = Buffer.concat(this.#waiting);
    this.#waiting = [];
    this.#bytes = 0;
    try {
      for (let at = 0; at < batch.length; ) at += writeSync(this.#fd, batch, at);
    } catch (error) {
      throw ioError(`write the list ${this.#file}`, error);
    }
  }
}
