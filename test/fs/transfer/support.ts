import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { type ByteString, bytesOf, hashOf, toFsPath } from "../../../src/cas/index.ts";
import {
  type DownloadOptions,
  downloadBundle,
  type UploadOptions,
  type UploadResult,
  uploadTree,
} from "../../../src/fs/transfer/index.ts";
import { setPathTimes } from "../../../src/fs/transfer/times.ts";
import { readXattrs } from "../../../src/fs/transfer/xattr.ts";
import { type Bundle, type Context, createRepo, openContext } from "../../../src/meta/index.ts";

export const REPO = "birds";

/** A temporary folder with stores, a repo, a cache and a source folder `tree`. */
export class Workplace {
  readonly root: string;
  readonly context: Context;
  readonly tree: string;
  readonly cacheDirectory: string;
  readonly stateFile: string;
  readonly warnings: string[] = [];

  private constructor(root: string, context: Context) {
    this.root = root;
    this.context = context;
    this.tree = join(root, "tree");
    this.cacheDirectory = join(root, "cache");
    this.stateFile = join(root, "stat.sqlite");
  }

  static async make(): Promise<Workplace> {
    const root = await mkdtemp(join(tmpdir(), "datamon-transfer-"));
    const context = await openStores(root);
    await createRepo(context, { name: REPO, description: "for a test" });
    mkdirSync(join(root, "tree"));
    return new Workplace(root, context);
  }

  /** The workplace that another process made. */
  static async at(root: string): Promise<Workplace> {
    return new Workplace(root, await openStores(root));
  }

  [Symbol.dispose](): void {
    spawnSync("chmod", ["-R", "u+rwX", this.root]);
    rmSync(this.root, { recursive: true, force: true });
  }

  path(...names: string[]): string {
    return join(this.root, ...names);
  }

  /** Writes a file of the source tree, with an old time, so that the stat cache may note it. */
  write(path: string, content: string | Buffer): void {
    writeOld(join(this.tree, path), content);
  }

  upload(options: Partial<UploadOptions> = {}): Promise<UploadResult> {
    return uploadTree(this.context, this.uploadOptions(options));
  }

  uploadOptions(options: Partial<UploadOptions> = {}): UploadOptions {
    return {
      repo: REPO,
      path: this.tree,
      message: "a test",
      cacheDirectory: this.cacheDirectory,
      stateFile: this.stateFile,
      onWarning: (message) => this.warnings.push(message),
      ...options,
    };
  }

  async download(bundle: Bundle, name: string, options: Partial<DownloadOptions> = {}): Promise<string> {
    const destination = this.path(name);
    await downloadBundle(this.context, {
      bundle,
      destination,
      cacheDirectory: this.cacheDirectory,
      onWarning: (message) => this.warnings.push(message),
      ...options,
    });
    return destination;
  }

  /** Objects of the blob store with their inode numbers and times: an object that is put again shows. */
  blobs(): Map<string, string> {
    const found = new Map<string, string>();
    const root = join(this.root, "blob");
    for (const name of readdirSync(root, { recursive: true, encoding: "utf8" }).sort()) {
      const stat = statSync(join(root, name), { bigint: true });
      if (stat.isFile()) found.set(name, `${stat.ino} ${stat.mtimeNs}`);
    }
    return found;
  }
}

export async function openStores(root: string): Promise<Context> {
  return await openContext({
    metadata: pathToFileURL(join(root, "meta")).href,
    blob: pathToFileURL(join(root, "blob")).href,
    name: "Ada",
    email: "ada@example.org",
    file: undefined,
  });
}

/** Writes a file, making the directories above it. */
export function writeOld(path: string, content: string | Buffer): void {
  mkdirSync(join(path, ".."), { recursive: true });
  writeFileSync(path, content);
}

/** Waits until what was just written counts as settled for the stat cache. */
export async function settle(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  setTimeout(resolve, 40);
  await promise;
}

/** Everything that a bundle keeps of a tree, by path. */
export function snapshot(root: string): Map<ByteString, Record<string, unknown>> {
  const found = new Map<ByteString, Record<string, unknown>>();
  const links = new Map<string, ByteString>();
  const visit = (path: ByteString): void => {
    const absolute = (path === "" ? bytesOf(root) : `${bytesOf(root)}/${path}`) as ByteString;
    const native = toFsPath(absolute);
    const stat = lstatSync(native, { bigint: true });
    const entry: Record<string, unknown> = {
      mode: stat.mode.toString(8),
      owner: `${stat.uid}:${stat.gid}`,
      mtimeNs: stat.mtimeNs,
      xattrs: [...(stat.isSymbolicLink() ? [] : (readXattrs(absolute) ?? []))].sort(),
    };
    if (stat.isSymbolicLink()) entry.target = readlinkSync(native, "latin1");
    if (stat.isFile()) {
      entry.size = stat.size;
      entry.content = hashOf(readFileSync(native));
      const key = `${stat.dev}:${stat.ino}`;
      if (stat.nlink > 1n) entry.sameAs = links.get(key) ?? path;
      if (!links.has(key)) links.set(key, path);
    }
    found.set(path, entry);
    if (!stat.isDirectory()) return;
    for (const name of (readdirSync(native, "latin1") as ByteString[]).sort()) {
      visit((path === "" ? name : `${path}/${name}`) as ByteString);
    }
  };
  visit("" as ByteString);
  return found;
}

/** Asserts that two folders hold the same tree with the same attributes. */
export function assertSameTree(actual: string, expected: string): void {
  assert.deepEqual(snapshot(actual), snapshot(expected));
}

/** Names that are hard on quoting, decoding and limits. */
export const ODD_NAMES: Buffer[] = [
  "with space",
  "new\nline",
  "tab\tand \"quotes\" 'both' `ticks`",
  "back\\slash",
  "$HOME;*?[a]",
  "-rf",
  "…",
  "~",
  " ",
  "grüße-日本-🐦",
  "e\u0301",
  "x".repeat(255),
]
  .map((name) => Buffer.from(name))
  .concat(Buffer.from([0x66, 0xff, 0xfe, 0x80]), Buffer.from([0xc3]), Buffer.from([0x01, 0x7f]));

/** Fills a folder with everything that a bundle keeps. Modes of root's making need root. */
export function fillWithEverything(root: string): void {
  const at = (name: Buffer | string) => Buffer.concat([Buffer.from(`${root}/`), Buffer.from(name)]);
  for (const name of ODD_NAMES) writeFileSync(at(name), `content of ${name.toString("hex")}`);
  mkdirSync(at("empty"));
  mkdirSync(at("deep/er/est"), { recursive: true });
  writeFileSync(at("deep/er/est/file"), "deep");
  mkdirSync(Buffer.concat([at("bytes-"), Buffer.from([0xff])]));
  writeFileSync(Buffer.concat([at("bytes-"), Buffer.from([0xff]), Buffer.from("/inside")]), "inside");
  writeFileSync(at("nothing"), "");
  writeFileSync(at("large"), pattern(3_000_000));
  spawnSync("truncate", ["-s", "20M", `${root}/sparse`]);
  spawnSync("dd", [`of=${root}/sparse`, "bs=1", "seek=9000000", "conv=notrunc", "status=none"], { input: "data" });
  writeFileSync(at("one"), "linked");
  spawnSync("ln", [`${root}/one`, `${root}/two`]);
  spawnSync("ln", [`${root}/one`, `${root}/deep/three`]);
  symlinkSync("nowhere", at("dangling"));
  symlinkSync("/etc/hostname", at("absolute"));
  symlinkSync("..", at("deep/up"));
  symlinkSync(Buffer.from([0xff, 0x2f, 0x80]), at("to-bytes"));
  for (const [name, mode] of [
    ["m000", 0o000],
    ["m400", 0o400],
    ["setuid", 0o4755],
    ["setgid", 0o2750],
    ["sticky-file", 0o1644],
  ] as const) {
    writeFileSync(at(name), name);
    chmodSync(at(name), mode);
  }
  mkdirSync(at("closed"));
  writeFileSync(at("closed/in"), "in");
  chmodSync(at("closed"), 0o500);
  chmodSync(at("deep"), 0o2775);
  chmodSync(at("empty"), 0o1777);
  const bytes = bytesOf(root);
  const times: [string, bigint][] = [
    ["one", 1_600_000_000_123_456_789n],
    ["nothing", -1n],
    ["large", -86_400_000_000_001n],
    ["dangling", 1_234_567_890_000_000_001n],
    ["deep/er", 999_999_999_999_999_999n],
    ["empty", 0n],
    ["closed", 7_000_000_000n],
  ];
  for (const [name, ns] of times) setPathTimes(`${bytes}/${name}` as ByteString, ns);
  setPathTimes(bytes, 1_500_000_000_000_000_007n);
}

/** Fills a workplace's tree with small and large files in several directories, and an empty one. */
export function fillWithSome(place: Workplace): void {
  for (let n = 0; n < 60; n++) place.write(`d${n % 7}/f${n}`, pattern(20_000, n + 1));
  for (let n = 0; n < 4; n++) place.write(`large${n}`, pattern(1_500_000, n + 1000));
  mkdirSync(join(place.tree, "empty"));
}

/** Bytes without repetitions, the same for the same length. */
export function pattern(length: number, seed = 1): Buffer {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = seed * 0x9e3779b1;
  for (let at = 0; at < words.length; at++) {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + at) | 0;
    words[at] = state;
  }
  return Buffer.from(words.buffer).subarray(0, length);
}
