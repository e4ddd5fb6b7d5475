/**
 * Pages of a directory: runs of adjacent names that the stat cache keeps in one row. Where a page
 * ends is said by the name itself, so a name that comes or goes moves no other page's bounds.
 */
import { type ByteString, hashOf } from "../../cas/index.ts";
import type { LocalStat } from "./walk.ts";

/** Mean number of names in a page; a power of two. */
const PAGE_NAMES = 256;
/** Bytes of BLAKE3 at the front of a page, over the rest of it. */
const CHECKSUM = 8;
/** Flags (1 byte), length of the name (1 byte), mtime, ctime, inode number, size (8 bytes each). */
const FIXED = 34;
const HAS_HASH = 1;
const HAS_XATTRS = 2;

/** What is known of an entry as long as its size, times and inode number stay. */
export interface KnownEntry {
  name: ByteString;
  size: number;
  mtimeNs: bigint;
  ctimeNs: bigint;
  ino: bigint;
  /** Content hash; directories have none. */
  hash: string | undefined;
  xattrs: Map<ByteString, Buffer> | undefined;
}

/** Cuts sorted names into pages. Each comes with its last name, or "" for the rest of the directory. */
export function* pagesOf(names: readonly ByteString[]): Generator<{ end: ByteString; names: ByteString[] }> {
  let start = 0;
  for (let at = 0; at < names.length; at++) {
    const name = names[at] as ByteString;
    if (!endsPage(name)) continue;
    yield { end: name, names: names.slice(start, at + 1) };
    start = at + 1;
  }
  if (start < names.length) yield { end: "" as ByteString, names: names.slice(start) };
}

/** Entries, in name order, as the bytes of a page. */
export function encodePage(entries: readonly KnownEntry[]): Buffer {
  let length = CHECKSUM;
  const packed: (Buffer | undefined)[] = [];
  for (const entry of entries) {
    const xattrs = entry.xattrs === undefined ? undefined : packXattrs(entry.xattrs);
    packed.push(xattrs);
    length += FIXED + entry.name.length + (entry.hash === undefined ? 0 : 32);
    if (xattrs !== undefined) length += 4 + xattrs.length;
  }
  const page = Buffer.allocUnsafe(length);
  const words = wordsOf(page);
  let at = CHECKSUM;
  for (const [index, entry] of entries.entries()) {
    const xattrs = packed[index];
    page[at] = (entry.hash === undefined ? 0 : HAS_HASH) | (xattrs === undefined ? 0 : HAS_XATTRS);
    page[at + 1] = entry.name.length;
    words.setBigInt64(at + 2, entry.mtimeNs, true);
    words.setBigInt64(at + 10, entry.ctimeNs, true);
    words.setBigUint64(at + 18, entry.ino, true);
    words.setBigUint64(at + 26, BigInt(entry.size), true);
    at += FIXED;
    at += page.write(entry.name, at, "latin1");
    if (entry.hash !== undefined) at += page.write(entry.hash, at, "hex");
    if (xattrs !== undefined) {
      at = page.writeUInt32LE(xattrs.length, at);
      at += xattrs.copy(page, at);
    }
  }
  checksumOf(page).copy(page);
  return page;
}

/** Reads a page from its first name to its last, in step with the names that are looked for. */
export class PageReader {
  readonly #page: Buffer;
  readonly #words: DataView;
  #at = CHECKSUM;
  #name: ByteString | undefined;
  /** Entries passed over because a later name was asked for. */
  passed: KnownEntry[] = [];

  /** Answers undefined for a page that is damaged. */
  static open(page: Buffer): PageReader | undefined {
    if (page.length < CHECKSUM || checksumOf(page).compare(page, 0, CHECKSUM) !== 0) return undefined;
    return new PageReader(page);
  }

  private constructor(page: Buffer) {
    this.#page = page;
    this.#words = wordsOf(page);
    this.#peek();
  }

  /** The entry of that name; names must be asked for in ascending order. */
  seek(name: ByteString): KnownEntry | undefined {
    while (this.#name !== undefined && this.#name < name) this.passed.push(this.#take(this.#name));
    return this.#name === name ? this.#take(name) : undefined;
  }

  /** Everything that was not asked for so far, together with what was passed over. */
  rest(): KnownEntry[] {
    while (this.#name !== undefined) this.passed.push(this.#take(this.#name));
    return this.passed;
  }

  #peek(): void {
    const at = this.#at;
    this.#name =
      at < this.#page.length
        ? (this.#page.toString("latin1", at + FIXED, at + FIXED + (this.#page[at + 1] as number)) as ByteString)
        : undefined;
  }

  #take(name: ByteString): KnownEntry {
    const page = this.#page;
    const words = this.#words;
    const at = this.#at;
    const flags = page[at] as number;
    const entry: KnownEntry = {
      name,
      size: Number(words.getBigUint64(at + 26, true)),
      mtimeNs: words.getBigInt64(at + 2, true),
      ctimeNs: words.getBigInt64(at + 10, true),
      ino: words.getBigUint64(at + 18, true),
      hash: undefined,
      xattrs: undefined,
    };
    let next = at + FIXED + name.length;
    if (flags & HAS_HASH) {
      entry.hash = page.toString("hex", next, next + 32);
      next += 32;
    }
    if (flags & HAS_XATTRS) {
      const length = page.readUInt32LE(next);
      entry.xattrs = unpackXattrs(page.subarray(next + 4, next + 4 + length));
      next += 4 + length;
    }
    this.#at = next;
    this.#peek();
    return entry;
  }
}

/** A page's bytes as numbers: of 64 bits, a view has them several times sooner than a buffer. */
function wordsOf(page: Buffer): DataView {
  return new DataView(page.buffer, page.byteOffset, page.length);
}

/** Whether an entry is still what was known of it. */
export function isCurrent(known: Omit<KnownEntry, "name" | "hash" | "xattrs">, stat: LocalStat): boolean {
  return (
    known.size === stat.size &&
    known.mtimeNs === stat.mtimeNs &&
    known.ctimeNs === stat.ctimeNs &&
    known.ino === stat.ino
  );
}

/** FNV-1a over the name: cheap, and spread well enough to cut pages by. */
function endsPage(name: ByteString): boolean {
  let hash = 0x811c9dc5;
  for (let at = 0; at < name.length; at++) hash = Math.imul(hash ^ name.charCodeAt(at), 0x01000193);
  return ((hash ^ (hash >>> 15)) & (PAGE_NAMES - 1)) === 0;
}

function checksumOf(page: Buffer): Buffer {
  return Buffer.from(hashOf(page.subarray(CHECKSUM)).slice(0, 2 * CHECKSUM), "hex");
}

/** Per attribute: length of the name (1 byte), name, length of the value (4 bytes), value. */
function packXattrs(xattrs: Map<ByteString, Buffer>): Buffer {
  const parts: Buffer[] = [];
  for (const [name, value] of xattrs) {
    const head = Buffer.alloc(1 + name.length + 4);
    head[0] = name.length;
    head.write(name, 1, "latin1");
    head.writeUInt32LE(value.length, 1 + name.length);
    parts.push(head, value);
  }
  return Buffer.concat(parts);
}

function unpackXattrs(packed: Buffer): Map<ByteString, Buffer> {
  const xattrs = new Map<ByteString, Buffer>();
  for (let at = 0; at < packed.length; ) {
    const nameEnd = at + 1 + (packed[at] as number);
    const length = packed.readUInt32LE(nameEnd);
    const name = packed.toString("latin1", at + 1, nameEnd) as ByteString;
    xattrs.set(name, Buffer.from(packed.subarray(nameEnd + 4, nameEnd + 4 + length)));
    at = nameEnd + 4 + length;
  }
  return xattrs;
}
