/**
 * The numbers of the FUSE protocol (`<linux/fuse.h>`, protocol 7). Layouts are in `request.ts` and
 * `reply.ts`, which read and write them; all integers are in the machine's byte order, which is
 * little-endian on every machine that Node is built for and that has this channel.
 */

/** Protocol version that the codec knows. The kernel uses the lower of both minors. */
export const MAJOR = 7;
export const MINOR = 40;

/** Oldest minor whose INIT reply has the layout written here. */
export const OLDEST_MINOR = 23;

/** Bytes of `fuse_in_header` and `fuse_out_header`. */
export const IN_HEADER = 40;
export const OUT_HEADER = 16;

/** Most bytes of content in one READ or WRITE: the most that the kernel grants to an unprivileged mount. */
export const MAX_IO = 1024 * 1024;

/** What the kernel demands of a read buffer beyond the content of a WRITE: room for headers, one page. */
export const REQUEST_SIZE = MAX_IO + 4096;

export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  CREATE: 35,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  SYNCFS: 50,
} as const;

/** INIT flags, as bit numbers: 0 to 31 are in `flags`, 32 to 63 in `flags2`. */
export const InitFlag = {
  ASYNC_READ: 0,
  ATOMIC_O_TRUNC: 3,
  BIG_WRITES: 5,
  DO_READDIRPLUS: 13,
  ASYNC_DIO: 15,
  NO_OPEN_SUPPORT: 17,
  PARALLEL_DIROPS: 18,
  MAX_PAGES: 22,
  CACHE_SYMLINKS: 23,
  NO_OPENDIR_SUPPORT: 24,
  EXPLICIT_INVAL_DATA: 25,
  HANDLE_KILLPRIV_V2: 28,
  INIT_EXT: 30,
  PASSTHROUGH: 37,
  HAS_RESEND: 39,
} as const;

/** Bits of `open_flags` in the replies to OPEN, OPENDIR and CREATE. */
export const OpenFlag = {
  KEEP_CACHE: 1 << 1,
  CACHE_DIR: 1 << 3,
  PASSTHROUGH: 1 << 7,
} as const;

/** Bits of `valid` in SETATTR. */
export const SetattrBit = {
  MODE: 1 << 0,
  UID: 1 << 1,
  GID: 1 << 2,
  SIZE: 1 << 3,
  ATIME: 1 << 4,
  MTIME: 1 << 5,
  ATIME_NOW: 1 << 7,
  MTIME_NOW: 1 << 8,
  KILL_SUIDGID: 1 << 11,
} as const;

/** Bit of `open_flags` in OPEN with O_TRUNC: setuid and setgid bits have to go. */
export const OPEN_KILL_SUIDGID = 1 << 0;

/** Bit of `write_flags`: setuid and setgid bits have to go. */
export const WRITE_KILL_SUIDGID = 1 << 2;

/**
 * Seconds for which the kernel may keep an entry or attributes; it counts in 64 bits and clamps.
 * Snapshots never change, and all changes of an overlay come through the kernel that caches it.
 */
export const FOREVER = 0x7fffffff;

/** Code of the notification that an inode's attributes or pages are not what they were (`FUSE_NOTIFY_INVAL_INODE`). */
export const NOTIFY_INVAL_INODE = 2;

/** Code of the notification that has the kernel send again what waits for a reply (`FUSE_NOTIFY_RESEND`). */
export const NOTIFY_RESEND = 7;

/** In the upper half of a request's number: it was sent before, to a daemon that did not answer. */
export const RESENT = 0x8000_0000;
