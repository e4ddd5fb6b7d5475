/** Replies whose content goes from a file to the kernel without coming here. */

import { closeSync, writeSync } from "node:fs";
import { isErrno } from "../../../cas/index.ts";
import { makePipe, splice } from "./libc.ts";
import { OUT_HEADER } from "./protocol.ts";

/** A run of an open file that is the content of a reply. */
export interface Lifted {
  readonly fd: number;
  readonly offset: number;
  readonly length: number;
}

/** From this size on (in bytes) it is worth the calls that it takes. */
export const LIFTED_MIN = 64 * 1024;

/**
 * Room for the largest request with its header; for an ordinary user, whose pipes are limited together,
 * for the largest that reading ahead makes.
 */
const PIPE_SIZES = [2 * 1024 * 1024, 512 * 1024] as const;
const PAGE = 4096;
/** The header takes a page of its own, and content that begins within one takes one more. */
const OVERHEAD = 2 * PAGE;

/** A pipe through which replies go to the device, one at a time. */
export class Lift {
  readonly #device: number;
  #pipe: { readonly from: number; readonly to: number } | undefined;
  /** The longest content that may be sent so, in bytes; 0 where the system does not let it be. */
  capacity = PIPE_SIZES[0] - OVERHEAD;

  constructor(device: number) {
    this.#device = device;
  }

  /**
   * Sends the reply that begins with the header in `header`. False where it could not be sent so: the
   * file does not have these bytes, or there is no pipe for them. Throws an error with an errno's name in
   * `code` where a call failed. The device has got all of the reply or nothing.
   */
  send(header: Buffer, { fd, offset, length }: Lifted): boolean {
    const pipe = this.#open();
    if (pipe === undefined || length > this.capacity) return false;
    let sent = false;
    try {
      writeSync(pipe.to, header, 0, OUT_HEADER);
      for (let done = 0; done < length; ) {
        const count = splice(fd, offset + done, pipe.to, length - done);
        if (count <= 0) return false;
        done += count;
      }
      sent = splice(pipe.from, undefined, this.#device, OUT_HEADER + length) === OUT_HEADER + length;
      return sent;
    } catch (error) {
      // A file system that cannot do it will not learn to.
      if (isErrno(error, "EINVAL", "EOPNOTSUPP")) this.capacity = 0;
      throw error;
    } finally {
      // What was left in the pipe must not come before the next reply.
      if (!sent) this.close();
    }
  }

  close(): void {
    if (this.#pipe === undefined) return;
    closeSync(this.#pipe.from);
    closeSync(this.#pipe.to);
    this.#pipe = undefined;
  }

  #open(): { readonly from: number; readonly to: number } | undefined {
    if (this.#pipe !== undefined || this.capacity === 0) return this.#pipe;
    const made = makePipe(PIPE_SIZES);
    this.#pipe = made;
    this.capacity = made === undefined ? 0 : made.size - OVERHEAD;
    return made;
  }
}
