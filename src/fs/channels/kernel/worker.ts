/**
 * The thread that serves a mount: it sits in a blocking read, answers what can be answered from this
 * machine, and hands the rest to the main thread. Its event loop does not turn while it serves.
 */

import { readSync, writeSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { DiskCache } from "../../../cache/index.ts";
import { DatamonError, isErrno } from "../../../cas/index.ts";
import { errnoOf, FsError } from "../../errno.ts";
import { type Namespace, openNamespace } from "../../namespace.ts";
import { Dispatcher } from "./dispatch.ts";
import {
  type PlainError,
  type ServeMessage,
  STOPPED,
  STOPPING,
  type WorkerMessage,
  type WorkerTask,
} from "./messages.ts";
import { OUT_HEADER } from "./protocol.ts";

const port = parentPort!;
const task = workerData as WorkerTask;

function tell(message: WorkerMessage, transfer: ArrayBuffer[] = []): void {
  port.postMessage(message, transfer);
}

function plain(error: unknown): PlainError {
  const message = error instanceof Error ? error.message : String(error);
  const told = error instanceof DatamonError ? error : undefined;
  return { code: told?.code, message, hint: told?.hint };
}

function open(): void {
  let namespace: Namespace | undefined;
  let cache: DiskCache;
  try {
    namespace = openNamespace(task.spec);
    cache = DiskCache.open(task.cacheDirectory, task.cacheSize === undefined ? {} : { sizeLimit: task.cacheSize });
  } catch (error) {
    namespace?.close();
    tell({ kind: "failed", error: plain(error) });
    return;
  }
  tell({ kind: "opened" });
  port.once("message", ({ fd }: ServeMessage) => {
    try {
      serve(fd, dispatcherOf(namespace, cache));
    } finally {
      Atomics.store(task.state, STOPPED, 1);
      Atomics.notify(task.state, STOPPED);
      namespace.close();
      cache.close();
      tell({ kind: "closed" });
    }
  });
}

function dispatcherOf(namespace: Namespace, cache: DiskCache): Dispatcher {
  return new Dispatcher(namespace, cache, {
    miss: (miss) => tell({ kind: "miss", miss }, [miss.reply]),
    interrupt: (uniqueLow, uniqueHigh) => tell({ kind: "interrupt", uniqueLow, uniqueHigh }),
    started: () => tell({ kind: "started" }),
    failed: (request, subject, error) => tell({ kind: "error", request, subject, error: plain(error) }),
  });
}

/** Answers requests until the mount is gone or the main thread says stop. */
function serve(fd: number, dispatcher: Dispatcher): void {
  const { buffer } = dispatcher.request;
  while (Atomics.load(task.state, STOPPING) === 0) {
    let length: number;
    try {
      length = readSync(fd, buffer, 0, buffer.length, null);
    } catch (error) {
      // The request went away before it was read, or a signal came.
      if (isErrno(error, "ENOENT", "EINTR", "EAGAIN")) continue;
      if (isErrno(error, "ENODEV", "ECONNABORTED")) return;
      throw error;
    }
    const answer = dispatcher.handle(length);
    if (answer > 0) send(fd, dispatcher, answer);
  }
}

function send(fd: number, dispatcher: Dispatcher, length: number): void {
  const { request, reply } = dispatcher;
  try {
    writeSync(fd, reply.buffer, 0, length);
  } catch (error) {
    // The reader gave up, or the mount is gone: nobody waits for the reply.
    if (isErrno(error, "ENOENT", "ENODEV", "ECONNABORTED", "EPERM")) return;
    tell({ kind: "error", request: `reply to ${request.opcode}`, subject: "", error: plain(error) });
    // Whoever asked waits until something is accepted.
    if (length > OUT_HEADER) send(fd, dispatcher, reply.header(request, OUT_HEADER, errnoOf(new FsError("EIO"))));
  }
}

open();
