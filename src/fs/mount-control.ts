/**
 * Asking a mount's daemon from outside: a socket `control.sock` beside the mount's record. Whoever
 * connects sends one request, a line of JSON; the daemon answers with lines of JSON: any number that
 * tell of progress, and one with the result or the failure at the end.
 */

import { closeSync, openSync, rmSync } from "node:fs";
import { createConnection, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";
import * as z from "zod/mini";
import { DatamonError, ioError, isErrno } from "../cas/index.ts";
import { errorOf, failureOf, failureSchema, isServed, type MountRecord, recordDirectory } from "./mount-record.ts";
import { ON_CONFLICT } from "./scratch.ts";

const requestSchema = z.discriminatedUnion("request", [
  /** What was counted. */
  z.object({ request: z.literal("statistics") }),
  /** Make a bundle of what a writable mount shows at this moment. */
  z.object({
    request: z.literal("commit"),
    message: z.optional(z.string()),
    label: z.optional(z.string()),
    onConflict: z.optional(z.enum(ON_CONFLICT)),
  }),
  /** What to do, where a writable mount is committed at its end, with a label that was moved. */
  z.object({ request: z.literal("on-conflict"), onConflict: z.enum(ON_CONFLICT) }),
]);

/** What a daemon can be asked for. */
export type ControlRequest = z.infer<typeof requestSchema>;

const lineSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("progress"), value: z.unknown() }),
  z.object({ kind: z.literal("result"), value: z.unknown() }),
  failureSchema,
]);

/** A mount's socket. */
export interface ControlSocket {
  close(): void;
}

/**
 * Answers requests with what `handle` makes of them, which may tell of progress before. `onError` is
 * told why nobody can connect, which no mount has to fail for.
 */
export function openControlSocket(
  home: string,
  id: string,
  handle: (request: ControlRequest, progress: (value: unknown) => void) => unknown,
  onError: (error: unknown) => void,
): ControlSocket {
  const server = createServer((socket) => {
    socket.on("error", () => {});
    // Who hangs up early is not waited for.
    socket.unref();
    void answer(socket, handle);
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

async function answer(
  socket: Socket,
  handle: (request: ControlRequest, progress: (value: unknown) => void) => unknown,
): Promise<void> {
  for await (const line of createInterface({ input: socket })) {
    const write = (value: z.infer<typeof lineSchema>): void => {
      if (socket.writable) socket.write(`${JSON.stringify(value)}\n`);
    };
    try {
      const request = requestSchema.parse(JSON.parse(line));
      const value = await handle(request, (progress) => write({ kind: "progress", value: progress }));
      write({ kind: "result", value: value ?? null });
    } catch (error) {
      write(failureOf(error));
    }
    break;
  }
  socket.end();
}

/** How long a daemon may take to be reached, in milliseconds, and how often one that is being replaced is tried. */
const PATIENCE = 5000;
const RETRY = 100;

/** How a daemon is asked. */
export interface Asking {
  /** Told of progress. */
  readonly onProgress?: (value: unknown) => void;
  /** How long the answer may take, in milliseconds; without end where absent. */
  readonly patience?: number;
  /** The same request may be made again, to a daemon that follows one which died with it. */
  readonly repeatable?: boolean;
}

/** Asks a mount's daemon; returns the result. Throws what the daemon met, and DatamonError "io" where it is dead or does not answer. */
export async function askDaemon(
  home: string,
  record: MountRecord,
  request: ControlRequest,
  { onProgress = () => {}, patience, repeatable = false }: Asking = {},
): Promise<unknown> {
  const { directory, daemon } = record;
  for (const deadline = performance.now() + PATIENCE; ; ) {
    const asked = { sent: false };
    try {
      return await ask(home, record.id, request, onProgress, asked, patience);
    } catch (error) {
      if (error instanceof DatamonError) throw error;
      // Not there, not yet there again, or killed at half a word.
      if (
        !isErrno(error, "ENOENT", "ECONNREFUSED", "ECONNRESET", "EAGAIN", "EPIPE") &&
        !(error instanceof SyntaxError)
      ) {
        throw ioError(`ask the daemon of ${directory}`, error);
      }
      if (!(await isServed(record))) {
        const hint = `\`datamon unmount ${directory}\` takes what is left of the mount away and tells of uncommitted changes.`;
        throw new DatamonError("io", `the daemon of ${directory} (pid ${daemon.pid}) died`, { hint, cause: error });
      }
      if (asked.sent && !repeatable) {
        throw new DatamonError("io", `the daemon of ${directory} (pid ${daemon.pid}) died before it answered`, {
          hint: "Another has taken the mount over, and nothing is lost. Give the same command again.",
          cause: error,
        });
      }
      if (performance.now() > deadline) {
        const message = `the daemon of ${directory} (pid ${daemon.pid}) does not answer`;
        throw new DatamonError("io", message, { cause: error });
      }
      await setTimeout(RETRY);
    }
  }
}

/** Makes one request. Throws SyntaxError where the answer has no end. */
async function ask(
  home: string,
  id: string,
  request: ControlRequest,
  onProgress: (value: unknown) => void,
  asked: { sent: boolean },
  patience: number | undefined,
): Promise<unknown> {
  const address = new SocketAddress(home, id);
  const socket = createConnection(address.path);
  const failed = new Promise<never>((_, reject) => socket.once("error", reject));
  failed.catch(() => {});
  try {
    socket.once("connect", () => {
      asked.sent = true;
      socket.write(`${JSON.stringify(request)}\n`);
    });
    const late = patience === undefined ? [] : [setTimeout(patience, undefined, { ref: false })];
    const last = await Promise.race([readAnswer(socket, onProgress), failed, ...late]);
    if (last === undefined) throw new SyntaxError("an answer without an end");
    if (last.kind === "failed") throw errorOf(last);
    return last.value;
  } finally {
    socket.destroy();
    address.release();
  }
}

async function readAnswer(
  socket: Socket,
  onProgress: (value: unknown) => void,
): Promise<z.infer<typeof lineSchema> | undefined> {
  for await (const line of createInterface({ input: socket })) {
    const told = lineSchema.parse(JSON.parse(line));
    if (told.kind !== "progress") return told;
    onProgress(told.value);
  }
  return undefined;
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
