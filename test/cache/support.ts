import { type ChildProcess, execFileSync, fork } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { DiskCache, FileLayout, Home } from "../../src/cache/index.ts";
import { type Hash, hashOf } from "../../src/cas/index.ts";

export const KIB = 1024;
export const MIB = 1024 * KIB;

/** A fresh directory that goes with the test. */
export function freshDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), "datamon-cache-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Content that differs for every seed, and its hash. */
export function sample(seed: number, size: number): { hash: Hash; content: Buffer } {
  const content = Buffer.alloc(size, `sample ${seed} `);
  return { hash: hashOf(content), content };
}

export function containerPath(directory: string, hash: Hash): string {
  return join(directory, "containers", hash.slice(0, 2), hash);
}

/** Names of all containers in the directory. */
export function containersIn(directory: string): string[] {
  const root = join(directory, "containers");
  return readdirSync(root).flatMap((prefix) => readdirSync(join(root, prefix)));
}

/** Bytes that the containers and temporary files take on disk. */
export function bytesOnDisk(directory: string): number {
  let sum = 0;
  for (const root of ["containers", "tmp"]) {
    if (!existsSync(join(directory, root))) continue;
    for (const name of readdirSync(join(directory, root), { recursive: true, encoding: "utf8" })) {
      const info = statSync(join(directory, root, name), { throwIfNoEntry: false });
      if (info?.isFile()) sum += info.blocks * 512;
    }
  }
  return sum;
}

/** A file of which every part is a blob, but for one hole. */
export interface LargeFile {
  readonly layout: FileLayout;
  readonly content: Buffer;
}

/** Blobs from the sample `first` on, of sizes that fill no disk block; number 2 is a hole, the last one is number 0 again. */
export function largeFile(first: number, count = 6, size = 300_001): LargeFile {
  const pieces: { blob: Hash; offset: number; length: number }[] = [];
  const content = Buffer.alloc(count * size);
  for (let index = 0; index < count; index++) {
    if (index === 2) continue;
    const { hash, content: bytes } = sample(index === count - 1 ? first : first + index, size);
    bytes.copy(content, index * size);
    pieces.push({ blob: hash, offset: index * size, length: size });
  }
  return { layout: { file: hashOf(content), size: content.length, pieces }, content };
}

export function homeOf(file: LargeFile, index: number): Home {
  const { offset: start, length } = file.layout.pieces[index]!;
  return { file: file.layout.file, size: file.layout.size, start, length };
}

export function bytesOf(file: LargeFile, index: number): Buffer {
  const { offset, length } = file.layout.pieces[index]!;
  return Buffer.from(file.content.subarray(offset, offset + length));
}

export function insertPiece(cache: DiskCache, file: LargeFile, index: number): boolean {
  return cache.insert(file.layout.pieces[index]!.blob, bytesOf(file, index), homeOf(file, index));
}

/** Starts test/cache/child.ts, which opens the cache in `directory` and does what it is told. */
export async function startChild(
  t: TestContext,
  directory: string,
  sizeLimit: number,
  fault?: string,
  user: { uid?: number; gid?: number } = {},
): Promise<Child> {
  const env = fault === undefined ? process.env : { ...process.env, DATAMON_FAULT: fault };
  const args = [directory, String(sizeLimit)];
  const child = new Child(fork(join(import.meta.dirname, "child.ts"), args, { env, stdio: "inherit", ...user }));
  t.after(() => child.kill());
  await child.ready;
  return child;
}

export class Child {
  readonly ready: Promise<unknown>;
  readonly ended: Promise<NodeJS.Signals | number | null>;
  readonly #process: ChildProcess;

  constructor(process: ChildProcess) {
    this.#process = process;
    this.ended = new Promise((resolve) => process.once("exit", (code, signal) => resolve(signal ?? code)));
    this.ready = this.#next();
  }

  /** Sends a request and resolves to its answer, or to undefined where the process ends instead. */
  ask(request: Request): Promise<unknown> {
    const answer = this.#next();
    this.#process.send(request);
    return answer;
  }

  kill(): void {
    this.#process.kill("SIGKILL");
  }

  async #next(): Promise<unknown> {
    const answer = Promise.withResolvers<unknown>();
    this.#process.once("message", answer.resolve);
    const first = await Promise.race([answer.promise, this.ended.then(() => undefined)]);
    this.#process.off("message", answer.resolve);
    return first;
  }
}

export type Request =
  /** Inserts samples `from` to `to`; answers how many were taken. */
  | { do: "insert"; from: number; to: number; size: number }
  /** Answers how many of the samples `from` to `to` are resident with the right bytes; throws on wrong bytes. */
  | { do: "check"; from: number; to: number; size: number }
  /** Inserts the blobs of a large file into its container; answers how many were taken. */
  | { do: "assemble"; from: number; count: number; size: number }
  /** Answers how many blobs of such a file are resident with the right bytes; throws on wrong bytes. */
  | { do: "read"; from: number; count: number; size: number }
  /** Answers the cache's status. */
  | { do: "status" }
  /** Closes the cache and ends. */
  | { do: "end" };

/** A fresh directory on a disk of `size` bytes; undefined, after skipping the test, where this process may not mount one. */
export function smallDisk(t: TestContext, size: number): string | undefined {
  return mounted(t, "tmpfs", `size=${size}`);
}

/** The same on a file system in memory that does not know direct writes. */
export function bufferedDisk(t: TestContext): string | undefined {
  return mounted(t, "ramfs", "mode=755");
}

function mounted(t: TestContext, type: string, options: string): string | undefined {
  const directory = mkdtempSync(join(tmpdir(), "datamon-cache-"));
  try {
    execFileSync("mount", ["-t", type, "-o", options, type, directory], { stdio: "pipe" });
  } catch (error) {
    rmSync(directory, { recursive: true });
    t.skip(`mounting a ${type} is not permitted here: ${(error as Error).message.trim()}`);
    return undefined;
  }
  t.after(() => {
    execFileSync("umount", ["-l", directory]);
    rmSync(directory, { recursive: true });
  });
  return directory;
}
