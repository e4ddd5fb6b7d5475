/** The main thread's side of a mount: the worker that serves it, the reads that wait, and the end of both. */

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync } from "node:fs";
import { extname } from "node:path";
import { setTimeout } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { Readahead } from "../../../cache/index.ts";
import { DatamonError, ioError } from "../../../cas/index.ts";
import { abortConnection, type MountPoint } from "../../mount-table.ts";
import type { NamespaceSpec } from "../../namespace.ts";
import { CatalogOutlook } from "../../outlook.ts";
import { copyAhead } from "../../overlay/ahead.ts";
import type { ChannelCounts, ChannelOptions } from "../channel.ts";
import { Counts } from "./counts.ts";
import { umountLazily } from "./libc.ts";
import {
  type Answer,
  COMMANDED,
  type Command,
  type Commanded,
  FLAGS,
  type PlainError,
  type ServeMessage,
  STOPPED,
  STOPPING,
  type WorkerMessage,
  type WorkerTask,
} from "./messages.ts";
import { Misses } from "./misses.ts";
import type { Session } from "./negotiate.ts";

/** How long those who write may take to stop, in milliseconds, and how often that is tried. */
const HOLD_TIMEOUT = 2000;
const HOLD_ATTEMPTS = 3;

/** How long the worker may take to do what it is told, in milliseconds; it is quick, but for copies of open files. */
const COMMAND_TIMEOUT = 60_000;

/** How long waking the worker may take when the process ends, in milliseconds. */
const WAKE_TIMEOUT = 2000;

/**
 * Memory for what the worker has just made, in MiB: a request leaves nothing behind but garbage, and
 * V8's own choice would let a listing of a million entries take 200 MiB more.
 */
const YOUNG_GENERATION_MB = 16;

interface Served {
  readonly fd: number;
  readonly mount: MountPoint;
  readonly misses: Misses;
}

/** Serves one mount. It keeps the process alive until the mount is gone. */
export class Server {
  /** Resolves when the worker has namespace and cache open; rejects with what kept it from that. */
  readonly opened: Promise<void>;
  /** Resolves when the kernel is served, to what was agreed on. */
  readonly started: Promise<Session>;
  /** Resolves when the worker has ended, with the namespace closed. */
  readonly closed: Promise<void>;
  readonly #options: ChannelOptions;
  readonly #worker: Worker;
  readonly #state = new Int32Array(new SharedArrayBuffer(FLAGS * Int32Array.BYTES_PER_ELEMENT));
  readonly #counts = new Counts();
  readonly #onExit = (): void => {
    this.#leave();
    this.#takeDown();
  };
  #outlook: CatalogOutlook | undefined;
  #readahead: Readahead | undefined;
  /** Waits for the worker's answer to the command of the number `asked`. */
  #asked = 0;
  #commands = 0;
  #answered: { resolve(answer: Answer): void; reject(error: Error): void } | undefined;
  #served: Served | undefined;
  /** The worker came to its end, and did not die. */
  #ended = false;

  constructor(options: ChannelOptions) {
    this.#options = options;
    this.#outlook = CatalogOutlook.open(options.spec);
    this.#readahead = this.#outlook && new Readahead(options.fetcher, this.#outlook);
    const task: WorkerTask = {
      spec: options.spec,
      cacheDirectory: options.cacheDirectory,
      cacheSize: options.cacheSize,
      openMode: options.openMode.mode,
      supervised: options.supervision !== undefined,
      state: this.#state,
      counts: this.#counts.worker,
      memory: options.fetcher.shared,
    };
    const opened = Promise.withResolvers<void>();
    const started = Promise.withResolvers<Session>();
    const closed = Promise.withResolvers<void>();
    [this.opened, this.started, this.closed] = [opened.promise, started.promise, closed.promise];
    // Whoever waits for them is told; that nobody does is no reason to end the process.
    this.opened.catch(() => {});
    this.started.catch(() => {});
    const fail = (error: Error): void => {
      opened.reject(error);
      started.reject(error);
    };
    this.#worker = new Worker(new URL(`./worker${extname(import.meta.url)}`, import.meta.url), {
      workerData: task,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    });
    this.#worker.on("message", (message: WorkerMessage) => {
      if (message.kind === "opened") opened.resolve();
      else if (message.kind === "failed") fail(errorFrom(message.error));
      else if (message.kind === "started") started.resolve(message.session);
      else this.#take(message);
    });
    this.#worker.on("error", (error) => {
      fail(new DatamonError("io", `the mount's worker died: ${error.message}`, { cause: error }));
      this.#options.onError("serve", "", error);
    });
    this.#worker.on("exit", () => {
      fail(new DatamonError("io", "the mount's worker ended before it served"));
      if (this.#served !== undefined && !this.#ended) this.#leave();
      this.#release();
      this.#outlook?.close();
      this.#answered?.reject(new DatamonError("io", "the mount went away"));
      closed.resolve();
    });
  }

  /** Hands the worker the descriptor of `mount`, which the server owns from here on. */
  serve(fd: number, mount: MountPoint): void {
    const { fetcher, onError } = this.#options;
    const misses = new Misses(fd, fetcher, this.#counts.meter, (error) => onError("read", "", error));
    this.#served = { fd, mount, misses };
    process.on("exit", this.#onExit);
    const message: ServeMessage = { fd, inherited: this.#options.supervision?.inherited };
    this.#worker.postMessage(message);
  }

  counts(): ChannelCounts {
    return this.#counts.read();
  }

  /** As `Channel.freeze`. */
  async freeze(): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      const answer = await this.#command({ kind: "freeze" });
      if (answer.kind === "done") return answer.changed;
      if (answer.kind === "refused") throw errorFrom(answer.error);
      const held = await this.#hold(answer.token, answer.inos);
      if (held !== undefined) return held;
      if (attempt === HOLD_ATTEMPTS) {
        throw new DatamonError("io", "those who write to the mount could not be stopped for a moment", {
          hint: "Try again when less is written.",
        });
      }
    }
  }

  /** As `Channel.rebase`. */
  async rebase(catalog: string | undefined, bundle: string | undefined): Promise<boolean> {
    const answer = await this.#command({ kind: "rebase", catalog, bundle });
    if (answer.kind === "refused") throw errorFrom(answer.error);
    const done = answer.kind === "done" && answer.changed;
    if (done && catalog !== undefined) {
      this.#outlook?.close();
      this.#outlook = CatalogOutlook.open({ ...this.#options.spec, catalog } as NamespaceSpec);
      this.#readahead = this.#outlook && new Readahead(this.#options.fetcher, this.#outlook);
    }
    return done;
  }

  /** Has inodes be held until the worker has frozen what they belong to: its answer, or undefined where that takes too long. */
  async #hold(token: string, inos: readonly number[]): Promise<boolean | undefined> {
    const { spec } = this.#options;
    if (spec.kind === "overlay") await copyAhead(spec.scratch, inos);
    const frozen = this.#answer();
    const holder = spawn(
      process.execPath,
      [
        new URL(`./holder${extname(import.meta.url)}`, import.meta.url).pathname,
        this.#served?.mount.directory ?? "",
        token,
        ...inos.map(String),
      ],
      { stdio: "ignore", env: { ...process.env, UV_THREADPOOL_SIZE: String(inos.length) } },
    );
    const ended = new Promise<undefined>((resolve) => {
      holder.once("error", () => resolve(undefined));
      holder.once("exit", () => resolve(undefined));
    });
    const late = setTimeout(HOLD_TIMEOUT, undefined, { ref: false });
    const answer = await Promise.race([frozen, Promise.race([ended, late])]);
    try {
      if (answer?.kind === "refused") throw errorFrom(answer.error);
      if (answer?.kind === "done") return answer.changed;
      await this.#post({ kind: "release" });
      // It may have come to it at the last moment.
      const last = await frozen;
      return last.kind === "done" && last.changed ? true : undefined;
    } finally {
      holder.kill("SIGKILL");
    }
  }

  /** The worker's next answer. */
  #answer(): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.#answered = { resolve, reject };
    });
  }

  async #command(command: Command): Promise<Answer> {
    const answer = this.#answer();
    answer.catch(() => {});
    this.#asked = this.#commands + 1;
    await this.#post(command);
    const late = setTimeout(COMMAND_TIMEOUT, undefined, { ref: false });
    const answered = await Promise.race([answer, late]);
    if (answered === undefined) throw new DatamonError("io", "the mount does not answer");
    return answered;
  }

  /**
   * Posts a command. The worker looks for it when a request comes, and statfs(2) always makes one: by a
   * program of its own, because this process could not end while it waits for itself.
   */
  async #post(command: Command): Promise<void> {
    if (this.#served === undefined) throw new DatamonError("io", "the mount went away");
    const commanded: Commanded = { id: ++this.#commands, command };
    this.#worker.postMessage(commanded);
    Atomics.store(this.#state, COMMANDED, 1);
    const program = spawn("stat", ["-f", "--", this.#served.mount.directory], { stdio: "ignore", detached: true });
    program.unref();
    await once(program, "spawn").catch((error) => {
      throw ioError("reach the mount", error);
    });
  }

  /** Ends the worker, and the mount with it, in use or not. */
  async abandon(): Promise<void> {
    if (this.#served === undefined) await this.#worker.terminate();
    else {
      this.#leave();
      this.#takeDown();
    }
    await this.closed;
  }

  #take(message: WorkerMessage): void {
    if (message.kind === "closed") this.#ended = true;
    else if (message.kind === "answer") {
      if (message.id === this.#asked) this.#answered?.resolve(message.answer);
    } else if (message.kind === "miss") this.#served?.misses.start(message.miss);
    else if (message.kind === "reached") this.#readahead?.reached(message.ino, message.offset, message.blob);
    else if (message.kind === "want") this.#readahead?.want(message.ino);
    else if (message.kind === "interrupt") this.#served?.misses.interrupt(message.uniqueLow, message.uniqueHigh);
    else if (message.kind === "error") {
      this.#options.onError(message.request, message.subject, errorFrom(message.error));
    }
  }

  /** Where another daemon would take the mount over, this one, which cannot serve it any more, makes room. */
  #leave(): void {
    if (this.#options.supervision?.replaces) this.#options.supervision.abandon();
  }

  /** The worker is gone: without the descriptor the kernel fails what is still asked. */
  #release(): void {
    if (this.#served === undefined) return;
    const { fd, misses } = this.#served;
    this.#served = undefined;
    process.off("exit", this.#onExit);
    misses.stop();
    closeSync(fd);
  }

  /**
   * Makes the worker end and takes the mount from the tree, in use or not, without waiting for any
   * event. A process that ends joins its threads, and the worker's is in a read that only the kernel
   * can end: by an aborted connection, or by one more request, after which the worker looks at its state.
   */
  #takeDown(): void {
    if (this.#served === undefined) return;
    const { directory, device } = this.#served.mount;
    Atomics.store(this.#state, STOPPING, 1);
    if (!abortConnection(device)) {
      // A program of its own asks, because the answer may never come.
      spawn("stat", ["--file-system", "--", directory], { stdio: "ignore", detached: true })
        .on("error", () => {})
        .unref();
      Atomics.wait(this.#state, STOPPED, 0, WAKE_TIMEOUT);
    }
    if (process.getuid?.() !== 0 || !umountLazily(directory)) {
      spawnSync("fusermount3", ["-uz", "--", directory], { stdio: "ignore" });
    }
  }
}

function errorFrom(error: PlainError): Error {
  if (error.code === undefined) return new Error(error.message);
  return new DatamonError(error.code, error.message, error.hint === undefined ? {} : { hint: error.hint });
}
