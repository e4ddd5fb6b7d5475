import { closeSync, constants, fstatSync, openSync } from "node:fs";
import { type ByteString, display, toFsPath } from "../bytes.ts";
import { DatamonError, ioError, isErrno } from "../errors.ts";
import type { FileStat } from "./source.ts";

const ATTEMPTS = 3;
/**
 * Timestamps may move in steps of the kernel's clock tick, 10 ms at most: a write right after
 * another can leave them as they were, so a file must have been at rest for longer than a tick
 * before its timestamps can show that it was not written meanwhile.
 */
const REST_MS = 12;

const FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
/** Reading for a bundle should not look like use; only a file's owner and root may ask for that. */
let noAtime = constants.O_NOATIME ?? 0;

const sleeper = new Int32Array(new SharedArrayBuffer(4));

/**
 * Reads a regular file as it is at one moment: what `read` answers counts only where the file's
 * size and timestamps were the same before and after; else it is called again, three times at most.
 * Blocks the thread. Throws a `DatamonError` that names the path; code `changed` where the file
 * never stood still, `unsupported` where it is not a regular file.
 *
 * @param read reads `stat.size` bytes from `fd`; undefined says that the file ended before that
 */
export function readStable<T>(
  path: ByteString,
  read: (fd: number, stat: FileStat) => T | undefined,
): { value: T; stat: FileStat } {
  try {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const fd = openForReading(path);
      try {
        const before = statAtRest(path, fd);
        const value = read(fd, before);
        if (value !== undefined && same(before, statOf(path, fd))) return { value, stat: before };
      } finally {
        closeSync(fd);
      }
    }
  } catch (error) {
    if (isErrno(error, "ELOOP", "ENXIO")) throw notRegular(path);
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw ioError(`read ${display(path)}`, error);
  }
  throw new DatamonError("changed", `${display(path)} changed each of the ${ATTEMPTS} times it was read`, {
    hint: "Run the command again when nothing writes to it.",
  });
}

function openForReading(path: ByteString): number {
  const fsPath = toFsPath(path);
  if (noAtime === 0) return openSync(fsPath, FLAGS);
  try {
    return openSync(fsPath, FLAGS | noAtime);
  } catch (error) {
    if (!isErrno(error, "EPERM")) throw error;
    noAtime = 0;
    return openSync(fsPath, FLAGS);
  }
}

function statAtRest(path: ByteString, fd: number): FileStat {
  const stat = statOf(path, fd);
  const rest = Date.now() - Number(stat.ctimeNs / 1_000_000n);
  // A change in the future comes from another machine's clock, of which nothing is known.
  if (rest < 0 || rest >= REST_MS) return stat;
  Atomics.wait(sleeper, 0, 0, REST_MS - rest);
  return statOf(path, fd);
}

function statOf(path: ByteString, fd: number): FileStat {
  const stat = fstatSync(fd, { bigint: true });
  if (!stat.isFile()) throw notRegular(path);
  return { size: Number(stat.size), mtimeNs: stat.mtimeNs, ctimeNs: stat.ctimeNs, ino: stat.ino, dev: stat.dev };
}

function same(a: FileStat, b: FileStat): boolean {
  return a.size === b.size && a.mtimeNs === b.mtimeNs && a.ctimeNs === b.ctimeNs;
}

function notRegular(path: ByteString): DatamonError {
  return new DatamonError("unsupported", `cannot read ${display(path)}: it is not a regular file`);
}
