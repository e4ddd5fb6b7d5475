/** Writing replies: one buffer that each reply is built in. */

import type { ByteString } from "../../../cas/index.ts";
import { isRegular } from "../../base.ts";
import type { Attr, FsStats } from "../../namespace.ts";
import { withoutSetId } from "../../overlay/contents.ts";
import { FOREVER, MAX_IO, OUT_HEADER } from "./protocol.ts";
import type { Request } from "./request.ts";

const ATTR_SIZE = 88;
const ENTRY_SIZE = 40 + ATTR_SIZE;
const DIRENT_SIZE = 24;
const BLOCK_SIZE = 4096;
const NS = 1_000_000_000;

/** Bytes that a directory entry takes in a reply to READDIR, or with its attributes to READDIRPLUS. */
export function direntSize(nameLength: number, plus: boolean): number {
  return (((plus ? ENTRY_SIZE : 0) + DIRENT_SIZE + nameLength + 7) >> 3) << 3;
}

/** A clock reading, in the two fields that the protocol has for it. */
const time = { secondsLow: 0, secondsHigh: 0, nanoseconds: 0 };
const words = new Uint32Array(2);
const wide = new BigInt64Array(words.buffer);

/**
 * Splits nanoseconds since the epoch into `time`. A listing needs three of these an entry, and
 * division of bigints would be most of its cost, so the division is done 16 bits at a time.
 */
function splitTime(ns: bigint): void {
  wide[0] = ns;
  const [low, high] = words as unknown as [number, number];
  if (high >= 0x8000_0000) {
    const nanoseconds = ((ns % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
    wide[0] = (ns - nanoseconds) / 1_000_000_000n;
    time.secondsLow = words[0]!;
    time.secondsHigh = words[1]!;
    time.nanoseconds = Number(nanoseconds);
    return;
  }
  const top = high % NS;
  const upper = top * 0x10000 + (low >>> 16);
  const upperQuotient = Math.floor(upper / NS);
  const lower = (upper - upperQuotient * NS) * 0x10000 + (low & 0xffff);
  const lowerQuotient = Math.floor(lower / NS);
  const seconds = upperQuotient * 0x10000 + lowerQuotient + Math.floor(high / NS) * 0x1_0000_0000;
  time.secondsLow = seconds % 0x1_0000_0000;
  time.secondsHigh = Math.floor(seconds / 0x1_0000_0000);
  time.nanoseconds = lower - lowerQuotient * NS;
}

/**
 * Seconds for which attributes may be kept. After a write that takes setuid and setgid bits away the
 * kernel asks for sizes and times again, and not for the mode.
 */
function attributeLifetime({ mode }: Attr): number {
  return isRegular(mode) && withoutSetId(mode) !== mode ? 0 : FOREVER;
}

/** What a reply to INIT says. */
export interface InitReply {
  readonly major: number;
  readonly minor: number;
  readonly maxReadahead: number;
  readonly flags: number;
  readonly flags2: number;
  readonly maxBackground: number;
  readonly maxWrite: number;
  readonly maxPages: number;
  /** How deep the file systems of files that are handed to the kernel may be stacked; 0 for none. */
  readonly maxStackDepth: number;
}

/** The reply being built. Bodies are written at an offset in the buffer; the result is the offset after them. */
export class Reply {
  readonly buffer: Buffer = Buffer.alloc(OUT_HEADER + MAX_IO);
  readonly #view = new DataView(this.buffer.buffer, this.buffer.byteOffset, this.buffer.length);

  /** Writes the header of a reply of `length` bytes in all; `errno` is 0 or the positive number of an error. */
  header(request: Request, length: number, errno = 0): number {
    writeHeader(this.#view, length, errno, request.uniqueLow, request.uniqueHigh);
    return length;
  }

  init(at: number, init: InitReply): number {
    const view = this.#view;
    this.buffer.fill(0, at, at + 64);
    view.setUint32(at, init.major, true);
    view.setUint32(at + 4, init.minor, true);
    view.setUint32(at + 8, init.maxReadahead, true);
    view.setUint32(at + 12, init.flags, true);
    view.setUint16(at + 16, init.maxBackground, true);
    view.setUint16(at + 18, Math.floor((init.maxBackground * 3) / 4), true);
    view.setUint32(at + 20, init.maxWrite, true);
    view.setUint32(at + 24, 1, true);
    view.setUint16(at + 28, init.maxPages, true);
    view.setUint32(at + 32, init.flags2, true);
    view.setUint32(at + 36, init.maxStackDepth, true);
    return at + 64;
  }

  /** `fuse_entry_out`: a name that leads to an inode. */
  entry(at: number, attr: Attr): number {
    const view = this.#view;
    this.#u64(at, attr.ino);
    this.#u64(at + 8, 0);
    this.#u64(at + 16, FOREVER);
    this.#u64(at + 24, attributeLifetime(attr));
    view.setUint32(at + 32, 0, true);
    view.setUint32(at + 36, 0, true);
    return this.attr(at + 40, attr);
  }

  /** `fuse_entry_out` for a name that leads nowhere, which the kernel then remembers. */
  noEntry(at: number): number {
    this.buffer.fill(0, at, at + ENTRY_SIZE);
    this.#u64(at + 16, FOREVER);
    return at + ENTRY_SIZE;
  }

  /** `fuse_attr_out`. */
  attributes(at: number, attr: Attr): number {
    this.#u64(at, attributeLifetime(attr));
    this.#u64(at + 8, 0);
    return this.attr(at + 16, attr);
  }

  /** `fuse_attr`. */
  attr(at: number, attr: Attr): number {
    const view = this.#view;
    this.#u64(at, attr.ino);
    this.#u64(at + 8, attr.size);
    this.#u64(at + 16, attr.blocks);
    splitTime(attr.mtimeNs);
    this.#time(at, 1);
    if (attr.atimeNs !== attr.mtimeNs) splitTime(attr.atimeNs);
    this.#time(at, 0);
    if (attr.ctimeNs !== attr.atimeNs) splitTime(attr.ctimeNs);
    this.#time(at, 2);
    view.setUint32(at + 60, attr.mode, true);
    view.setUint32(at + 64, attr.nlink, true);
    view.setUint32(at + 68, attr.uid, true);
    view.setUint32(at + 72, attr.gid, true);
    view.setUint32(at + 76, attr.rdev, true);
    view.setUint32(at + 80, BLOCK_SIZE, true);
    view.setUint32(at + 84, 0, true);
    return at + ATTR_SIZE;
  }

  /** `fuse_open_out`. `backing` is a number in the kernel's register of files, for the flag PASSTHROUGH. */
  open(at: number, handle: number, flags: number, backing = 0): number {
    this.#u64(at, handle);
    this.#view.setUint32(at + 8, flags, true);
    this.#view.setUint32(at + 12, backing, true);
    return at + 16;
  }

  /** `fuse_write_out`, and `fuse_getxattr_out`, which has the same form. */
  size(at: number, size: number): number {
    this.#u64(at, size);
    return at + 8;
  }

  /** `fuse_lseek_out`. */
  offset(at: number, offset: number): number {
    this.#u64(at, offset);
    return at + 8;
  }

  /** `fuse_statfs_out`. */
  statfs(at: number, stats: FsStats): number {
    const view = this.#view;
    this.buffer.fill(0, at, at + 80);
    this.#u64(at, stats.blocks);
    this.#u64(at + 8, stats.bfree);
    this.#u64(at + 16, stats.bavail);
    this.#u64(at + 24, stats.files);
    this.#u64(at + 32, stats.ffree);
    view.setUint32(at + 40, stats.bsize, true);
    view.setUint32(at + 44, stats.namemax, true);
    view.setUint32(at + 48, stats.bsize, true);
    return at + 80;
  }

  /** `fuse_dirent`. `position` is what the kernel asks with for what comes after; `type` is `st_mode >> 12`. */
  dirent(at: number, ino: number, position: number, name: ByteString, type: number): number {
    const view = this.#view;
    this.#u64(at, ino);
    this.#u64(at + 8, position);
    view.setUint32(at + 16, name.length, true);
    view.setUint32(at + 20, type, true);
    this.buffer.write(name, at + DIRENT_SIZE, "latin1");
    const end = at + DIRENT_SIZE + name.length;
    const next = at + direntSize(name.length, false);
    for (let pad = end; pad < next; pad++) this.buffer[pad] = 0;
    return next;
  }

  /** The empty `fuse_entry_out` before a dirent, for names that must not be looked up: `.` and `..`. */
  noLookup(at: number): number {
    this.buffer.fill(0, at, at + ENTRY_SIZE);
    return at + ENTRY_SIZE;
  }

  bytes(at: number, bytes: Buffer): number {
    bytes.copy(this.buffer, at);
    return at + bytes.length;
  }

  string(at: number, text: ByteString): number {
    return at + this.buffer.write(text, at, "latin1");
  }

  /** Writes what `splitTime` found as the attribute's time number `index`: 0 atime, 1 mtime, 2 ctime. */
  #time(at: number, index: number): void {
    this.#view.setUint32(at + 24 + 8 * index, time.secondsLow, true);
    this.#view.setUint32(at + 28 + 8 * index, time.secondsHigh, true);
    this.#view.setUint32(at + 48 + 4 * index, time.nanoseconds, true);
  }

  #u64(at: number, value: number): void {
    this.#view.setUint32(at, value % 0x1_0000_0000, true);
    this.#view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true);
  }
}

/** Writes `fuse_out_header` at the start of `view`. */
export function writeHeader(
  view: DataView,
  length: number,
  errno: number,
  uniqueLow: number,
  uniqueHigh: number,
): void {
  view.setUint32(0, length, true);
  view.setInt32(4, -errno, true);
  view.setUint32(8, uniqueLow, true);
  view.setUint32(12, uniqueHigh, true);
}
