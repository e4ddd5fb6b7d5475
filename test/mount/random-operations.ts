/** Random changes to a directory: what there is to do, doing it, and what it leaves, in a form that can be compared. */

import fs from "node:fs";
import fc from "fast-check";
import { type ByteString, bytesOf, DatamonError, hashOf, toFsPath } from "../../src/cas/index.ts";
import { setPathTimes } from "../../src/fs/transfer/times.ts";
import { readXattrs } from "../../src/fs/transfer/xattr.ts";
import { copyFileRange, fallocate, forgetPages, Mapping, renameat2 } from "./calls.ts";
import { noise } from "./reading.ts";
import { removeXattr, setXattr } from "./xattrs.ts";

const { O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } = fs.constants;
const RENAME_EXCHANGE = 2;

/** A change to what a path leads to. Offsets, sizes and lengths are in bytes. */
type PathOperation =
  | { op: "create" | "mkdir" | "unlink" | "rmdir" | "sync" | "read"; path: ByteString }
  | { op: "symlink"; path: ByteString; target: string }
  | { op: "replace" | "append"; path: ByteString; length: number; seed: number }
  | { op: "write"; path: ByteString; offset: number; length: number; seed: number; sync: boolean }
  | { op: "map"; path: ByteString; length: number; seed: number }
  | { op: "copy"; path: ByteString; to: ByteString; offset: number; at: number; length: number }
  | { op: "truncate"; path: ByteString; size: number }
  | { op: "allocate"; path: ByteString; mode: number; offset: number; length: number }
  | { op: "rename"; path: ByteString; to: ByteString; flags: number }
  | { op: "link"; path: ByteString; to: ByteString }
  | { op: "chmod"; path: ByteString; mode: number }
  | { op: "chown"; path: ByteString; uid: number; gid: number }
  | { op: "utimes"; path: ByteString; mtimeNs: bigint }
  | { op: "setxattr"; path: ByteString; name: string; length: number; seed: number; flags: number }
  | { op: "removexattr"; path: ByteString; name: string };

/** A change through one of the files that are kept open. */
type OpenOperation =
  | { op: "open"; slot: number; path: ByteString; flags: number }
  | { op: "open-unnamed"; slot: number; path: ByteString }
  | { op: "pwrite"; slot: number; offset: number; length: number; seed: number }
  | { op: "pread"; slot: number; offset: number; length: number }
  | { op: "ftruncate"; slot: number; size: number }
  | { op: "fallocate"; slot: number; mode: number; offset: number; length: number }
  | { op: "fsync" | "fstat" | "close"; slot: number };

export type Operation = PathOperation | OpenOperation;

/** How many files are kept open. */
const SLOTS = 4;

const MIB = 1024 * 1024;
const bytes = (...codes: number[]): ByteString => Buffer.from(codes).toString("latin1") as ByteString;

const NAMES = ["a", "b", "c", "d", "e"].map(bytesOf);
const ODD = [bytes(0xff, 0xfe), bytesOf("with space\nand …"), "x".repeat(255) as ByteString, bytesOf("-rf *")];
/** Directories of the base, which most changes are to hit. */
const BASE_PATHS = [
  "a",
  "b",
  "c",
  "d",
  "a/a",
  "a/b",
  "a/c",
  "b/a",
  "b/b",
  "b/c",
  "c/a",
  "c/a/b",
  "c/d",
  "b/many/f3",
].map(bytesOf);

const name = fc.oneof(
  { weight: 9, arbitrary: fc.constantFrom(...NAMES) },
  { weight: 1, arbitrary: fc.constantFrom(...ODD) },
);
const path = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(...BASE_PATHS) },
  {
    weight: 2,
    arbitrary: fc.array(name, { minLength: 1, maxLength: 3 }).map((names) => names.join("/") as ByteString),
  },
);
const offset = fc.oneof(
  { weight: 3, arbitrary: fc.nat(10_000) },
  { weight: 2, arbitrary: fc.nat(5 * MIB) },
  { weight: 1, arbitrary: fc.nat(1200).map((pages) => pages * 4096) },
);
const length = fc.oneof(
  { weight: 6, arbitrary: fc.nat(6000) },
  { weight: 2, arbitrary: fc.nat(300_000) },
  { weight: 1, arbitrary: fc.nat(3 * MIB) },
);
const seed = fc.nat(250);
const xattrName = fc.constantFrom("user.a", "user.b", "user.of the base");
const allocation = fc.constantFrom(0, 1, 3, 0x10, 0x11);
const slot = fc.nat(SLOTS - 1);
const is = <T extends string>(...names: T[]): fc.Arbitrary<T> => fc.constantFrom(...names);

/** At most a year before the test began, and to the nanosecond. */
const past = fc.bigInt(1_000_000_000n, 1_500_000_000_999_999_999n);

export const operation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ op: is("create", "mkdir", "unlink", "rmdir", "sync", "read"), path }) },
  { weight: 2, arbitrary: fc.record({ op: is("symlink"), path, target: is("a", "b/a", "nowhere", "c/a") }) },
  { weight: 3, arbitrary: fc.record({ op: is("replace", "append"), path, length, seed }) },
  { weight: 7, arbitrary: fc.record({ op: is("write"), path, offset, length, seed, sync: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ op: is("map"), path, length: fc.integer({ min: 1, max: 200_000 }), seed }) },
  { weight: 1, arbitrary: fc.record({ op: is("copy"), path, to: path, offset, at: offset, length }) },
  { weight: 4, arbitrary: fc.record({ op: is("truncate"), path, size: offset }) },
  { weight: 3, arbitrary: fc.record({ op: is("allocate"), path, mode: allocation, offset, length }) },
  { weight: 7, arbitrary: fc.record({ op: is("rename"), path, to: path, flags: fc.constantFrom(0, 0, 1, 2) }) },
  { weight: 3, arbitrary: fc.record({ op: is("link"), path, to: path }) },
  {
    weight: 2,
    arbitrary: fc.record({ op: is("chmod"), path, mode: fc.constantFrom(0o600, 0o6755, 0o2644, 0o2775, 0o1777) }),
  },
  { weight: 1, arbitrary: fc.record({ op: is("chown"), path, uid: fc.nat(9), gid: fc.nat(9) }) },
  { weight: 2, arbitrary: fc.record({ op: is("utimes"), path, mtimeNs: past }) },
  {
    weight: 2,
    arbitrary: fc.record({
      op: is("setxattr"),
      path,
      name: xattrName,
      length: fc.nat(300),
      seed,
      flags: fc.constantFrom(0, 0, 1, 2),
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: is("removexattr"), path, name: xattrName }) },
  {
    weight: 3,
    arbitrary: fc.record({
      op: is("open"),
      slot,
      path,
      flags: fc.constantFrom(O_RDWR, O_RDWR, O_RDWR | O_CREAT, O_RDONLY, O_RDWR | O_APPEND, O_RDWR | O_TRUNC),
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: is("open-unnamed"), slot, path }) },
  { weight: 6, arbitrary: fc.record({ op: is("pwrite"), slot, offset, length, seed }) },
  { weight: 2, arbitrary: fc.record({ op: is("pread"), slot, offset, length }) },
  { weight: 2, arbitrary: fc.record({ op: is("ftruncate"), slot, size: offset }) },
  { weight: 1, arbitrary: fc.record({ op: is("fallocate"), slot, mode: allocation, offset, length }) },
  { weight: 3, arbitrary: fc.record({ op: is("fsync", "fstat", "close"), slot }) },
);

/**
 * True where doing the operation once more leaves what doing it once leaves, so that it can be done
 * again where nobody said whether it was done.
 */
export function isRepeatable(operation: Operation): boolean {
  if ("slot" in operation) return false;
  if (operation.op === "rename") return operation.flags !== RENAME_EXCHANGE;
  // What is mapped of a mount that dies kills who looks at it.
  return operation.op !== "append" && operation.op !== "map";
}

/** Makes the tree that the base bundle is of. */
export function makeBase(root: string): void {
  const at = (name: string): string => `${root}/${name}`;
  for (const directory of ["a", "b", "b/many", "c", "c/a", "c/d"]) fs.mkdirSync(at(directory), { recursive: true });
  fs.writeFileSync(at("a/a"), noise(1, 3000));
  fs.writeFileSync(at("a/b"), noise(2, 1_300_000));
  fs.writeFileSync(at("a/c"), "");
  fs.writeFileSync(at("b/a"), noise(3, 4 * MIB + 17));
  fs.linkSync(at("a/a"), at("b/b"));
  fs.writeFileSync(at("b/c"), noise(4, 10_000), { mode: 0o600 });
  for (let index = 0; index < 8; index++) fs.writeFileSync(at(`b/many/f${index}`), noise(index, 100 + index * 900));
  fs.symlinkSync("a/a", at("d"));
  fs.writeFileSync(at("c/a/b"), noise(5, 70_000));
  fs.chmodSync(at("c/d"), 0o2775);
  fs.writeFileSync(toFsPath(`${bytesOf(root)}/c/${ODD[0]}` as ByteString), "odd");
  setXattr(bytesOf(at("a/b")), "user.of the base", Buffer.from("kept"));
  for (const file of fs.readdirSync(root, { recursive: true, encoding: "latin1" })) {
    setPathTimes(`${bytesOf(root)}/${file}` as ByteString, 1_400_000_000_123_456_789n);
  }
}

/** A directory that operations are done in, with the files of it that are kept open. */
export class Place {
  readonly root: ByteString;
  readonly #open = new Map<number, number>();
  /** Names of the files that are open without a name count up, so that none is there before. */
  #unnamed = 0;

  constructor(root: string) {
    this.root = bytesOf(root);
  }

  /** Does the operation; returns what it came to: "ok", what was read, or the name of the errno. */
  do(operation: Operation): string {
    try {
      if (!("slot" in operation)) return String(this.#onPath(operation) ?? "ok");
      if (operation.op === "open" || operation.op === "open-unnamed") return this.#openFile(operation);
      const fd = this.#open.get(operation.slot);
      return fd === undefined ? "not open" : String(this.#onOpen(operation, fd) ?? "ok");
    } catch (error) {
      const { code } = (error instanceof DatamonError ? error.cause : error) as NodeJS.ErrnoException;
      if (code === undefined || code.startsWith("ERR_")) throw error;
      return code;
    }
  }

  /** Closes what is open, whatever that answers. */
  closeAll(): void {
    for (const fd of this.#open.values()) {
      try {
        fs.closeSync(fd);
      } catch {
        // The mount is dead.
      }
    }
    this.#open.clear();
  }

  #path(path: ByteString): ByteString {
    return `${this.root}/${path}` as ByteString;
  }

  #onPath(operation: PathOperation): unknown {
    const path = this.#path(operation.path);
    const file = toFsPath(path);
    switch (operation.op) {
      case "create":
        fs.closeSync(fs.openSync(file, O_CREAT | O_EXCL | O_WRONLY, 0o640));
        return;
      case "mkdir":
        fs.mkdirSync(file, 0o755);
        return;
      case "unlink":
        fs.unlinkSync(file);
        return;
      case "rmdir":
        fs.rmdirSync(file);
        return;
      case "symlink":
        fs.symlinkSync(operation.target, file);
        return;
      case "sync":
        return using(file, O_RDONLY, (fd) => fs.fsyncSync(fd));
      case "read":
        return using(file, O_RDONLY, (fd) => hashOf(fs.readFileSync(fd)));
      case "replace":
        return using(file, O_CREAT | O_TRUNC | O_WRONLY, (fd) => write(fd, operation, null));
      case "append":
        return using(file, O_APPEND | O_WRONLY, (fd) => write(fd, operation, null));
      case "write":
        return using(file, O_WRONLY, (fd) => {
          write(fd, operation, operation.offset);
          if (operation.sync) fs.fsyncSync(fd);
        });
      case "map":
        return using(file, O_RDWR, (fd) => {
          const size = Math.min(operation.length, fs.fstatSync(fd).size);
          if (size === 0) return;
          const mapping = new Mapping(fd, size);
          mapping.write(noise(operation.seed, size));
          mapping.sync();
          mapping.close();
        });
      case "copy": {
        const to = toFsPath(this.#path(operation.to));
        return using(file, O_RDONLY, (from) =>
          using(to, O_WRONLY, (fd) =>
            copyFileRange(from, operation.offset, fd, operation.at, Math.max(operation.length, 1)),
          ),
        );
      }
      case "truncate":
        fs.truncateSync(file, operation.size);
        return;
      case "allocate":
        return using(file, O_WRONLY, (fd) => allocate(fd, operation));
      case "rename":
        renameat2(path, this.#path(operation.to), operation.flags);
        return;
      case "link":
        fs.linkSync(file, toFsPath(this.#path(operation.to)));
        return;
      case "chmod":
        fs.chmodSync(file, operation.mode);
        return;
      case "chown":
        fs.lchownSync(file, operation.uid, operation.gid);
        return;
      case "utimes":
        fs.lstatSync(file);
        setPathTimes(path, operation.mtimeNs);
        return;
      case "setxattr":
        setXattr(path, operation.name, noise(operation.seed, operation.length), operation.flags);
        return;
      case "removexattr":
        removeXattr(path, operation.name);
        return;
    }
  }

  #openFile(operation: Extract<OpenOperation, { op: "open" | "open-unnamed" }>): string {
    this.#close(operation.slot);
    if (operation.op === "open") {
      this.#open.set(operation.slot, fs.openSync(toFsPath(this.#path(operation.path)), operation.flags, 0o600));
      return "ok";
    }
    // In the directory that the path is in, under a name that nothing else has.
    const directory = operation.path.slice(0, Math.max(operation.path.lastIndexOf("/"), 0));
    const file = toFsPath(this.#path(`${directory}/unnamed-${this.#unnamed++}` as ByteString));
    this.#open.set(operation.slot, fs.openSync(file, O_CREAT | O_EXCL | O_RDWR, 0o600));
    fs.unlinkSync(file);
    return "ok";
  }

  #onOpen(operation: Exclude<OpenOperation, { op: "open" | "open-unnamed" }>, fd: number): unknown {
    switch (operation.op) {
      case "pwrite":
        write(fd, operation, operation.offset);
        return;
      case "pread": {
        const content = Buffer.alloc(operation.length);
        return hashOf(content.subarray(0, fs.readSync(fd, content, 0, content.length, operation.offset)));
      }
      case "ftruncate":
        fs.ftruncateSync(fd, operation.size);
        return;
      case "fallocate":
        allocate(fd, operation);
        return;
      case "fsync":
        fs.fsyncSync(fd);
        return;
      case "fstat": {
        const { mode, nlink, size } = fs.fstatSync(fd);
        return (mode & fs.constants.S_IFMT) === fs.constants.S_IFDIR ? `${mode}` : `${mode} ${nlink} ${size}`;
      }
      case "close":
        this.#close(operation.slot);
        return;
    }
  }

  #close(slot: number): void {
    const fd = this.#open.get(slot);
    this.#open.delete(slot);
    if (fd !== undefined) fs.closeSync(fd);
  }
}

/** Where both fail, what went wrong in `use` is told. */
function using<T>(file: string | Buffer, flags: number, use: (fd: number) => T): T {
  const fd = fs.openSync(file, flags, 0o640);
  let answer: T;
  try {
    answer = use(fd);
  } catch (error) {
    try {
      fs.closeSync(fd);
    } catch {
      // The mount is dead.
    }
    throw error;
  }
  fs.closeSync(fd);
  return answer;
}

function write(fd: number, { length, seed }: { length: number; seed: number }, offset: number | null): void {
  const data = noise(seed, length);
  for (let done = 0; done < length; ) {
    done += fs.writeSync(fd, data, done, length - done, offset === null ? null : offset + done);
  }
}

function allocate(fd: number, { mode, offset, length }: { mode: number; offset: number; length: number }): void {
  fallocate(fd, mode, offset, length);
}

/** What is compared of an entry of a tree. */
export interface Seen {
  readonly mode: string;
  readonly owner: string;
  readonly mtimeNs: bigint;
  readonly xattrs: string[];
  readonly target?: string;
  readonly size?: number;
  readonly hash?: string;
  /** How many names the file has, and the first of them. */
  readonly names?: string;
}

/** Everything below `root`, and the directory itself, by path. Checks that directories tell how many they hold. */
export function treeOf(root: string): Map<ByteString, Seen> {
  const found = new Map<ByteString, Seen>();
  const firsts = new Map<bigint, ByteString>();
  const visit = (path: ByteString): number => {
    const absolute = (path === "" ? bytesOf(root) : `${bytesOf(root)}/${path}`) as ByteString;
    const file = toFsPath(absolute);
    const stat = fs.lstatSync(file, { bigint: true });
    const seen = {
      mode: stat.mode.toString(8),
      owner: `${stat.uid}:${stat.gid}`,
      mtimeNs: stat.mtimeNs,
      xattrs: stat.isSymbolicLink()
        ? []
        : [...(readXattrs(absolute) ?? [])].map(([key, value]) => `${key} ${hashOf(value)}`).sort(),
    };
    if (!stat.isDirectory()) {
      if (!firsts.has(stat.ino)) firsts.set(stat.ino, path);
      const names = `${stat.nlink}, ${firsts.get(stat.ino)}`;
      if (stat.isSymbolicLink()) found.set(path, { ...seen, names, target: fs.readlinkSync(file, "latin1") });
      else found.set(path, { ...seen, names, size: Number(stat.size), hash: contentOf(file) });
      return 0;
    }
    found.set(path, seen);
    let directories = 2;
    for (const name of (fs.readdirSync(file, "latin1") as ByteString[]).sort()) {
      directories += visit((path === "" ? name : `${path}/${name}`) as ByteString);
    }
    // Some file systems count one link for every directory.
    if (stat.nlink !== 1n && Number(stat.nlink) !== directories) {
      throw new Error(`${path} has ${stat.nlink} links, and ${directories - 2} directories in it`);
    }
    return 1;
  };
  visit("" as ByteString);
  return found;
}

function contentOf(file: string | Buffer): string {
  const fd = fs.openSync(file, O_RDONLY);
  try {
    forgetPages(fd);
    return hashOf(fs.readFileSync(fd));
  } finally {
    fs.closeSync(fd);
  }
}
