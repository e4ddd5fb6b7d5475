/**
 * The thread that serves a mount: it sits in a blocking read, answers what can be answered from this
 * machine, and hands the rest to the main thread. Its event loop does not turn while it serves.
 */

import { readSync, statfsSync, writeSync, writevSync } from "node:fs";
import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { DiskCache, type DiskCacheStats, MemoryReader } from "../../../cache/index.ts";
import { type ByteString, DatamonError, isErrno } from "../../../cas/index.ts";
import { errnoOf, FsError } from "../../errno.ts";
import { type Namespace, openNamespace } from "../../namespace.ts";
import { MEMORY_FD } from "../../supervision/messages.ts";
import { type Handover, handOver } from "../../supervision/supervision.ts";
import { workerMeter } from "./counts.ts";
import { Dispatcher, type Outlet } from "./dispatch.ts";
import { registerBacking, unregisterBacking } from "./libc.ts";
import { Lift, type Lifted } from "./lift.ts";
import {
  type Answer,
  COMMANDED,
  type Commanded,
  type PlainError,
  type ServeMessage,
  STOPPED,
  STOPPING,
  type WorkerMessage,
  type WorkerTask,
} from "./messages.ts";
import type { OpenedFiles } from "./openings.ts";
import { PassedFiles } from "./passed.ts";
import { Patience } from "./patience.ts";
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
    namespace = openNamespace(task.spec.kind === "overlay" ? { ...task.spec, forgets: true } : task.spec);
    cache = DiskCache.open(task.cacheDirectory, task.cacheSize === undefined ? {} : { sizeLimit: task.cacheSize });
  } catch (error) {
    namespace?.close();
    tell({ kind: "failed", error: plain(error) });
    return;
  }
  tell({ kind: "opened" });
  port.once("message", ({ fd, inherited }: ServeMessage) => {
    try {
      const passed = task.supervised ? new PassedFiles(MEMORY_FD) : undefined;
      const dispatcher = dispatcherOf(fd, namespace, cache, passed);
      if (inherited !== undefined) takeOver(fd, dispatcher, inherited, passed?.read());
      serve(fd, dispatcher, namespace, cache.stats);
    } finally {
      Atomics.store(task.state, STOPPED, 1);
      Atomics.notify(task.state, STOPPED);
      namespace.close();
      cache.close();
      tell({ kind: "closed" });
    }
  });
}

function dispatcherOf(fd: number, namespace: Namespace, cache: DiskCache, passed: PassedFiles | undefined): Dispatcher {
  const leave: typeof handOver = (section, key, value) => {
    if (task.supervised) handOver(section, key, value);
  };
  const outlet: Outlet = {
    miss: (miss) => tell({ kind: "miss", miss }),
    interrupt: (uniqueLow, uniqueHigh) => tell({ kind: "interrupt", uniqueLow, uniqueHigh }),
    reached: (ino, offset, blob) => tell({ kind: "reached", ino, offset, blob }),
    want: (ino) => tell({ kind: "want", ino }),
    started: (session) => tell({ kind: "started", session }),
    listing: (handle, position, name) =>
      leave("listings", String(handle), name === undefined ? null : [position, name]),
    opened: (ino, backing, handles) => passed?.note(ino, backing, handles),
    failed: (request, subject, error) => tell({ kind: "error", request, subject, error: plain(error) }),
  };
  const register = {
    add: (file: number) => registerBacking(fd, file),
    remove: (backing: number) => unregisterBacking(fd, backing),
    changed: (ino: number) => invalidateAttributes(fd, ino),
  };
  const below = task.spec.kind === "overlay" ? task.spec.scratch : task.cacheDirectory;
  const memory = new MemoryReader(task.memory);
  const stackDepth = stackDepthOf(below);
  return new Dispatcher(namespace, cache, outlet, { mode: task.openMode, register, stackDepth, memory });
}

/** Goes on with a connection whose daemon died: the kernel is asked for what that one left without an answer. */
function takeOver(
  fd: number,
  dispatcher: Dispatcher,
  { kernel, listings }: Handover,
  passed: OpenedFiles | undefined,
): void {
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

/** How the device refuses a reply that nobody waits for: the reader gave up, or the mount is gone. */
const UNWANTED = ["ENOENT", "ENODEV", "ECONNABORTED", "EPERM"] as const;

/** `f_type` of overlayfs, which most containers have as their root. */
const OVERLAYFS = 0x794c_7630;

/** How deep the file system of a directory is stacked, as the kernel counts it for files handed to it. */
function stackDepthOf(directory: string): number {
  return statfsSync(directory).type === OVERLAYFS ? 2 : 1;
}

/** Answers requests until the mount is gone or the main thread says stop. */
function serve(fd: number, dispatcher: Dispatcher, namespace: Namespace, found: DiskCacheStats): void {
  const { request } = dispatcher;
  const { buffer } = request;
  const { diskHits, memoryHits } = task.counts;
  const meter = workerMeter(task.counts);
  const patience = new Patience(fd);
  const lift = new Lift(fd);
  while (Atomics.load(task.state, STOPPING) === 0) {
    let length: number;
    patience.look();
    try {
      length = readSync(fd, buffer, 0, buffer.length, null);
    } catch (error) {
      // The request went away before it was read, or a signal came.
      if (isErrno(error, "ENOENT", "EINTR", "EAGAIN")) continue;
      if (isErrno(error, "ENODEV", "ECONNABORTED")) return;
      throw error;
    }
    if (Atomics.exchange(task.state, COMMANDED, 0) !== 0) obey(fd, dispatcher, namespace);
    const began = performance.now();
    let answer = dispatcher.handle(length, lift.capacity);
    const lifted = dispatcher.lifted !== undefined && sendLifted(lift, dispatcher, dispatcher.lifted);
    if (dispatcher.lifted !== undefined && !lifted) answer = dispatcher.handle(length);
    if (dispatcher.pieces !== undefined) memoryHits[0]! += 1;
    if (answer > 0 && !lifted) send(fd, dispatcher, answer);
    dispatcher.unpin();
    // A read without an answer waits for the main thread, which counts it.
    if (answer > 0 || request.opcode !== Opcode.READ) meter.note(request.opcode, performance.now() - began);
    diskHits[0] = found.hits;
    if (dispatcher.isPaused) freeze(fd, dispatcher, namespace);
  }
}

/** The number of the command that is to be answered. */
let answering = 0;

function received(): Commanded | undefined {
  return receiveMessageOnPort(port)?.message;
}

/** Does what the main thread posted last. */
function obey(fd: number, dispatcher: Dispatcher, namespace: Namespace): void {
  let commanded: Commanded | undefined;
  for (let next = received(); next !== undefined; next = received()) commanded = next;
  if (commanded === undefined) return;
  const { id, command: message } = commanded;
  if (message.kind !== "release") answering = id;
  if (message.kind === "rebase") {
    answer(() => {
      const close = namespace.rebase(message.catalog, message.bundle);
      close?.();
      return { kind: "done", changed: close !== undefined };
    });
  } else if (message.kind === "release") {
    if (resume(fd, dispatcher)) answer(() => ({ kind: "done", changed: false }));
  } else {
    const held = dispatcher.pause();
    if (held === undefined) freeze(fd, dispatcher, namespace);
    else answer(() => ({ kind: "hold", ...held }));
  }
}

/** Freezes the namespace, while nobody writes to it, and lets everybody go on. */
function freeze(fd: number, dispatcher: Dispatcher, namespace: Namespace): void {
  answer(() => {
    try {
      return { kind: "done", changed: namespace.freeze() };
    } finally {
      resume(fd, dispatcher);
    }
  });
}

function answer(work: () => Answer): void {
  let answer: Answer;
  try {
    answer = work();
  } catch (error) {
    answer = { kind: "refused", error: plain(error) };
  }
  tell({ kind: "answer", id: answering, answer });
}

/** Answers those that are held: an error, so that the kernel takes nothing for changed. False where nobody was to be held. */
function resume(fd: number, dispatcher: Dispatcher): boolean {
  const waiting = dispatcher.resume();
  const reply = Buffer.alloc(OUT_HEADER);
  for (const { uniqueLow, uniqueHigh } of waiting ?? []) {
    writeHeader(
      new DataView(reply.buffer, reply.byteOffset),
      OUT_HEADER,
      errnoOf(new FsError("EINTR")),
      uniqueLow,
      uniqueHigh,
    );
    try {
      writeSync(fd, reply);
    } catch (error) {
      if (!isErrno(error, "ENOENT", "ENODEV", "ECONNABORTED", "EPERM")) throw error;
    }
  }
  return waiting !== undefined;
}

/** Sends a reply whose content lies in a file; false where that is to be done in another way. */
function sendLifted(lift: Lift, dispatcher: Dispatcher, lifted: Lifted): boolean {
  try {
    return lift.send(dispatcher.reply.buffer, lifted);
  } catch (error) {
    // Anything else may be the file's fault, or the system's.
    return isErrno(error, ...UNWANTED);
  }
}

/** Sends a reply of so many bytes. */
function send(fd: number, dispatcher: Dispatcher, length: number): void {
  const { request, reply, pieces } = dispatcher;
  try {
    if (pieces === undefined) writeSync(fd, reply.buffer, 0, length);
    else writevSync(fd, [reply.buffer.subarray(0, OUT_HEADER), ...pieces]);
  } catch (error) {
    if (isErrno(error, ...UNWANTED)) return;
    tell({ kind: "error", request: `reply to ${request.opcode}`, subject: "", error: plain(error) });
    // Whoever asked waits until something is accepted.
    if (length > OUT_HEADER) {
      dispatcher.unpin();
      send(fd, dispatcher, reply.header(request, OUT_HEADER, errnoOf(new FsError("EIO"))));
    }
  }
}

open();
