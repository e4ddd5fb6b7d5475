/** From a request to its reply: decodes, asks the namespace, encodes. It knows no file descriptor of the kernel's. */

import { type DiskCache, lastBlob, type MemoryReader, readLocal, type Segment } from "../../../cache/index.ts";
import { type ByteString, faultPoint, type Hash, toBuffer } from "../../../cas/index.ts";
import { isDirectory } from "../../base.ts";
import { nowNs } from "../../clock.ts";
import { errnoOf, FsError } from "../../errno.ts";
import type { Attr, Namespace, SetAttr } from "../../namespace.ts";
import type { OpenMode } from "../../open-mode.ts";
import { withoutSetId } from "../../overlay/contents.ts";
import { monotonicMs } from "./counts.ts";
import { LIFTED_MIN, type Lifted } from "./lift.ts";
import { negotiate, offers, type Session } from "./negotiate.ts";
import { type OpenedFiles, Openings, type Register, UNCACHED } from "./openings.ts";
import { Pause } from "./pause.ts";
import { FIRST_ENTRY, Positions } from "./positions.ts";
import {
  InitFlag,
  MAJOR,
  MAX_IO,
  OLDEST_MINOR,
  OPEN_KILL_SUIDGID,
  Opcode,
  OpenFlag,
  OUT_HEADER,
  SetattrBit,
  WRITE_KILL_SUIDGID,
} from "./protocol.ts";
import { direntSize, Reply } from "./reply.ts";
import { Request } from "./request.ts";

/** A read that needs blobs which are not on this machine. */
export interface Miss {
  /** When it came, in milliseconds of the clock of `monotonicMs`. */
  readonly since: number;
  readonly uniqueLow: number;
  readonly uniqueHigh: number;
  /** What it comes to: local files are read already, so that no descriptor leaves its thread. */
  readonly plan: readonly Segment[];
  /** In bytes. */
  readonly length: number;
}

/** Where the dispatcher's work goes that it cannot finish itself. */
export interface Outlet {
  /** A read to be answered by whoever takes it. */
  miss(miss: Miss): void;
  /** A reader of a file came, at this offset, to a blob that nobody read through this mount before. */
  reached(ino: number, offset: number, blob: Hash): void;
  /** The reader of the request with this number gave up. */
  interrupt(uniqueLow: number, uniqueHigh: number): void;
  /** A large file was opened that is not whole in the cache. */
  want(ino: number): void;
  /** The kernel is served from now on, as agreed. */
  started(session: Session): void;
  /**
   * The listing of a handle goes on after this name at this position, which a daemon that takes the
   * mount over has to know; undefined: it ended.
   */
  listing(handle: number, position: number, name: ByteString | undefined): void;
  /**
   * This inode is open through so many handles, none being its end: by the number `backing` in the
   * kernel's register, or in the way that no positive number stands for. A daemon that takes the mount
   * over has to know, for the kernel refuses to open an inode in two ways.
   */
  opened(ino: number, backing: number, handles: number): void;
  /** A failure that is not part of normal life, to be logged. */
  failed(request: string, subject: string, error: unknown): void;
}

/** How files are opened. */
export interface OpenOptions {
  readonly mode: OpenMode;
  /** What passthrough needs: the kernel's register, and how deep the file systems below are stacked. */
  readonly register?: Register;
  readonly stackDepth?: number;
  /** What the main thread has in memory. */
  readonly memory?: MemoryReader;
}

/** Listings of snapshot directories whose positions are remembered at once. */
const MOST_LISTINGS = 256;

/** The answer to a request that the kernel remembers as "never ask again" or takes its default for. */
const UNSUPPORTED = new FsError("ENOSYS");

/** What must not be done twice: a second time it would fail, or undo itself. */
const ONCE: ReadonlySet<number> = new Set([
  Opcode.CREATE,
  Opcode.MKDIR,
  Opcode.MKNOD,
  Opcode.SYMLINK,
  Opcode.LINK,
  Opcode.UNLINK,
  Opcode.RMDIR,
  Opcode.RENAME,
  Opcode.RENAME2,
  Opcode.SETXATTR,
  Opcode.REMOVEXATTR,
]);

/** `st_mode >> 12` of a directory. */
const DIRECTORY_TYPE = 4;

/** Answers requests of one mount, one at a time: put one into `request.buffer`, call `handle`, send `reply.buffer`. */
export class Dispatcher {
  readonly request = new Request();
  readonly reply = new Reply();
  readonly #namespace: Namespace;
  readonly #cache: DiskCache;
  readonly #outlet: Outlet;
  readonly #positions: Positions;
  readonly #opening: OpenOptions;
  #openings: Openings;
  /** Where the content of the reply lies that was built last; undefined: in its buffer. */
  lifted: Lifted | undefined;
  /** Or in these pieces of the main thread's memory; until `unpin`, which is to be called before the next request. */
  pieces: readonly Buffer[] | undefined;
  readonly #pinned: Hash[] = [];
  #lastReached: Hash | undefined;
  #pause: Pause | undefined;
  /** Opens need no request: a snapshot has nothing to do then, and the kernel keeps what it read. */
  #noOpen = false;
  #noOpendir = false;
  /** Handles of directories start from the clock so that two daemons of one mount never give the same. */
  #nextHandle = Date.now() * 1024;
  /** Handles whose listings the outlet was told of. */
  readonly #toldListings = new Set<number>();

  constructor(namespace: Namespace, cache: DiskCache, outlet: Outlet, opening: OpenOptions) {
    this.#namespace = namespace;
    this.#cache = cache;
    this.#outlet = outlet;
    this.#opening = opening;
    this.#openings = this.#openingsWith(undefined);
    // A directory that changes needs one listing a handle; handles end with RELEASEDIR.
    this.#positions = new Positions(namespace.writable ? Number.POSITIVE_INFINITY : MOST_LISTINGS);
  }

  /** Goes on where another daemon stopped: `listings` are what its outlet was told. */
  adopt(
    session: Session,
    listings: Readonly<Record<string, readonly [number, ByteString]>>,
    passed: OpenedFiles = {},
  ): void {
    this.#noOpen = session.noOpen;
    this.#noOpendir = session.noOpendir;
    this.#openings = this.#openingsWith(session.openMode === "passthrough" ? this.#opening.register : undefined);
    this.#openings.adopt(passed);
    for (const [handle, [position, name]] of Object.entries(listings)) {
      this.#positions.note(Number(handle), position, [name]);
      this.#toldListings.add(Number(handle));
    }
  }

  /**
   * Has those stop who write without asking, if any do: with the inodes that are to be held for that.
   * Undefined where there are none.
   */
  pause(): { readonly token: string; readonly inos: readonly number[] } | undefined {
    const inos = this.#openings.passed();
    if (inos.length === 0) return undefined;
    this.#openings.paused = true;
    this.#pause = new Pause();
    return { token: this.#pause.token, inos };
  }

  /** True where a pause was asked for and nobody writes. */
  get isPaused(): boolean {
    return this.#pause?.holds(this.#openings.passed()) ?? false;
  }

  /** Ends the pause; returns the requests to be answered for that, or undefined where there is none. */
  resume(): Iterable<{ readonly uniqueLow: number; readonly uniqueHigh: number }> | undefined {
    const waiting = this.#pause?.waiting();
    this.#openings.paused = false;
    this.#pause = undefined;
    return waiting;
  }

  /**
   * Answers the `length` bytes in the request buffer. Returns the length of the reply, 0 where there is
   * none to send now. Content of up to `liftable` bytes may be left where it lies, in `lifted`.
   */
  handle(length: number, liftable = 0): number {
    const { request, reply } = this;
    this.lifted = undefined;
    if (!request.load(length)) return 0;
    try {
      request.checkLength();
      if (this.#pause !== undefined && request.opcode === Opcode.SETXATTR && this.#holds(this.#pause)) return 0;
      const end = this.#namespace.writable && ONCE.has(request.opcode) ? this.#answerOnce() : this.#answer(liftable);
      return end === 0 ? 0 : reply.header(request, end);
    } catch (error) {
      if (!(error instanceof FsError)) this.#outlet.failed(nameOf(request.opcode), subjectOf(request), error);
      return isSilent(request.opcode) ? 0 : reply.header(request, OUT_HEADER, errnoOf(error));
    }
  }

  /** Dispatches; returns the end of the reply's body, 0 for no reply. */
  #answer(liftable = 0): number {
    const { request, reply } = this;
    const namespace = this.#namespace;
    switch (request.opcode) {
      case Opcode.LOOKUP:
        return this.#lookup();
      case Opcode.GETATTR:
        return reply.attributes(OUT_HEADER, namespace.getattr(request.ino));
      case Opcode.READ:
        return this.#read(liftable);
      case Opcode.READDIRPLUS:
        return this.#readdir(true);
      case Opcode.READDIR:
        return this.#readdir(false);
      case Opcode.WRITE:
        return this.#write();
      case Opcode.OPEN:
        return this.#open();
      case Opcode.CREATE:
        return this.#create();
      case Opcode.RELEASE:
        // One that comes again may have been counted; a handle too many goes when the kernel forgets the inode.
        if (!request.isResent) this.#openings.release(request.ino);
        return OUT_HEADER;
      case Opcode.FLUSH:
        // Every change is complete when its own request is answered. The kernel asks no more after this.
        throw UNSUPPORTED;
      case Opcode.READLINK:
        return reply.string(OUT_HEADER, namespace.readlink(request.ino));
      case Opcode.SETATTR:
        return this.#setattr();
      case Opcode.MKDIR:
        return this.#entry(namespace.mkdir(request.ino, request.string(8), request.u32(0), request.caller));
      case Opcode.MKNOD:
        return this.#entry(
          namespace.mknod(request.ino, request.string(16), request.u32(0), request.u32(4), request.caller),
        );
      case Opcode.SYMLINK: {
        const name = request.string(0);
        return this.#entry(namespace.symlink(request.ino, name, request.string(name.length + 1), request.caller));
      }
      case Opcode.LINK:
        return this.#entry(namespace.link(request.u64(0), request.ino, request.string(8)));
      case Opcode.UNLINK:
        namespace.unlink(request.ino, request.string(0));
        return OUT_HEADER;
      case Opcode.RMDIR:
        namespace.rmdir(request.ino, request.string(0));
        return OUT_HEADER;
      case Opcode.RENAME:
        return this.#rename(8, 0);
      case Opcode.RENAME2:
        return this.#rename(16, request.u32(8));
      case Opcode.FALLOCATE:
        namespace.fallocate(request.ino, request.u32(24), request.u64(8), this.#lengthFrom(8, request.u64(16)));
        // The kernel leaves it to the file system and does not say so.
        if (request.caller.uid !== 0) this.#killSetId();
        return OUT_HEADER;
      case Opcode.LSEEK:
        return reply.offset(OUT_HEADER, namespace.seek(request.ino, request.u64(8), request.u32(16)));
      case Opcode.FSYNC:
      case Opcode.FSYNCDIR:
        namespace.fsync(request.ino);
        return OUT_HEADER;
      case Opcode.SYNCFS:
        namespace.syncAll();
        return OUT_HEADER;
      case Opcode.OPENDIR:
        return this.#opendir();
      case Opcode.RELEASEDIR:
        this.#releasedir(request.u64(0));
        return OUT_HEADER;
      case Opcode.STATFS:
        return reply.statfs(OUT_HEADER, namespace.statfs());
      case Opcode.GETXATTR:
        return this.#sized(request.u32(0), namespace.getxattr(request.ino, request.string(8)));
      case Opcode.LISTXATTR:
        return this.#sized(request.u32(0), terminated(namespace.listxattr(request.ino)));
      case Opcode.SETXATTR:
        return this.#setxattr();
      case Opcode.REMOVEXATTR:
        namespace.removexattr(request.ino, request.string(0));
        return OUT_HEADER;
      case Opcode.INTERRUPT:
        this.#outlet.interrupt(request.u32(0), request.u32(4));
        return 0;
      case Opcode.FORGET:
        this.#forget(request.ino);
        return 0;
      case Opcode.BATCH_FORGET:
        for (let at = 8, left = request.u32(0); left > 0; at += 16, left--) this.#forget(request.u64(at));
        return 0;
      case Opcode.INIT:
        return this.#init();
      case Opcode.DESTROY:
        return OUT_HEADER;
      default:
        throw UNSUPPORTED;
    }
  }

  #init(): number {
    const { request, reply } = this;
    const major = request.u32(0);
    if (major > MAJOR) {
      // The kernel asks again with the major it reads here.
      const empty = { major: MAJOR, minor: 0, maxReadahead: 0, flags: 0, flags2: 0 };
      return reply.init(OUT_HEADER, { ...empty, maxBackground: 0, maxWrite: 0, maxPages: 0, maxStackDepth: 0 });
    }
    const minor = request.u32(4);
    if (major < MAJOR || minor < OLDEST_MINOR) throw new FsError("EPROTO", `FUSE ${major}.${minor}`);
    const init = {
      major,
      minor,
      maxReadahead: request.u32(8),
      flags: request.u32(12),
      flags2: request.bodyLength >= 20 ? request.u32(16) : 0,
    };
    const snapshot = !this.#namespace.writable;
    const { mode, register, stackDepth = 1 } = this.#opening;
    const agreed = negotiate(init, {
      stackDepth: mode === "passthrough" && register !== undefined ? stackDepth : 0,
      truncatingOpens: !snapshot,
    });
    const passthrough = agreed.maxStackDepth > 0;
    this.#openings = this.#openingsWith(passthrough ? register : undefined);
    // Where the kernel takes no files, nothing is won by being asked.
    this.#noOpen = snapshot && mode !== "plain" && !passthrough && offers(init, InitFlag.NO_OPEN_SUPPORT);
    this.#noOpendir = snapshot && offers(init, InitFlag.NO_OPENDIR_SUPPORT);
    const openMode = passthrough ? "passthrough" : this.#noOpen ? "noopen" : "plain";
    const end = reply.init(OUT_HEADER, agreed);
    const resends = offers(init, InitFlag.HAS_RESEND);
    this.#outlet.started({ agreed, openMode, noOpen: this.#noOpen, noOpendir: this.#noOpendir, resends });
    return end;
  }

  /** As `#answer`, for changes that must not be made again where the kernel sends their request again. */
  #answerOnce(): number {
    const { request } = this;
    if (request.isResent && this.#namespace.isDone(request.id)) return this.#answerAgain();
    this.#namespace.begin(request.id);
    const end = this.#answer();
    faultPoint("change");
    return end;
  }

  /**
   * The reply to a request whose change was made by a daemon that died before it could say so. The
   * kernel still holds the lock under which it asked, so the names that it is about are as they were left.
   */
  #answerAgain(): number {
    const { request } = this;
    const namespace = this.#namespace;
    switch (request.opcode) {
      case Opcode.CREATE:
        return this.#created(namespace.lookup(request.ino, request.string(16)));
      case Opcode.MKDIR:
        return this.#entry(namespace.lookup(request.ino, request.string(8)));
      case Opcode.MKNOD:
        return this.#entry(namespace.lookup(request.ino, request.string(16)));
      case Opcode.SYMLINK:
        return this.#entry(namespace.lookup(request.ino, request.string(0)));
      case Opcode.LINK:
        return this.#entry(namespace.getattr(request.u64(0)));
      default:
        return OUT_HEADER;
    }
  }

  #openingsWith(register: Register | undefined): Openings {
    return new Openings(this.#namespace, this.#cache, register, this.#outlet);
  }

  #lookup(): number {
    const { request, reply } = this;
    try {
      return this.#entry(this.#namespace.lookup(request.ino, request.string(0)));
    } catch (error) {
      if (!(error instanceof FsError && error.errno === "ENOENT")) throw error;
      const held = this.#pause?.inode(request.string(0));
      return held === undefined ? reply.noEntry(OUT_HEADER) : this.#passing(held);
    }
  }

  /** An entry that the kernel forgets at once. */
  #passing(ino: number): number {
    const end = this.#entry(this.#namespace.getattr(ino));
    this.reply.buffer.fill(0, OUT_HEADER + 16, OUT_HEADER + 32);
    return end;
  }

  #holds(pause: Pause): boolean {
    const { request } = this;
    const name = request.string(8);
    return pause.hold(request.ino, name, request.bytes(8 + name.length + 1, request.u32(0)), request);
  }

  #entry(attr: Attr): number {
    return this.reply.entry(OUT_HEADER, attr);
  }

  #read(liftable: number): number {
    const { request, reply } = this;
    const plan = this.#namespace.planRead(request.ino, request.u64(8), Math.min(request.u32(16), MAX_IO));
    let length = 0;
    for (const segment of plan) length += segment.length;
    if (length === 0) return OUT_HEADER;
    this.pieces = this.#pin(plan);
    if (this.pieces !== undefined) {
      this.#reached(plan);
      return OUT_HEADER + length;
    }
    const { met } = this.#cache.stats;
    let read: number | undefined;
    if (!this.#isInMemory(plan)) {
      if (length >= LIFTED_MIN && length <= liftable) this.lifted = this.#lift(plan);
      read =
        this.lifted === undefined
          ? readLocal(plan, this.#cache, reply.buffer.subarray(OUT_HEADER, OUT_HEADER + length))
          : length;
    }
    if (read === undefined) this.#outlet.miss(this.#missOf(plan, length));
    if (read === undefined || this.#cache.stats.met !== met) this.#reached(plan);
    return read === undefined ? 0 : OUT_HEADER + read;
  }

  /** What the plan comes to, where the main thread's memory has all of it. */
  #pin(plan: readonly Segment[]): Buffer[] | undefined {
    const { memory } = this.#opening;
    if (memory === undefined) return undefined;
    const pieces: Buffer[] = [];
    for (const segment of plan) {
      const piece = segment.kind === "blob" ? memory.pin(segment.blob, segment.offset, segment.length) : undefined;
      if (piece === undefined) {
        this.unpin();
        return undefined;
      }
      this.#pinned.push((segment as { blob: Hash }).blob);
      pieces.push(piece);
    }
    return pieces;
  }

  /** Ends the use of `pieces`. */
  unpin(): void {
    for (const blob of this.#pinned.splice(0)) this.#opening.memory?.unpin(blob);
    this.pieces = undefined;
  }

  /** The run of one file that is all of the plan; to be read before the next request. */
  #lift(plan: readonly Segment[]): Lifted | undefined {
    const [segment] = plan;
    if (segment === undefined || plan.length > 1) return undefined;
    if (segment.kind === "file") return segment;
    if (segment.kind !== "blob") return undefined;
    const { blob, offset, length } = segment;
    const found = this.#cache.locate(blob);
    if (found === undefined || offset + length > found.length) return undefined;
    return { fd: found.fd, offset: found.offset + offset, length };
  }

  /** Tells how far a reader came, once a blob. */
  #reached(plan: readonly Segment[]): void {
    const last = lastBlob(plan, this.request.u64(8));
    if (last === undefined || last.blob === this.#lastReached) return;
    this.#lastReached = last.blob;
    this.#outlet.reached(this.request.ino, last.offset, last.blob);
  }

  /**
   * True where a part of a large file is in the main thread's memory, though not all that is asked for. Having it
   * read there takes less than verifying here what is on its way to the disk at this very moment.
   */
  #isInMemory(plan: readonly Segment[]): boolean {
    const { memory } = this.#opening;
    if (memory === undefined) return false;
    return plan.some((segment) => segment.kind === "blob" && segment.home !== undefined && memory.has(segment.blob));
  }

  /**
   * Local files are read here and now, by the thread that owns their descriptors and while they are as
   * the plan found them; the rest is left to whoever answers.
   */
  #missOf(plan: readonly Segment[], length: number): Miss {
    const left = plan.map((segment): Segment => {
      if (segment.kind !== "file") return segment;
      const bytes = Buffer.from(new ArrayBuffer(segment.length));
      readLocal([segment], this.#cache, bytes);
      return { kind: "bytes", bytes, length: segment.length };
    });
    const { uniqueLow, uniqueHigh } = this.request;
    return { since: monotonicMs(), uniqueLow, uniqueHigh, plan: left, length };
  }

  #readdir(plus: boolean): number {
    const { request, reply } = this;
    const namespace = this.#namespace;
    const ino = request.ino;
    const key = namespace.writable ? request.u64(0) : ino;
    let position = request.u64(8);
    // A directory that changes is listed anew from its start; a snapshot's positions are good for all.
    if (position === 0 && namespace.writable) this.#positions.forget(key);
    const limit = OUT_HEADER + Math.min(request.u32(16), MAX_IO);
    let at = OUT_HEADER;
    for (; position < FIRST_ENTRY; position++) {
      const name = (position === 0 ? "." : "..") as ByteString;
      if (at + direntSize(name.length, plus) > limit) return at;
      const target = position === 0 ? ino : namespace.parent(ino);
      if (plus) at = reply.noLookup(at);
      at = reply.dirent(at, target, position + 1, name, DIRECTORY_TYPE);
    }
    let after = this.#positions.seek(namespace, ino, key, position);
    if (after === "end") return at;
    const start = position + 1;
    const sent: ByteString[] = [];
    let more = true;
    for (;;) {
      const room = Math.floor((limit - at) / direntSize(1, plus));
      if (room === 0) break;
      const entries = namespace.readdir(ino, after as ByteString | undefined, room);
      let taken = 0;
      for (const { name, attr } of entries) {
        if (at + direntSize(name.length, plus) > limit) break;
        position++;
        if (plus) at = reply.entry(at, attr);
        at = reply.dirent(at, attr.ino, position, name, attr.mode >> 12);
        sent.push(name);
        after = name;
        taken++;
      }
      if (taken < entries.length) break;
      if (entries.length < room) {
        more = false;
        break;
      }
    }
    this.#positions.note(key, start, sent);
    // Counted anew, a position in a directory that has changed since would lead elsewhere.
    if (more && namespace.writable && sent.length > 0) {
      this.#toldListings.add(key);
      this.#outlet.listing(key, position, sent.at(-1));
    }
    return at;
  }

  #write(): number {
    const { request, reply } = this;
    const size = request.u32(16);
    const kill = (request.u32(20) & WRITE_KILL_SUIDGID) !== 0;
    const offset = request.u64(8);
    const data = request.bytes(40, this.#lengthFrom(8, size));
    return reply.size(OUT_HEADER, this.#namespace.write(request.ino, offset, data, kill ? request.caller : undefined));
  }

  #open(): number {
    const { request } = this;
    if (this.#noOpen) throw UNSUPPORTED;
    const { ino } = request;
    const backing = this.#openings.open(ino, request.u32(0));
    if ((request.u32(4) & OPEN_KILL_SUIDGID) !== 0) this.#killSetId();
    return this.#opened(OUT_HEADER, ino, backing);
  }

  #create(): number {
    const { request } = this;
    return this.#created(this.#namespace.create(request.ino, request.string(16), request.u32(4), request.caller));
  }

  #created(attr: Attr): number {
    const { request } = this;
    return this.#opened(this.#entry(attr), attr.ino, this.#openings.open(attr.ino, request.u32(0)));
  }

  /** Takes setuid and setgid bits from the file of the request. */
  #killSetId(): void {
    const { ino, caller } = this.request;
    const { mode } = this.#namespace.getattr(ino);
    if (withoutSetId(mode) !== mode) this.#namespace.setattr(ino, { mode: withoutSetId(mode) }, caller);
  }

  /** Handles are inode numbers, so that they mean the same to whoever serves the mount. */
  #opened(at: number, ino: number, backing: number): number {
    if (backing > 0) return this.reply.open(at, ino, OpenFlag.PASSTHROUGH, backing);
    return this.reply.open(at, ino, backing === UNCACHED ? 0 : OpenFlag.KEEP_CACHE);
  }

  #opendir(): number {
    const { request, reply } = this;
    if (this.#noOpendir) throw UNSUPPORTED;
    this.#namespace.getattr(request.ino);
    if (!this.#namespace.writable) return reply.open(OUT_HEADER, 0, OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE);
    return reply.open(OUT_HEADER, this.#nextHandle++, 0);
  }

  /** Inode numbers are the namespace's own and outlive this; what was open is not. */
  #forget(ino: number): void {
    this.#openings.forget(ino);
    this.#namespace.forget(ino);
  }

  #releasedir(handle: number): void {
    this.#positions.forget(handle);
    if (this.#toldListings.delete(handle)) this.#outlet.listing(handle, 0, undefined);
  }

  #setattr(): number {
    const { request, reply } = this;
    const valid = request.u32(0);
    const changes: SetAttr = {};
    if ((valid & SetattrBit.MODE) !== 0) changes.mode = request.u32(68);
    if ((valid & SetattrBit.UID) !== 0) changes.uid = request.u32(76);
    if ((valid & SetattrBit.GID) !== 0) changes.gid = request.u32(80);
    if ((valid & SetattrBit.SIZE) !== 0) changes.size = request.u64(16);
    if ((valid & SetattrBit.ATIME_NOW) !== 0) changes.atimeNs = nowNs();
    else if ((valid & SetattrBit.ATIME) !== 0) changes.atimeNs = request.timeNs(32, 56);
    if ((valid & SetattrBit.MTIME_NOW) !== 0) changes.mtimeNs = nowNs();
    else if ((valid & SetattrBit.MTIME) !== 0) changes.mtimeNs = request.timeNs(40, 60);
    // Where the kernel leaves it to the file system, truncation and chown take these bits from the mode.
    const mode = changes.mode ?? this.#namespace.getattr(request.ino).mode;
    if ((valid & SetattrBit.KILL_SUIDGID) !== 0) changes.mode = withoutSetId(mode);
    // A chown to neither an owner nor a group does what any chown does.
    else if (Object.keys(changes).length === 0) changes.mode = isDirectory(mode) ? mode : withoutSetId(mode);
    return reply.attributes(OUT_HEADER, this.#namespace.setattr(request.ino, changes, request.caller));
  }

  #rename(nameOffset: number, flags: number): number {
    const { request } = this;
    const name = request.string(nameOffset);
    const newName = request.string(nameOffset + name.length + 1);
    this.#namespace.rename(request.ino, name, request.u64(0), newName, flags);
    return OUT_HEADER;
  }

  #setxattr(): number {
    const { request } = this;
    const name = request.string(8);
    // A copy: the view ends with this request, the namespace may keep the value.
    const value = Buffer.from(request.bytes(8 + name.length + 1, request.u32(0)));
    this.#namespace.setxattr(request.ino, name, value, request.u32(4));
    return OUT_HEADER;
  }

  /** The reply to GETXATTR and LISTXATTR: the size of the value where the caller gave no room, or the value. */
  #sized(room: number, value: Buffer): number {
    if (room === 0) return this.reply.size(OUT_HEADER, value.length);
    if (value.length > room) throw new FsError("ERANGE");
    return this.reply.bytes(OUT_HEADER, value);
  }

  /** `length`, where the range of that length from the offset in the body stays below 2^53; EFBIG otherwise. */
  #lengthFrom(offset: number, length: number): number {
    if (!Number.isSafeInteger(this.request.u64(offset) + length)) throw new FsError("EFBIG");
    return length;
  }
}

/** Requests that take no reply, not even of an error. */
function isSilent(opcode: number): boolean {
  return opcode === Opcode.FORGET || opcode === Opcode.BATCH_FORGET || opcode === Opcode.INTERRUPT;
}

function nameOf(opcode: number): string {
  return (
    Object.entries(Opcode)
      .find(([, number]) => number === opcode)?.[0]
      .toLowerCase() ?? `opcode ${opcode}`
  );
}

function subjectOf(request: Request): string {
  try {
    return `inode ${request.ino}`;
  } catch {
    return "no inode";
  }
}

function terminated(names: readonly ByteString[]): Buffer {
  return names.length === 0 ? Buffer.alloc(0) : toBuffer(`${names.join("\0")}\0` as ByteString);
}
