/** The calls of the C library that mounting needs and Node does not offer. */

import { closeSync } from "node:fs";
import koffi from "koffi";

const library = koffi.load(null);

const cMount = library.func("int mount(const char*, const char*, const char*, unsigned long, const char*)");
const cUmount2 = library.func("int umount2(const char*, int)");
const cSocketpair = library.func("int socketpair(int, int, int, _Out_ int*)");
// koffi does not know ssize_t; long has its size on Linux.
const cRecvmsg = library.func("long recvmsg(int, void*, int)");
const cSendmsg = library.func("long sendmsg(int, void*, int)");
const cIoctl = library.func("int ioctl(int, unsigned long, void*)");

const cPoll = library.func("int poll(void*, unsigned long, int)");
const cPipe2 = library.func("int pipe2(_Out_ int*, int)");
const cFcntl = library.func("int fcntl(int, int, ...)");
const cSplice = library.func("long splice(int, void*, int, void*, unsigned long, unsigned int)");
const cMemfdCreate = library.func("int memfd_create(const char*, unsigned int)");

const errnoNames = new Map(Object.entries(koffi.os.errno).map(([name, number]) => [number, name]));

/** A failed call, with the name of its errno in `code` as Node's own errors have it. */
function failure(call: string): NodeJS.ErrnoException {
  const code = errnoNames.get(koffi.errno()) ?? `errno ${koffi.errno()}`;
  return Object.assign(new Error(`${code}: ${call}`), { code });
}

export const MS_RDONLY = 1;
export const MS_NOSUID = 2;
export const MS_NODEV = 4;

/** mount(2). Throws an error with an errno's name in `code`. */
export function mount(source: string, directory: string, type: string, flags: number, data: string): void {
  if (cMount(source, directory, type, flags, data) !== 0) throw failure("mount");
}

const MNT_DETACH = 2;

/** Takes the mount on `directory` from the tree; false where that failed. */
export function umountLazily(directory: string): boolean {
  return cUmount2(directory, MNT_DETACH) === 0;
}

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0x8_0000;

/** A pair of connected sockets, closed in programs that are started unless passed on. */
export function socketPair(): [number, number] {
  const pair = [0, 0];
  if (cSocketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) !== 0) throw failure("socketpair");
  return pair as [number, number];
}

const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
/** Bytes of a control message with one descriptor, without the padding after it. */
const RIGHTS_LENGTH = 20n;

/**
 * A msghdr of one byte of content and room for, or with, one descriptor, and the buffers that it points
 * to. The layouts of msghdr, iovec and cmsghdr are those of 64-bit Linux (recvmsg(2), cmsg(3)).
 */
function messageWithRights(): { header: Buffer; control: Buffer; content: Buffer; vector: Buffer } {
  const content = Buffer.alloc(1);
  const control = Buffer.alloc(24);
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(BigInt(koffi.address(content)), 0);
  vector.writeBigUInt64LE(1n, 8);
  const header = Buffer.alloc(56);
  header.writeBigUInt64LE(BigInt(koffi.address(vector)), 16);
  header.writeBigUInt64LE(1n, 24);
  header.writeBigUInt64LE(BigInt(koffi.address(control)), 32);
  header.writeBigUInt64LE(BigInt(control.length), 40);
  return { header, control, content, vector };
}

/** A descriptor that was sent through a socket with one byte of content; undefined where none is waiting. */
export function receiveDescriptor(socket: number): number | undefined {
  const message = messageWithRights();
  if (cRecvmsg(socket, message.header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0) return undefined;
  const { header, control } = message;
  const isRights = control.readInt32LE(8) === SOL_SOCKET && control.readInt32LE(12) === SCM_RIGHTS;
  return header.readBigUInt64LE(40) >= RIGHTS_LENGTH && isRights ? control.readInt32LE(16) : undefined;
}

/** Sends a descriptor through a socket, for `receiveDescriptor` at its other end. */
export function sendDescriptor(socket: number, descriptor: number): void {
  const message = messageWithRights();
  const { control } = message;
  control.writeBigUInt64LE(RIGHTS_LENGTH, 0);
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  control.writeInt32LE(descriptor, 16);
  if (cSendmsg(socket, message.header, 0) !== 1) throw failure("sendmsg");
}

const MFD_CLOEXEC = 1;

/** A file that is nowhere but in memory, and goes with its last descriptor. Throws an error with an errno's name in `code`. */
export function memoryFile(name: string): number {
  const fd = cMemfdCreate(name, MFD_CLOEXEC) as number;
  if (fd < 0) throw failure("memfd_create");
  return fd;
}

const POLLIN = 1;
/** A pollfd: descriptor, events asked for, events found. */
const polled = Buffer.alloc(8);

/** True where a read from the descriptor `device` would return at once. */
export function requestWaits(device: number): boolean {
  polled.writeInt32LE(device, 0);
  polled.writeInt16LE(POLLIN, 4);
  return cPoll(polled, 1, 0) !== 0;
}

const O_CLOEXEC = 0x8_0000;
const F_SETPIPE_SZ = 1031;

/** A pipe of the first of `sizes` (in bytes, powers of two) that this process may have; undefined where it may have none. */
export function makePipe(sizes: readonly number[]): { from: number; to: number; size: number } | undefined {
  const pair = [0, 0];
  if (cPipe2(pair, O_CLOEXEC) !== 0) return undefined;
  const [from, to] = pair as [number, number];
  const size = sizes.find((wanted) => cFcntl(to, F_SETPIPE_SZ, "int", wanted) === wanted);
  if (size !== undefined) return { from, to, size };
  closeSync(from);
  closeSync(to);
  return undefined;
}

const spliceOffset = Buffer.alloc(8);

/**
 * splice(2): moves up to `length` bytes from one descriptor, at `offset` where it is a file's, to
 * another. Throws an error with an errno's name in `code`.
 */
export function splice(from: number, offset: number | undefined, to: number, length: number): number {
  if (offset !== undefined) spliceOffset.writeBigInt64LE(BigInt(offset));
  const count = Number(cSplice(from, offset === undefined ? null : spliceOffset, to, null, length, 0));
  if (count < 0) throw failure("splice");
  return count;
}

/** FUSE_DEV_IOC_BACKING_OPEN and FUSE_DEV_IOC_BACKING_CLOSE (`<linux/fuse.h>`). */
const BACKING_OPEN = 0x4010_e501;
const BACKING_CLOSE = 0x4004_e502;

/**
 * Registers the file behind `fd` with the connection of the descriptor `device`, and returns its
 * number there. Throws an error with an errno's name in `code`.
 */
export function registerBacking(device: number, fd: number): number {
  const map = Buffer.alloc(16);
  map.writeInt32LE(fd, 0);
  const backing = cIoctl(device, BACKING_OPEN, map) as number;
  if (backing <= 0) throw failure("ioctl");
  return backing;
}

/** Ends a registration; files open through it stay so. */
export function unregisterBacking(device: number, backing: number): void {
  const number = Buffer.alloc(4);
  number.writeUInt32LE(backing, 0);
  if (cIoctl(device, BACKING_CLOSE, number) !== 0) throw failure("ioctl");
}
