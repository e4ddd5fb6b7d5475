/** What is agreed with the kernel at the start of a mount. */

import type { OpenMode } from "../../open-mode.ts";
import { InitFlag, MAJOR, MAX_IO, MINOR } from "./protocol.ts";
import type { InitReply } from "./reply.ts";

/**
 * What was agreed and holds for as long as the connection does: a daemon that takes it over is told
 * by the one before, because the kernel asks no second time.
 */
export interface Session {
  readonly agreed: InitReply;
  /** How files are opened. */
  readonly openMode: OpenMode;
  /** OPEN is answered with ENOSYS, and the kernel opens files without asking. */
  readonly noOpen: boolean;
  /** The same for OPENDIR. */
  readonly noOpendir: boolean;
  /** The kernel sends requests again that wait for their reply, when it is notified to. */
  readonly resends: boolean;
}

/** What the kernel offers in INIT. */
export interface InitRequest {
  readonly major: number;
  readonly minor: number;
  readonly maxReadahead: number;
  readonly flags: number;
  readonly flags2: number;
}

/**
 * Wanted wherever it is offered. EXPLICIT_INVAL_DATA keeps pages through attribute changes: nobody
 * but the kernel changes a file. HANDLE_KILLPRIV_V2 spares a GETXATTR before each write; the
 * namespace clears setuid and setgid bits then.
 */
const WANTED = [
  InitFlag.ASYNC_READ,
  InitFlag.BIG_WRITES,
  InitFlag.DO_READDIRPLUS,
  InitFlag.ASYNC_DIO,
  InitFlag.PARALLEL_DIROPS,
  InitFlag.MAX_PAGES,
  InitFlag.CACHE_SYMLINKS,
  InitFlag.EXPLICIT_INVAL_DATA,
  InitFlag.HANDLE_KILLPRIV_V2,
];

/** Requests of read-ahead that may wait at once: enough to keep several fetches from a store under way. */
const MAX_BACKGROUND = 64;

const PAGE = 4096;

/** True where the kernel offers the flag. */
export function offers(init: InitRequest, flag: number): boolean {
  if (flag < 32) return (init.flags & (1 << flag)) !== 0;
  return (init.flags & (1 << InitFlag.INIT_EXT)) !== 0 && (init.flags2 & (1 << (flag - 32))) !== 0;
}

/** What one mount wants beyond what all do. */
export interface Wishes {
  /** How deep the file systems of files that it hands to the kernel are stacked, 1 for one on a disk; 0 to hand over none. */
  readonly stackDepth: number;
  /** To be told of O_TRUNC with the open that has it, instead of by a request of its own. */
  readonly truncatingOpens: boolean;
}

/** The reply to INIT: the flags wanted among those offered, and the largest requests. */
export function negotiate(init: InitRequest, wishes: Wishes): InitReply {
  let flags = 0;
  for (const flag of WANTED) if (offers(init, flag)) flags |= 1 << flag;
  if (wishes.truncatingOpens && offers(init, InitFlag.ATOMIC_O_TRUNC)) flags |= 1 << InitFlag.ATOMIC_O_TRUNC;
  const passthrough = wishes.stackDepth > 0 && offers(init, InitFlag.PASSTHROUGH);
  if (passthrough) flags |= 1 << InitFlag.INIT_EXT;
  const large = offers(init, InitFlag.MAX_PAGES);
  return {
    major: MAJOR,
    minor: Math.min(init.minor, MINOR),
    // The kernel takes the smaller of this and what is in force, which may have been raised already.
    maxReadahead: Math.max(init.maxReadahead, MAX_IO),
    flags: flags >>> 0,
    flags2: passthrough ? 1 << (InitFlag.PASSTHROUGH - 32) : 0,
    maxBackground: MAX_BACKGROUND,
    maxWrite: large ? MAX_IO : 32 * PAGE,
    maxPages: large ? MAX_IO / PAGE : 0,
    maxStackDepth: passthrough ? wishes.stackDepth : 0,
  };
}
