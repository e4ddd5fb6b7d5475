import { type ByteString, bytesFrom } from "../../cas/index.ts";

/**
 * Extended attributes as a catalog stores them: one after the other in byte order of names, each as
 * name length (u8, at least 1), name, value length (u32, little-endian), value. No attributes are NULL.
 *
 * @throws RangeError for a name that is empty or longer than 255 bytes
 */
export function encodeXattrs(xattrs: ReadonlyMap<ByteString, Uint8Array> | undefined): Buffer | null {
  if (xattrs === undefined || xattrs.size === 0) return null;
  const parts: Uint8Array[] = [];
  for (const name of [...xattrs.keys()].sort()) {
    const value = xattrs.get(name)!;
    if (name.length === 0 || name.length > 255) throw new RangeError("extended attribute name of a wrong length");
    const head = Buffer.alloc(1 + name.length + 4);
    head[0] = name.length;
    head.write(name, 1, "latin1");
    head.writeUInt32LE(value.length, 1 + name.length);
    parts.push(head, value);
  }
  return Buffer.concat(parts);
}

/** The reverse of `encodeXattrs`. Throws a RangeError for anything that it would not have made. */
export function decodeXattrs(encoded: Buffer): Map<ByteString, Buffer> {
  const xattrs = new Map<ByteString, Buffer>();
  let previous = "";
  let at = 0;
  while (at < encoded.length) {
    const length = encoded.readUInt8(at);
    const name = bytesFrom(encoded.subarray(at + 1, at + 1 + length));
    const start = at + 1 + length + 4;
    const end = start + encoded.readUInt32LE(at + 1 + length);
    if (name <= previous) throw new RangeError("extended attributes are not in order");
    if (end > encoded.length) throw new RangeError("extended attributes end too early");
    xattrs.set(name, encoded.subarray(start, end));
    previous = name;
    at = end;
  }
  if (xattrs.size === 0) throw new RangeError("empty extended attributes");
  return xattrs;
}
