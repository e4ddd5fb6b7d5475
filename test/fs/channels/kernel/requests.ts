/** Builds requests as the kernel sends them, and takes replies apart. */

import { IN_HEADER } from "../../../../src/fs/channels/kernel/protocol.ts";
import type { Request } from "../../../../src/fs/channels/kernel/request.ts";

export interface Header {
  opcode: number;
  ino?: bigint | number;
  unique?: bigint;
  uid?: number;
  gid?: number;
  pid?: number;
  /** What the header says the length is; the true one where absent. */
  length?: number;
}

/** A request: header and body. */
export function requestOf(header: Header, ...body: Buffer[]): Buffer {
  const content = Buffer.concat(body);
  const request = Buffer.alloc(IN_HEADER + content.length);
  request.writeUInt32LE(header.length ?? request.length, 0);
  request.writeUInt32LE(header.opcode, 4);
  request.writeBigUInt64LE(header.unique ?? 2n, 8);
  request.writeBigUInt64LE(BigInt(header.ino ?? 1), 16);
  request.writeUInt32LE(header.uid ?? 1000, 24);
  request.writeUInt32LE(header.gid ?? 1000, 28);
  request.writeUInt32LE(header.pid ?? 42, 32);
  content.copy(request, IN_HEADER);
  return request;
}

export function u32(...values: number[]): Buffer {
  const buffer = Buffer.alloc(4 * values.length);
  values.forEach((value, index) => {
    buffer.writeUInt32LE(value, 4 * index);
  });
  return buffer;
}

export function u64(...values: (bigint | number)[]): Buffer {
  const buffer = Buffer.alloc(8 * values.length);
  values.forEach((value, index) => {
    buffer.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)), 8 * index);
  });
  return buffer;
}

export function text(...strings: string[]): Buffer {
  return Buffer.from(strings.map((string) => `${string}\0`).join(""), "latin1");
}

/** Puts `bytes` into the request's buffer, as a read of the device does. */
export function put(request: Request, bytes: Buffer): number {
  return bytes.copy(request.buffer);
}

/** The header and body of a reply. */
export function parseReply(buffer: Buffer): { length: number; error: number; unique: bigint; body: Buffer } {
  return {
    length: buffer.readUInt32LE(0),
    error: buffer.readInt32LE(4),
    unique: buffer.readBigUInt64LE(8),
    body: Buffer.from(buffer.subarray(16)),
  };
}
