/** An application under scripts/wrap_application.sh, as a real process. */

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { CHECKOUT, until } from "../e2e/support.ts";

export const WRAPPER = join(CHECKOUT, "scripts", "wrap_application.sh");

/** Shells of images: the words that come before the script. */
export const SHELLS: string[][] = [["dash"], ["busybox", "sh"], ["bash", "--posix"]];

/** True where this machine has the shell. */
export function isThere([program, ...args]: string[]): boolean {
  return spawnSync(program as string, [...args, "-c", "exit 0"]).status === 0;
}

export interface WrappedOptions {
  /** By default `sh`. */
  readonly shell?: string[];
  readonly input?: string;
  /** By default this process's. */
  readonly path?: string | undefined;
}

const all = new Set<ChildProcess>();

/** Kills the wrappers that run, which end their applications. */
export function endAll(): void {
  for (const child of all) child.kill("SIGKILL");
}

/** A wrapper with its coordination directory. It has no home and no datamon. */
export class Wrapped {
  readonly process: ChildProcess;
  readonly #coord: string;
  readonly #ended: Promise<unknown>;
  stdout = "";
  stderr = "";

  constructor(coord: string, args: string[], { shell = ["sh"], input, path = process.env.PATH }: WrappedOptions = {}) {
    const [program, ...rest] = shell;
    this.#coord = coord;
    this.process = spawn(program as string, [...rest, WRAPPER, "-c", coord, ...args], {
      env: { PATH: path },
      // To bash, the socket that this pipe is means a login from afar, with start-up files to read.
      stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    });
    all.add(this.process);
    this.process.once("exit", () => all.delete(this.process));
    this.process.stdin?.on("error", () => {}).end(input);
    this.#ended = once(this.process, "close");
    this.process.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.stdout += text;
    });
    this.process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.stderr += text;
    });
  }

  /** The exit status, or the signal's name. */
  async end(): Promise<number | string | null> {
    await this.#ended;
    return this.process.exitCode ?? this.process.signalCode;
  }

  async says(pattern: RegExp): Promise<void> {
    await until(
      () => pattern.test(this.stdout + this.stderr),
      () => `${pattern} in ${this.stdout}${this.stderr}`,
    );
  }

  /** Waits for a file of the protocol and returns its text. */
  async signals(name: string): Promise<string> {
    const file = join(this.#coord, name);
    await until(
      () => existsSync(file),
      () => `${name}: ${this.stdout}${this.stderr}`,
    );
    return readFileSync(file, "utf8");
  }
}
