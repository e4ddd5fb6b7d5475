/** Bundles, stores and mounts for the tests of channels. */

import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { pathToFileURL } from "node:url";
import { BlobStore, type ByteString, blobKey, bytesOf, type Hash, hashOf, openStore } from "../../src/cas/index.ts";
import type { ChannelKind } from "../../src/fs/channels/channel.ts";
import type { NamespaceSpec } from "../../src/fs/namespace.ts";
import type { OpenMode } from "../../src/fs/open-mode.ts";
import { CatalogWriter } from "../../src/meta/index.ts";

/** What a test mounts. Paths are in the order of a catalog: a directory before what is in it. */
export interface TreeEntry {
  readonly path: ByteString;
  /** With the type bits. */
  readonly mode: number;
  readonly mtimeNs?: bigint;
  readonly content?: Buffer;
  readonly target?: ByteString;
  readonly xattrs?: Map<ByteString, Buffer>;
  /** Path of the entry that this is another name of. */
  readonly link?: ByteString;
}

export interface DaemonTask {
  readonly kind: ChannelKind;
  readonly directory: string;
  readonly spec: NamespaceSpec;
  readonly store: string;
  readonly cacheDirectory: string;
  readonly name: string;
  readonly allowOther: boolean;
  /** By default the one that a mount of the command line would have. */
  readonly openMode?: OpenMode | undefined;
  /** A blob for which the store never answers. */
  readonly stall?: Hash | undefined;
}

/** To the daemon: unmount. */
export interface TestMessage {
  readonly lazy: boolean;
}

export type DaemonMessage =
  | { readonly kind: "mounted" }
  | { readonly kind: "unmounted" }
  | { readonly kind: "error"; readonly code: string; readonly message: string; readonly hint: string | undefined }
  | { readonly kind: "failure"; readonly request: string; readonly subject: string; readonly message: string };

/** What a daemon answered that could not do what it was asked. */
export class DaemonError extends Error {
  readonly code: string;
  readonly hint: string | undefined;

  constructor(code: string, message: string, hint: string | undefined) {
    super(message);
    this.code = code;
    this.hint = hint;
  }
}

/** Most bytes in one blob here, small enough that a test's large file has several. */
const PIECE = 1024 * 1024;

/** A temporary directory with a store, a cache and a directory to mount on. */
export class Fixture {
  readonly root: string;
  readonly directory: string;
  readonly #store: string;
  readonly #mounts: Mounted[] = [];
  #catalogs = 0;

  constructor(t: TestContext) {
    this.root = realpathSync(mkdtempSync(join(tmpdir(), "datamon-mount-")));
    this.directory = join(this.root, "mnt");
    for (const name of ["mnt", "store", "cache"]) mkdirSync(join(this.root, name));
    this.#store = pathToFileURL(join(this.root, "store")).href;
    t.after(async () => {
      for (const mounted of this.#mounts) await mounted.end();
      rmSync(this.root, { recursive: true, force: true });
    });
  }

  /** Puts the content of `tree` into the store and makes its catalog. */
  async snapshot(tree: readonly TreeEntry[]): Promise<NamespaceSpec & { kind: "snapshot" }> {
    const blobs = new BlobStore(await openStore(this.#store));
    const catalog = join(this.root, `catalog-${this.#catalogs++}.sqlite`);
    const writer = CatalogWriter.create(catalog);
    const inos = new Map<ByteString, number>([["" as ByteString, 1]]);
    const owner = { uid: process.getuid!(), gid: process.getgid!() };
    writer.setAttributes(1, { ...owner, mode: 0o040755, mtimeNs: 1_600_000_000_000_000_001n });
    for (const entry of tree) {
      const { path, mode, mtimeNs = 1_600_000_000_000_000_001n, content, target, xattrs } = entry;
      const slash = path.lastIndexOf("/");
      const parent = inos.get(path.slice(0, Math.max(slash, 0)) as ByteString)!;
      const name = path.slice(slash + 1) as ByteString;
      if (entry.link !== undefined) {
        writer.link(parent, name, inos.get(entry.link)!);
        continue;
      }
      const ino = writer.reserve(1);
      inos.set(path, ino);
      const attributes = { ...owner, mode, mtimeNs, ...(xattrs && { xattrs }) };
      if (target !== undefined) writer.addSymlink(parent, name, ino, attributes, target);
      else if (content === undefined) writer.addDirectory(parent, name, ino, attributes);
      else writer.addFile(parent, name, ino, attributes, await place(blobs, content));
    }
    await writer.finish();
    return { kind: "snapshot", catalog, bundle: "bundle-of-the-test" };
  }

  /** A writable tree over `snapshot`, or one that starts empty. */
  overlay(snapshot?: NamespaceSpec & { kind: "snapshot" }): NamespaceSpec & { kind: "overlay" } {
    const scratch = join(this.root, "scratch");
    mkdirSync(join(scratch, "data"), { recursive: true });
    return { kind: "overlay", catalog: snapshot?.catalog, scratch, bundle: snapshot?.bundle };
  }

  /** Removes the blob that holds just `content` from the store. */
  loseBlob(content: Buffer): void {
    rmSync(join(this.root, "store", blobKey(hashOf(content))));
  }

  /** Mounts in a process of its own, which ends with the test. Throws `DaemonError`. */
  async mount(
    kind: ChannelKind,
    spec: NamespaceSpec,
    options: { directory?: string; stall?: Buffer; allowOther?: boolean; openMode?: OpenMode } = {},
  ): Promise<Mounted> {
    const task: DaemonTask = {
      kind,
      directory: options.directory ?? this.directory,
      spec,
      store: this.#store,
      cacheDirectory: join(this.root, "cache"),
      name: "datamon:repo@a, b",
      allowOther: options.allowOther === true,
      openMode: options.openMode,
      stall: options.stall && hashOf(options.stall),
    };
    const child = fork(join(import.meta.dirname, "daemon.ts"), [JSON.stringify(task)], { stdio: "inherit" });
    const mounted = new Mounted(task.directory, child);
    this.#mounts.push(mounted);
    await mounted.answer("mounted");
    return mounted;
  }
}

/** A mount that a daemon serves. */
export class Mounted {
  readonly directory: string;
  readonly process: ChildProcess;
  /** What the daemon was told by its channel that went wrong. */
  readonly failures: string[] = [];
  /** Exit status of the daemon, or the signal that ended it. */
  readonly ended: Promise<number | string>;
  readonly #messages: DaemonMessage[] = [];

  constructor(directory: string, child: ChildProcess) {
    this.directory = directory;
    this.process = child;
    this.ended = once(child, "exit").then(([status, signal]) => status ?? signal);
    child.on("message", (message: DaemonMessage) => {
      if (message.kind === "failure") this.failures.push(`${message.request}: ${message.message}`);
      else this.#messages.push(message);
    });
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  /** The daemon's next answer, which must be of this kind. */
  async answer(kind: DaemonMessage["kind"]): Promise<void> {
    while (this.#messages.length === 0) {
      if (this.process.exitCode !== null || this.process.signalCode !== null) throw new Error("the daemon is gone");
      await Promise.race([once(this.process, "message"), this.ended]);
    }
    const message = this.#messages.shift()!;
    if (message.kind === "error") throw new DaemonError(message.code, message.message, message.hint);
    if (message.kind !== kind) throw new Error(`the daemon answered ${message.kind}`);
  }

  /** Unmounts through the channel. Throws `DaemonError`. */
  async unmount(options: { lazy?: boolean } = {}): Promise<void> {
    const message: TestMessage = { lazy: options.lazy === true };
    await new Promise<void>((resolve, reject) => {
      this.process.send(message, (error) => (error === null ? resolve() : reject(error)));
    });
    await this.answer("unmounted");
  }

  /** Ends the daemon, and the mount with it. */
  async end(): Promise<void> {
    if (this.process.connected) await this.unmount({ lazy: true }).catch(() => this.process.kill("SIGKILL"));
    await this.ended;
  }

  /** True while it is in the table of mounts. */
  isMounted(): boolean {
    return readFileSync("/proc/self/mountinfo", "utf8").includes(` ${this.directory} `);
  }
}

async function place(blobs: BlobStore, content: Buffer): Promise<{ hash: Hash; size: number; extents: Extent[] }> {
  const extents: Extent[] = [];
  for (let start = 0; start < content.length; start += PIECE) {
    const piece = content.subarray(start, start + PIECE);
    if (content.length > PIECE && piece.every((byte) => byte === 0)) continue;
    const blob = hashOf(piece);
    await blobs.put(blob, piece);
    extents.push({ start, blob, offset: 0, length: piece.length });
  }
  return { hash: hashOf(content), size: content.length, extents };
}

interface Extent {
  start: number;
  blob: Hash;
  offset: number;
  length: number;
}

/** Shorthand for a path in a tree. */
export function at(text: string): ByteString {
  return bytesOf(text);
}
