import { spawnSync } from "node:child_process";
import { createCipheriv, createHash } from "node:crypto";
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

/** The launcher under test. */
export const datamon: string = resolve(import.meta.dirname, "../scripts/datamon");

/** Runs `work` with a fresh directory (below $BENCH_DIR, else the system's temporary one) and removes it. */
export async function withDirectory(work: (directory: string) => void | Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), "datamon-bench-"));
  try {
    await work(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Runs a command to its end and returns its wall time in seconds; a failure throws with what it printed. */
export function timed(command: string[], environment: Record<string, string> = {}): number {
  const started = performance.now();
  const [program, ...args] = command as [string, ...string[]];
  const result = spawnSync(program, args, { env: { ...process.env, ...environment }, encoding: "utf8" });
  const seconds = (performance.now() - started) / 1000;
  if (result.status !== 0) throw new Error(`${command.join(" ")} failed:\n${result.stdout}${result.stderr}`);
  return seconds;
}

/** The middle one; of an even number, the lower of the two. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)]!;
}

/** Bytes that look random and are the same in every run: the key stream of AES-CTR under the hash of a seed. */
export function* pseudoRandom(seed: string, length: number): Generator<Buffer> {
  const cipher = createCipheriv("aes-256-ctr", createHash("sha256").update(seed).digest(), Buffer.alloc(16));
  const zeros = Buffer.alloc(Math.min(1 << 20, length));
  for (let at = 0; at < length; at += zeros.length) {
    yield cipher.update(zeros.subarray(0, Math.min(zeros.length, length - at)));
  }
}

/** Writes a file of `length` pseudo-random bytes, after `head`. */
export function writeRandomFile(path: string, seed: string, length: number, head?: Buffer): void {
  const file = openSync(path, "w");
  if (head !== undefined) writeSync(file, head);
  for (const piece of pseudoRandom(seed, length)) writeSync(file, piece);
  closeSync(file);
}

/** Writes `count` files of `size` bytes, a hundred to a directory. */
export function writeSmallFiles(directory: string, count: number, size: number): void {
  let content = Buffer.alloc(0);
  for (let number = 0; number < count; number += 1) {
    const folder = join(directory, `d${String(Math.floor(number / 100)).padStart(4, "0")}`);
    if (number % 100 === 0) {
      mkdirSync(folder, { recursive: true });
      content = Buffer.concat([...pseudoRandom(folder, size * 100)]);
    }
    const at = (number % 100) * size;
    writeFileSync(join(folder, `f${String(number).padStart(6, "0")}`), content.subarray(at, at + size));
  }
}

/** One figure beside what it must reach. */
export interface Figure {
  name: string;
  ours: number;
  peer?: number;
  /** How many times better ours is: `peer / ours` for times, `ours / peer` for rates; the median over the rounds. */
  ratio?: number;
  unit: string;
  target: string;
  met: boolean;
}

/** Prints a figure for people and, as one line of JSON, for programs. */
export function report(figure: Figure): void {
  const peer = figure.peer === undefined ? "" : `, peer ${amount(figure.peer)} ${figure.unit}`;
  const ratio = figure.ratio === undefined ? "" : `, ${figure.ratio.toFixed(2)} times`;
  console.log(
    `${figure.met ? "met " : "MISS"} ${figure.name}: ${amount(figure.ours)} ${figure.unit}${peer}${ratio} (target: ${figure.target})`,
  );
  console.log(JSON.stringify(figure));
}

/** A number as people read it: two decimals, or none where they would say nothing. */
export function amount(value: number): string {
  return value < 1000 ? value.toFixed(2) : Math.round(value).toLocaleString("en-US");
}
