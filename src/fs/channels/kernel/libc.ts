/** The calls of the C library that mounting needs and Node does not offer. */

import koffi from "koffi";

const library = koffi.load(null);

const cMount = library.func("int mount(const char*, const char*, const char*, unsigned long, const char*)");
const cUmount2 = library.func("int umount2(const char*, int)");
const cSocketpair = library.func("int socketpair(int, int, int, _Out_ int*)");
// koffi does not know ssize_t; long has its size on Linux.
const cRecvmsg = library.func("long recvmsg(int, void*, int)");

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

/**
 * A descriptor that was sent through a socket with one byte of content; undefined where none is
 * waiting. The layouts of msghdr, iovec and cmsghdr are those of 64-bit Linux (recvmsg(2), cmsg(3)).
 */
export function receiveDescriptor(socket: number): number | undefined {
  const content = Buffer.alloc(1);
  const control = Buffer.alloc(24);
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(BigInt(koffi.address(content)), 0);
  vector.writeBigUInt64LE(1n, 8);
  const message = Buffer.alloc(56);
  message.writeBigUInt64LE(BigInt(koffi.address(vector)), 16);
  message.writeBigUInt64LE(1n, 24);
  message.writeBigUInt64LE(BigInt(koffi.address(control)), 32);
  message.writeBigUInt64LE(24n, 40);
  if (cRecvmsg(socket, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0) return undefined;
  const isRights = control.readInt32LE(8) === SOL_SOCKET && control.readInt32LE(12) === SCM_RIGHTS;
  return message.readBigUInt64LE(40) >= 20n && isRights ? control.readInt32LE(16) : undefined;
}
