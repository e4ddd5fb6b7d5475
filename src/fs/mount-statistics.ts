/**
 * What a mount has done, asked of its daemon from outside: a socket `control.sock` beside the mount's
 * record answers every connection with one JSON document.
 */

import { closeSync, openSync, rmSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout } from "node:timers/promises";
import * as z from "zod/mini";
import type { FetcherStats } from "../cache/index.ts";
import { DatamonError, ioError, isErrno } from "../cas/index.ts";
import type { ChannelCounts } from "./channels/channel.ts";
import { isServed, type MountRecord, recordDirectory } from "./mount-record.ts";

const count = z.number();

/** Of one place that content is looked for in: how often it was there, and how often not. */
const tierSchema = z.object({ hits: count, misses: count });

const statisticsSchema = z.object({
  /** Since when this daemon counts, ISO 8601; the counts of one that died are lost with it. */
  countedSince: z.string(),
  /**
   * The requests that came from the kernel, by kind, with times in microseconds from when the daemon
   * had them until they were answered. "read-fetched" are the reads that waited for content; they are
   * not counted as "read", too.
   */
  requests: z.array(z.object({ request: z.string(), count, p50Us: count, p90Us: count, p99Us: count })),
  /**
   * Where slices of blobs were found, in the order of looking: the disk cache, memory, the store. What
   * waits for a fetch that another one asked for is a hit, too; misses of the store are failed fetches.
   */
  tiers: z.object({ disk: tierSchema, memory: tierSchema, store: tierSchema }),
  /** Blobs that came from the store, how many of them before they were asked for, and their bytes. */
  fetched: z.object({ blobs: count, ahead: count, bytes: count, failures: count }),
});

/** What a mount's daemon has counted. */
export type MountStatistics = z.infer<typeof statisticsSchema>;

/** Puts together what the parts of a mount have counted. */
export function statisticsOf(countedSince: string, channel: ChannelCounts, fetcher: FetcherStats): MountStatistics {
  const { memoryHits, diskHits, storeHits, fetches, prefetches, failures, bytesFetched } = fetcher;
  return {
    countedSince,
    requests: [...channel.requests],
    tiers: {
      disk: { hits: channel.diskHits + diskHits, misses: memoryHits + storeHits },
      memory: { hits: memoryHits, misses: diskHits + storeHits },
      store: { hits: storeHits, misses: failures },
    },
    fetched: { blobs: fetches, ahead: prefetches, bytes: bytesFetched, failures },
  };
}

/** A mount's socket. */
export interface ControlSocket {
  close(): void;
}

/**
 * Answers whoever connects with what `tell` returns then. `onError` is told why nobody can connect,
 * which no mount has to fail for.
 */
export function openControlSocket(
  home: string,
  id: string,
  tell: () => MountStatistics,
  onError: (error: unknown) => void,
): ControlSocket {
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.end(JSON.stringify(tell()));
  });
  // It is the mount that keeps the process alive.
  server.unref();
  server.on("error", onError);
  const address = new SocketAddress(home, id);
  server.on("close", () => address.release());
  // A daemon that died has left its own.
  rmSync(address.path, { force: true });
  server.listen(address.path);
  return { close: () => void server.close() };
}

/** How long a daemon may take to answer, in milliseconds, and how often one that is being replaced is asked. */
const PATIENCE = 5000;
const RETRY = 100;

/** Asks a mount's daemon. DatamonError "io" where it is dead or does not answer. */
export async function askStatistics(home: string, record: MountRecord): Promise<MountStatistics> {
  for (const deadline = performance.now() + PATIENCE; ; ) {
    try {
      return statisticsSchema.parse(JSON.parse(await ask(home, record.id, deadline)));
    } catch (error) {
      // Not there, not yet there again, or killed at half a word.
      if (!isErrno(error, "ENOENT", "ECONNREFUSED", "ECONNRESET", "EAGAIN") && !(error instanceof SyntaxError)) {
        throw ioError(`ask the daemon of ${record.directory}`, error);
      }
      const { directory, daemon } = record;
      if (!(await isServed(record))) {
        const hint = `\`datamon unmount ${directory}\` takes what is left of the mount away and tells of uncommitted changes.`;
        throw new DatamonError("io", `the daemon of ${directory} (pid ${daemon.pid}) died`, { hint, cause: error });
      }
      if (performance.now() > deadline) {
        const message = `the daemon of ${directory} (pid ${daemon.pid}) does not answer`;
        throw new DatamonError("io", message, { cause: error });
      }
      await setTimeout(RETRY);
    }
  }
}

/** What the daemon says until it has no more to say; nothing where that takes too long. */
async function ask(home: string, id: string, deadline: number): Promise<string> {
  const address = new SocketAddress(home, id);
  const socket = createConnection(address.path);
  const failed = new Promise<never>((_, reject) => socket.once("error", reject));
  try {
    const late = setTimeout(Math.max(1, deadline - performance.now()), "", { ref: false });
    return await Promise.race([text(socket), failed, late]);
  } finally {
    socket.destroy();
    address.release();
  }
}

/** Longest path of a socket, in bytes: 104 with the final NUL on macOS, 108 on Linux. */
const LONGEST_PATH = 103;

/** The path of a mount's socket, by way of a descriptor where it is too long for one. */
class SocketAddress {
  readonly path: string;
  readonly #directory: number | undefined;

  constructor(home: string, id: string) {
    const directory = recordDirectory(home, id);
    this.path = join(directory, "control.sock");
    if (Buffer.byteLength(this.path) > LONGEST_PATH && process.platform === "linux") {
      this.#directory = openSync(directory, "r");
      this.path = `/proc/self/fd/${this.#directory}/control.sock`;
    }
  }

  release(): void {
    if (this.#directory !== undefined) closeSync(this.#directory);
  }
}
