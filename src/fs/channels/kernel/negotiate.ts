/** What is agreed with the kernel at the start of a mount. */

import { InitFlag, MAJOR, MAX_IO, MINOR } from "./protocol.ts";
import type { InitReply } from "./reply.ts";

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

/** The reply to INIT: the flags wanted among those offered, and the largest requests. */
export function negotiate(init: InitRequest): InitReply {
  let flags = 0;
  for (const flag of WANTED) if (offers(init, flag)) flags |= 1 << flag;
  const large = offers(init, InitFlag.MAX_PAGES);
  return {
    major: MAJOR,
    minor: Math.min(init.minor, MINOR),
    maxReadahead: init.maxReadahead,
    flags: flags >>> 0,
    flags2: 0,
    maxBackground: MAX_BACKGROUND,
    maxWrite: large ? MAX_IO : 32 * PAGE,
    maxPages: large ? MAX_IO / PAGE : 0,
  };
}
