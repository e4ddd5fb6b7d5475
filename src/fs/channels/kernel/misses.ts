/** Reads that wait for blobs: answered on the main thread, straight to the kernel. */

import { writevSync } from "node:fs";
import type { Fetcher } from "../../../cache/index.ts";
import { isErrno } from "../../../cas/index.ts";
import { errnoOf, FsError } from "../../errno.ts";
import type { Meter } from "../meter.ts";
import { monotonicMs, READ_FETCHED } from "./counts.ts";
import type { Miss } from "./dispatch.ts";
import { OUT_HEADER } from "./protocol.ts";
import { writeHeader } from "./reply.ts";

/** Buffers that one call writes at most: a reply in several calls is none. */
const MOST_BUFFERS = 1024;

/** The reads of one mount that wait. Each is answered once: with content, an error, or EINTR when its reader gives up. */
export class Misses {
  readonly #fd: number;
  readonly #fetcher: Fetcher;
  readonly #meter: Meter;
  readonly #failed: (error: unknown) => void;
  readonly #waiting = new Map<string, Miss>();

  constructor(fd: number, fetcher: Fetcher, meter: Meter, failed: (error: unknown) => void) {
    this.#fd = fd;
    this.#fetcher = fetcher;
    this.#meter = meter;
    this.#failed = failed;
  }

  start(miss: Miss): void {
    const key = keyOf(miss.uniqueLow, miss.uniqueHigh);
    this.#waiting.set(key, miss);
    this.#fetcher
      .deliver(miss.plan, (pieces) => this.#answer(key, miss, pieces))
      .catch((error: unknown) => {
        if (this.#waiting.get(key) === miss) this.#failed(error);
        this.#answer(key, miss, [], errnoOf(error));
      });
  }

  /** Answers at once that the read was interrupted; does nothing where it has its answer. */
  interrupt(uniqueLow: number, uniqueHigh: number): void {
    const key = keyOf(uniqueLow, uniqueHigh);
    const miss = this.#waiting.get(key);
    if (miss !== undefined) this.#answer(key, miss, [], errnoOf(new FsError("EINTR")));
  }

  /** Answers nothing any more; afterwards the descriptor may be closed. */
  stop(): void {
    this.#waiting.clear();
  }

  #answer(key: string, miss: Miss, pieces: readonly Buffer[], errno = 0): void {
    if (this.#waiting.get(key) !== miss) return;
    this.#waiting.delete(key);
    this.#send(miss, pieces, errno);
    this.#meter.note(READ_FETCHED, monotonicMs() - miss.since);
  }

  #send(miss: Miss, pieces: readonly Buffer[], errno: number): void {
    const header = Buffer.alloc(OUT_HEADER);
    const length = OUT_HEADER + (errno === 0 ? miss.length : 0);
    writeHeader(new DataView(header.buffer, header.byteOffset), length, errno, miss.uniqueLow, miss.uniqueHigh);
    try {
      // Copies to a waiting reader and never blocks, and so leaves no write behind when the descriptor is closed.
      writevSync(this.#fd, [header, ...(pieces.length < MOST_BUFFERS ? pieces : [Buffer.concat(pieces)])]);
    } catch (error) {
      if (isErrno(error, "ENOENT", "ENODEV", "ECONNABORTED", "EPERM")) return;
      this.#failed(error);
      // Whoever asked waits until something is accepted.
      if (errno === 0) this.#send(miss, [], errnoOf(new FsError("EIO")));
    }
  }
}

function keyOf(uniqueLow: number, uniqueHigh: number): string {
  return `${uniqueHigh}:${uniqueLow}`;
}
