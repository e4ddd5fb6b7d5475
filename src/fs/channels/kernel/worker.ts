/**
 * The thread that serves a mount: it sits in a blocking read, answers what can be answered from this
 * machine, and hands the rest to the main thread. Its event loop does not turn while it serves.
 */

import { readSync, statfsSync, writeSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { DiskCache, type DiskCacheStats } from "../../../cache/index.ts";
import { type ByteString, DatamonError, isErrno } from "../../../cas/index.ts";
import { errnoOf, FsError } from "../../errno.ts";
import { type Namespace, openNamespace } from "../../namespace.ts";
import { type Handover, handOver } from "../../supervision/supervision.ts";
import { workerMeter } from "./counts.ts";
import { Dispatcher, type Outlet } from "./dispatch.ts";
import { registerBacking, unregisterBacking } from "./libc.ts";
import {
  type PlainError,
  type ServeMessage,
  STOPPED,
  STOPPING,
  type WorkerMessage,
  type WorkerTask,
} from "./messages.ts";
import { NOTIFY_INVAL_INODE, NOTIFY_RESEND, Opcode, OUT_HEADER } from "./protocol.ts";
import { writeHeader } from "./reply.ts";

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
  port.once("message", ({ fd, inherited }: ServeMessage) => {
    try {
      const dispatcher = dispatcherOf(fd, namespace, cache);
      if (inherited !== undefined) takeOver(fd, dispatcher, inherited);
      serve(fd, dispatcher, cache.stats);
    } finally {
      Atomics.store(task.state, STOPPED, 1);
      Atomics.notify(task.state, STOPPED);
      namespace.close();
      cache.close();
      tell({ kind: "closed" });
    }
  });
}

function dispatcherOf(fd: number, namespace: Namespace, cache: DiskCache): Dispatcher {
  const leave: typeof handOver = (section, key, value) => {
    if (task.supervised) handOver(section, key, value);
  };
  const outlet: Outlet = {
    miss: (miss) => tell({ kind: "miss", miss }, [miss.reply]),
    interrupt: (uniqueLow, uniqueHigh) => tell({ kind: "interrupt", uniqueLow, uniqueHigh }),
    reached: (ino, offset, blob) => tell({ kind: "reached", ino, offset, blob }),
    want: (ino) => tell({ kind: "want", ino }),
    started: (session) => tell({ kind: "started", session }),
    listing: (handle, position, name) =>
      leave("listings", String(handle), name === undefined ? null : [position, name]),
    passed: (ino, backing, handles) => leave("passed", String(ino), handles === 0 ? null : [backing, handles]),
    failed: (request, subject, error) => tell({ kind: "error", request, subject, error: plain(error) }),
  };
  const register = {
    add: (file: number) => registerBacking(fd, file),
    remove: (backing: number) => unregisterBacking(fd, backing),
    changed: (ino: number) => invalidateAttributes(fd, ino),
  };
  const below = task.spec.kind === "overlay" ? task.spec.scratch : task.cacheDirectory;
  return new Dispatcher(namespace, cache, outlet, { mode: task.openMode, register, stackDepth: stackDepthOf(below) });
}

/** Goes on with a connection whose daemon died: the kernel is asked for what that one left without an answer. */
function takeOver(fd: number, dispatcher: Dispatcher, { kernel, listings, passed }: Handover): void {
  dispatcher.adopt(kernel.session, (listings ?? {}) as Record<string, readonly [number, ByteString]>, passed);
  const notification = Buffer.alloc(OUT_HEADER);
  writeHeader(new DataView(notification.buffer, notification.byteOffset), OUT_HEADER, -NOTIFY_RESEND, 0, 0);
  try {
    writeSync(fd, notification);
  } catch (error) {
    // The mount is gone meanwhile, which the first read tells.
    if (!isErrno(error, "ENODEV", "ECONNABORTED", "EPERM", "ENOTCONN")) throw error;
  }
  tell({ kind: "started", session: kernel.session });
}

/** Has the kernel ask for an inode's attributes when it needs them again; its pages stay. */
function invalidateAttributes(fd: number, ino: number): void {
  const notification = Buffer.alloc(OUT_HEADER + 24);
  writeHeader(
    new DataView(notification.buffer, notification.byteOffset),
    notification.length,
    -NOTIFY_INVAL_INODE,
    0,
    0,
  );
  notification.writeBigUInt64LE(BigInt(ino), OUT_HEADER);
  notification.writeBigInt64LE(-1n, OUT_HEADER + 8);
  try {
    writeSync(fd, notification);
  } catch (error) {
    // The kernel has forgotten the inode, or the mount is gone.
    if (!isErrno(error, "ENOENT", "ENODEV", "ECONNABORTED", "EPERM")) throw error;
  }
}

/** `f_type` of overlayfs, which most containers have as their root. */
const OVERLAYFS = 0x794c_7630;

/** How deep the file system of a directory is stacked, as the kernel counts it for files handed to it. */
function stackDepthOf(directory: string): number {
  return statfsSync(directory).type === OVERLAYFS ? 2 : 1;
}

/** Answers requests until the mount is gone or the main thread says stop. */
function serve(fd: number, dispatcher: Dispatcher, found: DiskCacheStats): void {
  const { request } = dispatcher;
  const { buffer } = request;
  const { diskHits } = task.counts;
  const meter = workerMeter(task.counts);
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
    const began = performance.now();
    const answer = dispatcher.handle(length);
    if (answer > 0) send(fd, dispatcher, answer);
    // A read without an answer waits for the main thread, which counts it.
    if (answer > 0 || request.opcode !== Opcode.READ) meter.note(request.opcode, performance.now() - began);
    diskHits[0] = found.hits;
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
