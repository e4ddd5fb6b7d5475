/** An overlay does what a plain directory does, through restarts, crashes and commits, while it goes on and at its end. */

import assert from "node:assert/strict";
import fs from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import fc from "fast-check";
import { type ByteString, bytesOf } from "../../src/cas/index.ts";
import { commitScratch } from "../../src/fs/commit.ts";
import { errnoName, FsError } from "../../src/fs/errno.ts";
import { LiveCommits } from "../../src/fs/live-commit.ts";
import { type Attr, openNamespace } from "../../src/fs/namespace.ts";
import { OverlayNamespace } from "../../src/fs/overlay/overlay.ts";
import { createScratch, rereadScratch, type Scratch, settleScratch } from "../../src/fs/scratch.ts";
import { type Bundle, Catalog } from "../../src/meta/index.ts";
import { noise, ROOT_USER, type Spec, type TreeEntry, World } from "./fixture.ts";

const NAMES = ["a", "b", "c", "d"];
const BASE: Spec[] = [
  { path: "a", kind: "directory", mode: 0o2775, gid: 5 },
  { path: "a/a", kind: "file", content: noise(3000, 1) },
  { path: "a/b", kind: "directory" },
  { path: "a/b/a", kind: "file", content: noise(10, 2) },
  { path: "a/b/b", kind: "link", to: "a/a" },
  { path: "a/c", kind: "file", content: noise(1_300_000, 3), mode: 0o4755 },
  { path: "b", kind: "file", content: Buffer.alloc(0) },
  { path: "c", kind: "directory" },
  { path: "c/d", kind: "directory" },
  { path: "d", kind: "symlink", target: "nowhere" },
];

type Operation =
  | { op: "create" | "mkdir" | "unlink" | "rmdir" | "symlink"; path: string }
  | { op: "write"; path: string; offset: number; length: number; seed: number }
  | { op: "truncate"; path: string; size: number }
  | { op: "rename" | "link"; path: string; to: string }
  | { op: "chmod"; path: string; mode: number }
  | { op: "chown"; path: string; uid: number; gid: number }
  | { op: "utimes"; path: string; seconds: number }
  | { op: "scribble"; path: string; seed: number }
  | Interlude;

/** What changes nothing that is seen. */
type Interlude = { op: "reopen" | "crash" | "freeze" | "commit" };

const isInterlude = (operation: Operation): operation is Interlude =>
  ["reopen", "crash", "freeze", "commit"].includes(operation.op);

const path = fc.array(fc.constantFrom(...NAMES), { minLength: 1, maxLength: 3 }).map((names) => names.join("/"));
const existing = fc.constantFrom(...BASE.map((spec) => spec.path));
const anyPath = fc.oneof({ weight: 2, arbitrary: path }, { weight: 1, arbitrary: existing });
const position = fc.oneof(fc.nat(4000), fc.nat(1_400_000));
const op = <T extends string>(...names: T[]) => fc.constantFrom(...names);
const operation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ op: op("create", "mkdir", "unlink", "rmdir", "symlink"), path: anyPath }) },
  {
    weight: 5,
    arbitrary: fc.record({ op: op("write"), path: anyPath, offset: position, length: fc.nat(5000), seed: fc.nat(250) }),
  },
  { weight: 2, arbitrary: fc.record({ op: op("truncate"), path: anyPath, size: position }) },
  { weight: 5, arbitrary: fc.record({ op: op("rename", "link"), path: anyPath, to: anyPath }) },
  {
    weight: 1,
    arbitrary: fc.record({ op: op("chmod"), path: anyPath, mode: fc.constantFrom(0o600, 0o6755, 0o2644, 0o2775) }),
  },
  { weight: 1, arbitrary: fc.record({ op: op("chown"), path: anyPath, uid: fc.nat(9), gid: fc.nat(9) }) },
  { weight: 1, arbitrary: fc.record({ op: op("utimes"), path: anyPath, seconds: fc.integer({ min: 1, max: 1e9 }) }) },
  { weight: 1, arbitrary: fc.record({ op: op("scribble"), path: anyPath, seed: fc.nat(250) }) },
  { weight: 2, arbitrary: fc.record({ op: op("reopen", "crash", "freeze", "commit") }) },
);

let world: World;
let base: Bundle;
let catalog: string;
before(async () => {
  world = await World.open();
  base = await world.bundle(BASE);
  catalog = await world.catalog(base);
});
after(() => world.close());

// The directory that is compared with can be given other owners by root alone.
const asRoot = process.getuid?.() === 0;

test("random operations", { skip: asRoot ? false : "needs root to change owners" }, async () => {
  let run = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { minLength: 5, maxLength: 60 }), async (operations) => {
      await compare(operations, join(world.directory, `plain-${run++}`));
    }),
    { numRuns: Number(process.env.PROPERTY_RUNS ?? 15) },
  );
});

async function compare(operations: Operation[], plain: string): Promise<void> {
  const overlay = new Overlay(await newScratch());
  makePlain(plain);
  try {
    for (const each of operations) {
      if (isInterlude(each)) await overlay[each.op]();
      else {
        const expected = attempt(() => onPlain(plain, each));
        if (expected === undefined) continue;
        const actual = attempt(() => overlay.do(each));
        assert.equal(verdict(each, actual), verdict(each, expected), JSON.stringify(each));
      }
    }
    const expected = plainTree(plain);
    same(overlay.tree(await world.tree(overlay.namespace)), expected);
    await overlay.reopen();
    same(overlay.tree(await world.tree(overlay.namespace)), expected);
    const before = overlay.tree(await world.tree(overlay.namespace));
    const changes = overlay.namespace.changes();
    const below = overlay.base;
    overlay.namespace.close();
    const bundle = await commitScratch(world.context, overlay.scratch, { cacheDirectory: world.cacheDirectory });
    if (bundle === undefined) {
      if (changes > 0) same(await committedTree(below.bundle, below.catalog), before);
      return;
    }
    same(await committedTree(bundle.id, await world.catalog(bundle)), before);
  } finally {
    overlay.namespace.close();
    fs.rmSync(plain, { recursive: true, force: true });
    fs.rmSync(overlay.scratch.directory, { recursive: true, force: true });
  }
}

/** Where both paths of an operation lead nowhere, it is the kernel's affair which one it says so of. */
function verdict({ op }: Operation, outcome: string | undefined): string | undefined {
  const twoPaths = op === "rename" || op === "link";
  return twoPaths && outcome === "ENOTDIR" ? "ENOENT" : outcome;
}

const newScratch = (): Promise<Scratch> =>
  createScratch(world.scratchRoot, {
    repo: "repo",
    base: { bundle: base.id, catalog: base.catalog },
    directory: "/mnt/x",
  });

async function committedTree(bundle: string, file: string): Promise<Map<string, Seen>> {
  const opened = Catalog.open(file);
  opened.validate();
  opened.close();
  const snapshot = openNamespace({ kind: "snapshot", catalog: file, bundle });
  try {
    return seen(await world.tree(snapshot));
  } finally {
    snapshot.close();
  }
}

/** What is compared of an entry. `mtime` is in seconds, "now" for any that the run itself made. */
interface Seen {
  mode: number;
  uid: number;
  gid: number;
  nlink: number;
  size: number;
  mtime: number | "now";
  content: string | undefined;
  target: string | undefined;
}

const START = Math.floor(Date.now() / 1000) - 5;
const mtimeOf = (seconds: number): number | "now" => (seconds >= START ? "now" : seconds);

function same(actual: Map<string, Seen>, expected: Map<string, Seen>): void {
  assert.deepEqual([...actual.keys()].toSorted(), [...expected.keys()].toSorted());
  for (const [name, entry] of expected) {
    const { content, ...attributes } = entry;
    const { content: other, ...others } = actual.get(name)!;
    assert.deepEqual(others, attributes, name);
    assert.ok(content === other, `the content of ${name}`);
  }
}

function seen(tree: Map<ByteString, TreeEntry>): Map<string, Seen> {
  return new Map(
    [...tree].map(([name, { attr, content, target }]) => [
      name,
      {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        nlink: attr.nlink,
        size: content === undefined ? 0 : attr.size,
        mtime: mtimeOf(Number(attr.mtimeNs / 1_000_000_000n)),
        content: content?.toString("latin1"),
        target,
      },
    ]),
  );
}

function plainTree(root: string): Map<string, Seen> {
  const found = new Map<string, Seen>();
  for (const name of fs.readdirSync(root, { recursive: true }) as string[]) {
    const file = join(root, name);
    const stat = fs.lstatSync(file);
    const content = stat.isFile() ? fs.readFileSync(file, "latin1") : undefined;
    found.set(name, {
      mode: stat.mode,
      uid: stat.uid,
      gid: stat.gid,
      nlink: stat.nlink,
      size: content === undefined ? 0 : stat.size,
      mtime: mtimeOf(Math.floor(stat.mtimeMs / 1000)),
      content,
      target: stat.isSymbolicLink() ? fs.readlinkSync(file) : undefined,
    });
  }
  return found;
}

/** "ok", the name of the errno, or undefined where the operation is not one that is compared. */
function attempt(call: () => boolean): string | undefined {
  try {
    return call() ? "ok" : undefined;
  } catch (error) {
    if (error instanceof FsError) return errnoName(error);
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined || code.startsWith("ERR_")) throw error;
    return code;
  }
}

function makePlain(root: string): void {
  fs.mkdirSync(root);
  for (const spec of BASE) {
    const file = join(root, spec.path);
    if (spec.kind === "directory") fs.mkdirSync(file);
    else if (spec.kind === "symlink") fs.symlinkSync(spec.target, file);
    else if (spec.kind === "link") fs.linkSync(join(root, spec.to), file);
    else fs.writeFileSync(file, spec.content);
    if (spec.kind === "link") continue;
    fs.lchownSync(file, 0, spec.gid ?? 0);
    if (spec.kind !== "symlink") fs.chmodSync(file, spec.mode ?? (spec.kind === "file" ? 0o644 : 0o755));
  }
  for (const spec of BASE) fs.lutimesSync(join(root, spec.path), 1.5e9, 1.5e9);
}

/** Does `operation` below `root`; false where it goes through a symbolic link, which is the kernel's affair. */
function onPlain(root: string, operation: Exclude<Operation, Interlude>): boolean {
  const file = join(root, operation.path);
  if (throughLink(root, operation.path)) return false;
  const isLink = fs.lstatSync(file, { throwIfNoEntry: false })?.isSymbolicLink() ?? false;
  switch (operation.op) {
    case "create":
      if (isLink) return false;
      fs.closeSync(fs.openSync(file, fs.constants.O_CREAT | fs.constants.O_EXCL | fs.constants.O_WRONLY, 0o644));
      return true;
    case "mkdir":
      fs.mkdirSync(file, 0o755);
      return true;
    case "unlink":
      fs.unlinkSync(file);
      return true;
    case "rmdir":
      fs.rmdirSync(file);
      return true;
    case "symlink":
      fs.symlinkSync("target", file);
      return true;
    case "rename":
    case "link": {
      const to = join(root, operation.to);
      // What the kernel itself refuses before it asks the file system.
      if (throughLink(root, operation.to) || within(operation.path, operation.to)) return false;
      if (operation.op === "rename") fs.renameSync(file, to);
      else fs.linkSync(file, to);
      return true;
    }
    case "write":
    case "scribble": {
      if (isLink) return false;
      const fd = fs.openSync(file, fs.constants.O_RDWR);
      try {
        if (operation.op === "write") {
          const data = noise(operation.length, operation.seed);
          fs.writeSync(fd, data, 0, data.length, operation.offset);
        } else {
          fs.unlinkSync(file);
          fs.writeSync(fd, noise(100, operation.seed), 0, 100, 50);
          fs.ftruncateSync(fd, 120);
        }
      } finally {
        fs.closeSync(fd);
      }
      return true;
    }
    case "truncate":
      if (isLink) return false;
      fs.truncateSync(file, operation.size);
      return true;
    case "chmod":
      if (isLink) return false;
      fs.chmodSync(file, operation.mode);
      return true;
    case "chown":
      fs.lchownSync(file, operation.uid, operation.gid);
      return true;
    case "utimes":
      fs.lutimesSync(file, operation.seconds, operation.seconds);
      return true;
  }
}

function throughLink(root: string, name: string): boolean {
  const names = name.split("/");
  return names.some(
    (_, at) => at > 0 && fs.lstatSync(join(root, ...names.slice(0, at)), { throwIfNoEntry: false })?.isSymbolicLink(),
  );
}

/** True where one of the paths is in the other, as a name. */
function within(one: string, other: string): boolean {
  return one.startsWith(`${other}/`) || other.startsWith(`${one}/`);
}

/** The overlay, driven by paths. */
class Overlay {
  scratch: Scratch;
  namespace: OverlayNamespace;
  /** What the lowest layer stands on. */
  base = { bundle: base.id, catalog };

  constructor(scratch: Scratch) {
    this.scratch = scratch;
    this.namespace = OverlayNamespace.open(scratch.directory, catalog, base.id);
  }

  async reopen(): Promise<void> {
    this.namespace.close();
    await this.#open();
  }

  async freeze(): Promise<void> {
    this.namespace.freeze();
  }

  async commit(): Promise<void> {
    const rebase = async (file: string | undefined, bundle: string | undefined): Promise<boolean> => {
      const close = this.namespace.rebase(file, bundle);
      close?.();
      if (close !== undefined) this.base = { bundle: bundle!, catalog: file! };
      return close !== undefined;
    };
    const layers = { freeze: async () => this.namespace.freeze(), rebase };
    const { cacheDirectory } = world;
    await new LiveCommits(world.context, layers, this.scratch, { cacheDirectory }, async () => {}).commit({});
  }

  async #open(): Promise<void> {
    const { directory, record } = await settleScratch(await rereadScratch(this.scratch));
    this.base = { bundle: record.base!.bundle, catalog: await world.catalog(record.base!) };
    this.namespace = OverlayNamespace.open(directory, this.base.catalog, this.base.bundle);
  }

  /** Goes on with what another process would find after this one was killed. */
  async crash(): Promise<void> {
    const { directory } = this.scratch;
    const copy = `${directory}0`;
    fs.cpSync(directory, copy, { recursive: true, preserveTimestamps: true, filter: (file) => !file.endsWith("-shm") });
    this.namespace.close();
    fs.rmSync(directory, { recursive: true });
    fs.renameSync(copy, directory);
    await this.#open();
  }

  tree(found: Map<ByteString, TreeEntry>): Map<string, Seen> {
    return seen(found);
  }

  do(operation: Exclude<Operation, Interlude>): boolean {
    const { namespace } = this;
    const { parent, name } = this.#place(operation.path);
    switch (operation.op) {
      case "create":
        namespace.create(parent, name, 0o644, ROOT_USER);
        return true;
      case "mkdir":
        namespace.mkdir(parent, name, 0o755, ROOT_USER);
        return true;
      case "unlink":
        namespace.unlink(parent, name);
        return true;
      case "rmdir":
        namespace.rmdir(parent, name);
        return true;
      case "symlink":
        namespace.symlink(parent, name, bytesOf("target"), ROOT_USER);
        return true;
      case "rename": {
        const to = this.#place(operation.to);
        namespace.rename(parent, name, to.parent, to.name, 0);
        return true;
      }
      case "link": {
        const to = this.#place(operation.to);
        const { ino } = namespace.lookup(parent, name);
        namespace.link(ino, to.parent, to.name);
        return true;
      }
      case "write": {
        const { ino } = namespace.lookup(parent, name);
        this.#writable(ino);
        namespace.write(ino, operation.offset, noise(operation.length, operation.seed), ROOT_USER);
        return true;
      }
      case "scribble": {
        const { ino } = namespace.lookup(parent, name);
        this.#writable(ino);
        namespace.open(ino, fs.constants.O_RDWR);
        namespace.unlink(parent, name);
        namespace.write(ino, 50, noise(100, operation.seed), ROOT_USER);
        namespace.setattr(ino, { size: 120 }, ROOT_USER);
        assert.equal(namespace.getattr(ino).size, 120);
        namespace.release(ino);
        return true;
      }
      case "truncate":
        this.#change(parent, name, { size: operation.size });
        return true;
      case "chmod":
        this.#change(parent, name, { mode: operation.mode });
        return true;
      case "chown":
        this.#change(parent, name, { uid: operation.uid, gid: operation.gid });
        return true;
      case "utimes": {
        const time = BigInt(operation.seconds) * 1_000_000_000n;
        this.#change(parent, name, { mtimeNs: time, atimeNs: time });
        return true;
      }
    }
  }

  #change(parent: number, name: ByteString, changes: Parameters<OverlayNamespace["setattr"]>[1]): Attr {
    return this.namespace.setattr(this.namespace.lookup(parent, name).ino, changes, ROOT_USER);
  }

  #writable(ino: number): void {
    if ((this.namespace.getattr(ino).mode & 0o170000) === 0o040000) throw new FsError("EISDIR");
  }

  #place(path: string): { parent: number; name: ByteString } {
    const names = path.split("/").map(bytesOf);
    const name = names.pop()!;
    let parent = 1;
    for (const each of names) {
      const { ino, mode } = this.namespace.lookup(parent, each);
      if ((mode & 0o170000) !== 0o040000) throw new FsError("ENOTDIR");
      parent = ino;
    }
    return { parent, name };
  }
}
