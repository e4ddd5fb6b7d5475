/**
 * The notes beside a file container that say which blobs have been written where: what an index is
 * rebuilt from. They are appended by any number of writers and believed by nobody: a blob's bytes are
 * hashed before they are served. A record is 48 bytes, little endian: the blob's hash (32), its offset
 * in the file as u48, its length as u32 and 2 + 4 bytes of CRC-32 over what precedes, of which the
 * first two are zero. Writers that died in the middle of an append leave torn records; a reader goes
 * on at the next byte from which a record adds up.
 */

import { crc32 } from "node:zlib";
import { type Hash, MAX_BLOB_SIZE } from "../cas/index.ts";

const RECORD = 48;
const CHECK = 44;

/** A blob in a file container. */
export interface Piece {
  readonly blob: Hash;
  /** Where in the file its first byte is. */
  readonly offset: number;
  readonly length: number;
}

export function encodePiece({ blob, offset, length }: Piece): Buffer {
  const record = Buffer.alloc(RECORD);
  record.write(blob, 0, "hex");
  record.writeUIntLE(offset, 32, 6);
  record.writeUInt32LE(length, 38);
  record.writeUInt32LE(crc32(record.subarray(0, CHECK)), CHECK);
  return record;
}

/** The pieces that `map` notes, those of torn records left out. */
export function decodePieces(map: Buffer): Piece[] {
  const pieces: Piece[] = [];
  for (let at = 0; at + RECORD <= map.length; ) {
    const length = map.readUInt32LE(at + 38);
    const sound = length <= MAX_BLOB_SIZE && crc32(map.subarray(at, at + CHECK)) === map.readUInt32LE(at + CHECK);
    if (sound) pieces.push({ blob: map.toString("hex", at, at + 32), offset: map.readUIntLE(at + 32, 6), length });
    at += sound ? RECORD : 1;
  }
  return pieces;
}
