/** SEEK_DATA and SEEK_HOLE: where the runs of bytes and of zeros of a file begin. */

import type { Segment } from "../cache/index.ts";
import { FsError } from "./errno.ts";
import { seekFile } from "./overlay/libc.ts";

/** What is looked for; the numbers are those of `whence` of lseek(2) on Linux. */
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

/** Bytes planned at first; a run of zeros doubles the next piece, which costs nothing where there is nothing. */
const WINDOW = 64 * 1024 * 1024;

/**
 * The first offset at or after `offset` of a file of `size` bytes that lies in data, or in a hole; the
 * end of the file counts as a hole. ENXIO at or past the end, and where no data follows.
 *
 * @param plan reads of [offset, offset + length), which is within the file
 */
export function seek(
  plan: (offset: number, length: number) => readonly Segment[],
  size: number,
  offset: number,
  whence: number,
): number {
  if (whence !== SEEK_DATA && whence !== SEEK_HOLE) throw new FsError("EINVAL");
  if (offset >= size) throw new FsError("ENXIO");
  let window = WINDOW;
  for (let at = offset; at < size; window = whence === SEEK_DATA ? window * 2 : WINDOW) {
    for (const segment of plan(at, Math.min(window, size - at))) {
      const found = seekSegment(segment, whence);
      if (found !== undefined) return at + found;
      at += segment.length;
    }
  }
  if (whence === SEEK_DATA) throw new FsError("ENXIO");
  return size;
}

/** Where in the segment the first data or hole is; undefined where there is none in it. */
function seekSegment(segment: Segment, whence: number): number | undefined {
  if (segment.kind !== "file") return (segment.kind === "zeros") === (whence === SEEK_HOLE) ? 0 : undefined;
  const found = seekFile(segment.fd, segment.offset, whence);
  // Past its end a local file stands for zeros.
  const relative = found === undefined ? (whence === SEEK_HOLE ? 0 : segment.length) : found - segment.offset;
  return relative < segment.length ? relative : undefined;
}
