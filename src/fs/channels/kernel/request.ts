/** Reading requests: one buffer that each request is read into, and the fields of the one in it. */

import type { ByteString } from "../../../cas/index.ts";
import { FsError } from "../../errno.ts";
import type { Caller } from "../../namespace.ts";
import { IN_HEADER, REQUEST_SIZE, RESENT } from "./protocol.ts";

/** Above this, the upper half of a 64-bit number takes it past what a double holds exactly. */
const SAFE_HIGH = 2 ** 21;

/**
 * The request in the buffer. Fields of the body are read by their offset after the header and throw
 * `FsError` EINVAL where the request is too short for them.
 */
export class Request {
  /**
   * Filled, so that its pages are there: the kernel cannot add one for a process that is being killed, and answers
   * the request that it was copying with EIO instead of keeping it for the next daemon.
   */
  readonly buffer: Buffer = Buffer.alloc(REQUEST_SIZE, 1);
  readonly #view = new DataView(this.buffer.buffer, this.buffer.byteOffset, this.buffer.length);
  #end = 0;
  opcode = 0;
  /** The two halves of the number that the reply must carry. */
  uniqueLow = 0;
  uniqueHigh = 0;

  /**
   * Takes the `length` bytes that were read into the buffer as the current request.
   * False where not even a header is there, so that nobody could be answered.
   */
  load(length: number): boolean {
    if (length < IN_HEADER || length > this.buffer.length) return false;
    this.#end = length;
    this.opcode = this.#view.getUint32(4, true);
    this.uniqueLow = this.#view.getUint32(8, true);
    this.uniqueHigh = this.#view.getUint32(12, true);
    return true;
  }

  /** Throws EINVAL where the header's length is not what was read. */
  checkLength(): void {
    if (this.#view.getUint32(0, true) !== this.#end) throw new FsError("EINVAL", "length of a request");
  }

  /** The kernel sent it before, to a daemon that did not answer. */
  get isResent(): boolean {
    return this.uniqueHigh >= RESENT;
  }

  /** What names the request for as long as the connection lasts, sent once or again. */
  get id(): string {
    return `${this.uniqueHigh % RESENT}:${this.uniqueLow}`;
  }

  /** The inode that the request is about. */
  get ino(): number {
    return this.#wide(16);
  }

  get caller(): Caller {
    const view = this.#view;
    return { uid: view.getUint32(24, true), gid: view.getUint32(28, true), pid: view.getUint32(32, true) };
  }

  /** Bytes after the header. */
  get bodyLength(): number {
    return this.#end - IN_HEADER;
  }

  u32(offset: number): number {
    this.#need(offset, 4);
    return this.#view.getUint32(IN_HEADER + offset, true);
  }

  /** An inode number, handle, offset or length; EFBIG where a double cannot hold it exactly. */
  u64(offset: number): number {
    this.#need(offset, 8);
    return this.#wide(IN_HEADER + offset);
  }

  /** Nanoseconds since the epoch from signed 64-bit seconds and 32-bit nanoseconds; EOVERFLOW outside the years 1677 to 2262. */
  timeNs(secondsOffset: number, nanosecondsOffset: number): bigint {
    this.#need(secondsOffset, 8);
    const seconds = this.#view.getBigInt64(IN_HEADER + secondsOffset, true);
    const ns = seconds * 1_000_000_000n + BigInt(this.u32(nanosecondsOffset));
    if (BigInt.asIntN(64, ns) !== ns) throw new FsError("EOVERFLOW", "time beyond 64 bits of nanoseconds");
    return ns;
  }

  /** The NUL-terminated string at `offset`. */
  string(offset: number): ByteString {
    this.#need(offset, 1);
    const start = IN_HEADER + offset;
    const end = this.buffer.indexOf(0, start);
    if (end < 0 || end >= this.#end) throw new FsError("EINVAL", "string without an end");
    return this.buffer.toString("latin1", start, end) as ByteString;
  }

  /** `length` bytes at `offset`: a view that is valid until the next request is read. */
  bytes(offset: number, length: number): Buffer {
    this.#need(offset, length);
    return this.buffer.subarray(IN_HEADER + offset, IN_HEADER + offset + length);
  }

  #need(offset: number, length: number): void {
    if (IN_HEADER + offset + length > this.#end) throw new FsError("EINVAL", "request too short");
  }

  #wide(at: number): number {
    const high = this.#view.getUint32(at + 4, true);
    if (high >= SAFE_HIGH) throw new FsError("EFBIG", "number beyond 2^53");
    return high * 0x1_0000_0000 + this.#view.getUint32(at, true);
  }
}
