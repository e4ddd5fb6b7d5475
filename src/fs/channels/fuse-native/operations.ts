/** Decodes the requests of `fuse-native`, asks the namespace, encodes the answers. */

import { constants } from "node:fs";
import {
  type DiskCache,
  type Fetcher,
  lastBlob,
  type Readahead,
  readLocal,
  type Segment,
} from "../../../cache/index.ts";
import { type ByteString, bytesOf, toBuffer } from "../../../cas/index.ts";
import { errnoOf, FsError } from "../../errno.ts";
import type { Attr, Caller, Entry, Namespace, SetAttr } from "../../namespace.ts";
import type { BindingStat, BindingStatFs, Done, Operations } from "./binding.ts";
import { Paths } from "./paths.ts";

/** Largest read or write that a request carries, in bytes: the most that libfuse 2 speaks. */
export const MAX_REQUEST = 128 * 1024;

/** Entries asked of the namespace at a time. */
const PAGE = 1024;

/** Type bits of st_mode. */
const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;

/** What `chown` passes for an owner that stays. */
const UNCHANGED = 0xffffffff;

/** What the requests of one mount are answered with. */
export interface Served {
  readonly namespace: Namespace;
  readonly cache: DiskCache | undefined;
  readonly fetcher: Fetcher;
  readonly readahead: Readahead | undefined;
  /** Whose new files are: libfuse knows who asks, the package does not say it. */
  readonly caller: Caller;
  /** True from when the namespace is closed: what still comes, through files held open over a lazy unmount, gets ENOTCONN. */
  readonly closed: boolean;
  /** Reads whose plans are being read. */
  readonly reading: Set<Promise<unknown>>;
  /** Told of failures that are not part of a file system's normal life. */
  onError(request: string, path: string, error: unknown): void;
}

/** The requests of one mount, answered by `served`. */
export function operationsOf(served: Served): Operations {
  const { namespace, cache, fetcher } = served;
  const paths = new Paths(namespace);
  const handles = new Handles(namespace);

  function fail(request: string, path: string, error: unknown): number {
    if (!(error instanceof FsError)) served.onError(request, path, error);
    return -errnoOf(error);
  }

  /** Does `work`, which answers, or answers with the errno of what it throws. */
  function attempt(request: string, path: string, done: (result: number) => void, work: () => void): void {
    try {
      if (served.closed) throw new FsError("ENOTCONN");
      work();
    } catch (error) {
      done(fail(request, path, error));
    }
  }

  /** Answers with what `work` returns. */
  function answer<T>(request: string, path: string, done: Done<T>, work: () => T): void {
    attempt(request, path, done, () => done(0, work()));
  }

  /** Has what follows be fetched ahead. */
  function reached(ino: number, offset: number, plan: readonly Segment[]): void {
    const last = lastBlob(plan, offset);
    if (last !== undefined) served.readahead?.reached(ino, last.offset, last.blob);
  }

  function change(request: string, path: string, done: Done, work: () => unknown): void {
    attempt(request, path, done, () => {
      work();
      done(0);
    });
  }

  function setattr(request: string, path: string, done: Done, changes: SetAttr): void {
    change(request, path, done, () => namespace.setattr(paths.ino(path), changes, served.caller));
  }

  const reading: Operations = {
    getattr: (path, done) => answer("getattr", path, done, () => statOf(paths.attr(path))),

    statfs: (path, done) => answer("statfs", path, done, () => statFsOf(namespace)),

    readdir: (path, done) =>
      attempt("readdir", path, done, () => {
        const ino = paths.ino(path);
        const names = [".", ".."];
        const stats = [statOf(namespace.getattr(ino)), statOf(namespace.getattr(namespace.parent(ino)))];
        for (const { name, attr } of entries(namespace, ino)) {
          names.push(toBuffer(name).toString());
          stats.push(statOf(attr));
        }
        done(0, names, stats);
      }),

    readlink: (path, done) =>
      answer("readlink", path, done, () => {
        const target = namespace.readlink(paths.ino(path));
        const text = toBuffer(target).toString();
        if (bytesOf(text) !== target) throw new FsError("EILSEQ");
        return text;
      }),

    getxattr: (path, name, _position, done) =>
      answer("getxattr", path, done, () => namespace.getxattr(paths.ino(path), bytesOf(name))),

    listxattr: (path, done) =>
      answer("listxattr", path, done, () =>
        namespace.listxattr(paths.ino(path)).map((name) => toBuffer(name).toString()),
      ),

    open: (path, flags, done) => answer("open", path, done, () => handles.open(paths.ino(path), flags)),

    read: (path, handle, buffer, length, offset, done) =>
      attempt("read", path, done, () => {
        const target = buffer.subarray(0, length);
        const plan = namespace.planRead(handles.ino(handle), offset, length);
        const met = cache?.stats.met;
        const read = cache === undefined ? undefined : readLocal(plan, cache, target);
        if (read !== undefined) done(read);
        else {
          const reading = fetcher.read(plan, target).then(done, (error) => done(fail("read", path, error)));
          served.reading.add(reading);
          void reading.finally(() => served.reading.delete(reading));
        }
        if (read === undefined || cache?.stats.met !== met) reached(handles.ino(handle), offset, plan);
      }),

    release: (path, handle, done) => change("release", path, done, () => handles.release(handle)),
  };
  if (!namespace.writable) return reading;

  return {
    ...reading,

    create: (path, mode, done) =>
      answer("create", path, done, () => {
        const { parent, name } = paths.newPlace(path);
        const { ino } = namespace.create(parent, name, mode & ~S_IFMT, served.caller);
        return handles.open(ino, constants.O_RDWR);
      }),

    write: (path, handle, buffer, length, offset, done) =>
      attempt("write", path, done, () =>
        done(namespace.write(handles.ino(handle), offset, buffer.subarray(0, length))),
      ),

    flush: (path, handle, done) => change("flush", path, done, () => namespace.flush(handles.ino(handle))),

    fsync: (path, _dataOnly, handle, done) => change("fsync", path, done, () => namespace.fsync(handles.ino(handle))),

    fsyncdir: (path, _dataOnly, _handle, done) =>
      change("fsyncdir", path, done, () => namespace.fsync(paths.ino(path))),

    truncate: (path, size, done) => setattr("truncate", path, done, { size }),

    ftruncate: (path, handle, size, done) =>
      change("ftruncate", path, done, () => namespace.setattr(handles.ino(handle), { size }, served.caller)),

    utimens: (path, atimeMs, mtimeMs, done) =>
      setattr("utimens", path, done, { atimeNs: nanoseconds(atimeMs), mtimeNs: nanoseconds(mtimeMs) }),

    chmod: (path, mode, done) => setattr("chmod", path, done, { mode: mode & ~S_IFMT }),

    chown: (path, uid, gid, done) =>
      setattr("chown", path, done, { ...(uid !== UNCHANGED && { uid }), ...(gid !== UNCHANGED && { gid }) }),

    mknod: (path, mode, device, done) =>
      change("mknod", path, done, () => {
        const { parent, name } = paths.newPlace(path);
        namespace.mknod(parent, name, mode, device, served.caller);
      }),

    mkdir: (path, mode, done) =>
      change("mkdir", path, done, () => {
        const { parent, name } = paths.newPlace(path);
        namespace.mkdir(parent, name, mode & ~S_IFMT, served.caller);
      }),

    symlink: (target, path, done) =>
      change("symlink", path, done, () => {
        if (target.includes("\ufffd")) throw new FsError("EILSEQ");
        const { parent, name } = paths.newPlace(path);
        namespace.symlink(parent, name, bytesOf(target), served.caller);
      }),

    link: (path, newPath, done) =>
      change("link", path, done, () => {
        const { parent, name } = paths.newPlace(newPath);
        namespace.link(paths.ino(path), parent, name);
      }),

    unlink: (path, done) =>
      change("unlink", path, done, () => {
        if (paths.unhide(path)) return;
        const { parent, name } = paths.place(path);
        namespace.unlink(parent, name);
      }),

    rmdir: (path, done) =>
      change("rmdir", path, done, () => {
        const { parent, name } = paths.place(path);
        namespace.rmdir(parent, name);
        paths.moved();
      }),

    rename: (path, newPath, done) =>
      change("rename", path, done, () => {
        const from = paths.place(path);
        const { ino, mode } = namespace.lookup(from.parent, from.name);
        if (paths.isHiding(newPath) && handles.isOpen(ino)) {
          namespace.unlink(from.parent, from.name);
          paths.hide(newPath, ino);
          return;
        }
        const to = paths.newPlace(newPath);
        namespace.rename(from.parent, from.name, to.parent, to.name, 0);
        if ((mode & S_IFMT) === S_IFDIR) paths.moved();
      }),

    setxattr: (path, name, value, _position, flags, done) =>
      change("setxattr", path, done, () => {
        // The bytes are the kernel's only until the answer.
        namespace.setxattr(paths.ino(path), bytesOf(name), Buffer.from(value), flags);
      }),

    removexattr: (path, name, done) =>
      change("removexattr", path, done, () => namespace.removexattr(paths.ino(path), bytesOf(name))),
  };
}

/** The open files, by handles that count from 1: the package takes 0 for none. */
class Handles {
  readonly #namespace: Namespace;
  readonly #inodes = new Map<number, number>();
  readonly #opens = new Map<number, number>();
  #last = 0;

  constructor(namespace: Namespace) {
    this.#namespace = namespace;
  }

  open(ino: number, flags: number): number {
    this.#namespace.open(ino, flags);
    do this.#last = (this.#last % 0x7fffffff) + 1;
    while (this.#inodes.has(this.#last));
    this.#inodes.set(this.#last, ino);
    this.#opens.set(ino, (this.#opens.get(ino) ?? 0) + 1);
    return this.#last;
  }

  /** EBADF for a handle that is not open. */
  ino(handle: number): number {
    const ino = this.#inodes.get(handle);
    if (ino === undefined) throw new FsError("EBADF");
    return ino;
  }

  isOpen(ino: number): boolean {
    return this.#opens.has(ino);
  }

  release(handle: number): void {
    const ino = this.ino(handle);
    this.#inodes.delete(handle);
    const opens = (this.#opens.get(ino) ?? 1) - 1;
    if (opens === 0) this.#opens.delete(ino);
    else this.#opens.set(ino, opens);
    this.#namespace.release(ino);
  }
}

function* entries(namespace: Namespace, ino: number): Generator<Entry> {
  let after: ByteString | undefined;
  for (;;) {
    const page = namespace.readdir(ino, after, PAGE);
    yield* page;
    if (page.length < PAGE) return;
    after = page[page.length - 1]?.name;
  }
}

function statOf(attr: Attr): BindingStat {
  return {
    mode: attr.mode,
    ino: attr.ino,
    uid: attr.uid,
    gid: attr.gid,
    size: attr.size,
    nlink: attr.nlink,
    rdev: attr.rdev,
    blksize: MAX_REQUEST,
    blocks: attr.blocks,
    atime: milliseconds(attr.atimeNs),
    mtime: milliseconds(attr.mtimeNs),
    ctime: milliseconds(attr.ctimeNs),
  };
}

/** The package counts from 1970 upwards only. */
function milliseconds(timeNs: bigint): number {
  return timeNs < 0n ? 0 : Number(timeNs / 1_000_000n);
}

function nanoseconds(timeMs: number): bigint {
  return BigInt(timeMs) * 1_000_000n;
}

/** Numbers above 32 bits would be cut off: blocks are shown larger until their numbers fit. */
function statFsOf(namespace: Namespace): BindingStatFs {
  const stats = namespace.statfs();
  let scale = 1;
  while (stats.blocks / scale > 0xffffffff) scale *= 2;
  const blocks = (count: number) => Math.floor(count / scale);
  return {
    bsize: stats.bsize * scale,
    frsize: stats.bsize * scale,
    blocks: blocks(stats.blocks),
    bfree: blocks(stats.bfree),
    bavail: blocks(stats.bavail),
    files: Math.min(stats.files, 0xffffffff),
    ffree: Math.min(stats.ffree, 0xffffffff),
    favail: Math.min(stats.ffree, 0xffffffff),
    namemax: stats.namemax,
  };
}
