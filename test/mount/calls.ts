/** Calls of the C library that programs make and Node has no function for, as they are made on a mount. */

import koffi from "koffi";
import type { ByteString } from "../../src/cas/index.ts";
import { cPath } from "../../src/fs/transfer/libc.ts";

const library = koffi.load(null);
const names = new Map(Object.entries(koffi.os.errno).map(([name, number]) => [number, name]));

const calls = {
  lseek: library.func("int64_t lseek64(int, int64_t, int)"),
  fallocate: library.func("int fallocate64(int, int, int64_t, int64_t)"),
  copyFileRange: library.func("long copy_file_range(int, void*, int, void*, size_t, unsigned int)"),
  mmap: library.func("void* mmap64(void*, size_t, int, int, int, int64_t)"),
  munmap: library.func("int munmap(void*, size_t)"),
  msync: library.func("int msync(void*, size_t, int)"),
  load: library.func("void* memcpy(void*, void*, size_t)"),
  fcntl: library.func("int fcntl(int, int, ...)"),
  renameat2: library.func("int renameat2(int, const void*, int, const void*, unsigned int)"),
  posixFadvise: library.func("int posix_fadvise64(int, int64_t, int64_t, int)"),
};

/** Throws an error with the name of the errno in `code` where `result` is negative. */
function checked(call: string, result: number | bigint): number {
  if (result >= 0) return Number(result);
  throw Object.assign(new Error(call), { code: names.get(koffi.errno()) ?? `errno ${koffi.errno()}` });
}

export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

export function lseek(fd: number, offset: number, whence: number): number {
  return checked("lseek", calls.lseek(fd, offset, whence));
}

export function fallocate(fd: number, mode: number, offset: number, length: number): void {
  checked("fallocate", calls.fallocate(fd, mode, offset, length));
}

/** Copies at the positions given; returns how many bytes. */
export function copyFileRange(from: number, at: number, to: number, toAt: number, length: number): number {
  const offsets = new BigInt64Array([BigInt(at), BigInt(toAt)]);
  return checked(
    "copy_file_range",
    calls.copyFileRange(from, offsets.subarray(0, 1), to, offsets.subarray(1, 2), length, 0),
  );
}

const AT_FDCWD = -100;

export function renameat2(from: ByteString, to: ByteString, flags: number): void {
  checked("renameat2", calls.renameat2(AT_FDCWD, cPath(from), AT_FDCWD, cPath(to), flags));
}

const POSIX_FADV_DONTNEED = 4;

/** Has the kernel forget what it holds of a file, so that the next read asks who has it. */
export function forgetPages(fd: number): void {
  calls.posixFadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MS_SYNC = 4;

/** A file in memory, shared and writable. */
export class Mapping {
  readonly #address: unknown;
  readonly #length: number;

  constructor(fd: number, length: number) {
    this.#length = length;
    this.#address = calls.mmap(null, length, PROT_READ_WRITE, MAP_SHARED, fd, 0);
    if (koffi.address(this.#address) === 0xffff_ffff_ffff_ffffn) checked("mmap", -1);
  }

  read(): Buffer {
    const copy = Buffer.alloc(this.#length);
    calls.load(copy, this.#address, this.#length);
    return copy;
  }

  /** Writes all of it. */
  write(content: Buffer): void {
    calls.load(this.#address, content, Math.min(content.length, this.#length));
  }

  sync(): void {
    checked("msync", calls.msync(this.#address, this.#length, MS_SYNC));
  }

  close(): void {
    checked("munmap", calls.munmap(this.#address, this.#length));
  }
}

const F_SETLK = 6;
const F_WRLCK = 1;
const F_UNLCK = 2;

/** Takes or lets go a POSIX lock for writing on [start, start + length); false where another process has one there. */
export function lockRange(fd: number, start: number, length: number, lock = true): boolean {
  // struct flock of 64-bit Linux.
  const request = Buffer.alloc(32);
  request.writeInt16LE(lock ? F_WRLCK : F_UNLCK, 0);
  request.writeBigInt64LE(BigInt(start), 8);
  request.writeBigInt64LE(BigInt(length), 16);
  const result: number = calls.fcntl(fd, F_SETLK, "void*", request);
  if (result < 0 && ["EAGAIN", "EWOULDBLOCK", "EACCES"].includes(names.get(koffi.errno()) ?? "")) return false;
  checked("fcntl", result);
  return true;
}

/** A buffer whose memory begins at a page, as O_DIRECT wants it. */
export function alignedBuffer(length: number): Buffer {
  const PAGE = 4096;
  const whole = Buffer.alloc(length + PAGE);
  const skip = (PAGE - Number(koffi.address(whole) % BigInt(PAGE))) % PAGE;
  return whole.subarray(skip, skip + length);
}
