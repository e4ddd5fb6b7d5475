/** The main thread's side of a mount: the worker that serves it, the reads that wait, and the end of both. */

import { spawn, spawnSync } from "node:child_process";
import { closeSync } from "node:fs";
import { extname } from "node:path";
import { Worker } from "node:worker_threads";
import { Readahead } from "../../../cache/index.ts";
import { DatamonError } from "../../../cas/index.ts";
import { abortConnection, type MountPoint } from "../../mount-table.ts";
import { CatalogOutlook } from "../../outlook.ts";
import type { ChannelCounts, ChannelOptions } from "../channel.ts";
import { Counts } from "./counts.ts";
import { umountLazily } from "./libc.ts";
import {
  type PlainError,
  type ServeMessage,
  STOPPED,
  STOPPING,
  type WorkerMessage,
  type WorkerTask,
} from "./messages.ts";
import { Misses } from "./misses.ts";
import type { Session } from "./negotiate.ts";

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
  readonly #state = new Int32Array(new SharedArrayBuffer(8));
  readonly #counts = new Counts();
  readonly #onExit = (): void => {
    this.#leave();
    this.#takeDown();
  };
  readonly #outlook: CatalogOutlook | undefined;
  readonly #readahead: Readahead | undefined;
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
    else if (message.kind === "miss") this.#served?.misses.start(message.miss);
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
