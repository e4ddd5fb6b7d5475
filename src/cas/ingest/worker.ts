/** A reading thread: reads files, finds the chunks of large ones, and hashes. */

import { readSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { Chunker, isZero, MAX_CHUNK, MIN_CHUNK } from "../chunker.ts";
import { ChunkListHasher, ContentHasher, LARGE_FILE, zeroChunkHash } from "../content.ts";
import { DatamonError } from "../errors.ts";
import { type Hash, hashOf } from "../hash.ts";
import { PART_SIZE, packStats, type ReadJob, type ReadMessage } from "./messages.ts";
import { returnSlot, type SlotMemory, slotBuffer, takeSlot } from "./slots.ts";
import type { FileStat } from "./source.ts";
import { readStable } from "./stable.ts";

/** Read at once where a cut may come any moment: what is read beyond it has to be moved. */
const PIECE = 256 * 1024;
const REPORT = 8 * 1024 * 1024;

/** Where chunks go; undefined where only hashes are wanted. */
const slots = workerData as SlotMemory | undefined;
const port = parentPort!;
const scratch = Buffer.allocUnsafeSlow(LARGE_FILE);

/** Small files that are not yet sent. */
let first = 0;
let hashes: Hash[] = [];
let stats: FileStat[] = [];
let content: Buffer<ArrayBuffer> | undefined;
let used = 0;
/** Memory that was used before. */
let spare: ArrayBuffer[] = [];

port.on("message", (job: ReadJob) => {
  spare = [...job.memory];
  job.paths.forEach((path, file) => {
    try {
      const { value, stat } = readStable(path, (fd, { size }) =>
        size < LARGE_FILE ? readSmall(fd, size) : readLarge(fd, size, file),
      );
      if (stat.size < LARGE_FILE) addSmall(file, value, stat);
      else send({ kind: "large", file, hash: value, stat });
    } catch (error) {
      if (!(error instanceof DatamonError)) throw error;
      const { code, message, hint } = error;
      send({ kind: "failed", file, error: { code, message, hint } });
    }
  });
  sendSmall();
  if (content !== undefined) spare.push(content.buffer);
  content = undefined;
  port.postMessage({ kind: "done", memory: spare } satisfies ReadMessage, spare);
});

/** Messages are in the files' order, so the small files that wait go first. */
function send(message: ReadMessage): void {
  sendSmall();
  port.postMessage(message);
}

function sendSmall(): void {
  if (hashes.length === 0) return;
  const words = packStats(stats);
  const message: ReadMessage = { kind: "small", first, hashes, stats: words, content: content?.subarray(0, used) };
  port.postMessage(message, content === undefined ? [words.buffer] : [words.buffer, content.buffer]);
  hashes = [];
  stats = [];
  content = undefined;
  used = 0;
}

/** Reads a file behind those that wait to be sent, without adding it to them. */
function readSmall(fd: number, size: number): Hash | undefined {
  if (slots === undefined) {
    return readFully(fd, scratch, 0, size) ? hashOf(scratch.subarray(0, size)) : undefined;
  }
  if (used + size > PART_SIZE) sendSmall();
  content ??= Buffer.from(spare.pop() ?? new ArrayBuffer(PART_SIZE));
  return readFully(fd, content, used, size) ? hashOf(content.subarray(used, used + size)) : undefined;
}

function addSmall(file: number, hash: Hash, stat: FileStat): void {
  if (hashes.length === 0) first = file;
  hashes.push(hash);
  stats.push(stat);
  used += stat.size;
}

function readLarge(fd: number, size: number, file: number): Hash | undefined {
  return slots === undefined ? hashLarge(fd, size) : sendChunks(slots, fd, size, file);
}

function hashLarge(fd: number, size: number): Hash | undefined {
  const hasher = new ContentHasher();
  let unreported = 0;
  for (let at = 0; at < size; ) {
    const length = Math.min(scratch.length, size - at);
    if (!readFully(fd, scratch, 0, length)) return undefined;
    hasher.update(scratch.subarray(0, length));
    at += length;
    unreported += length;
    if (unreported < REPORT && at < size) continue;
    send({ kind: "progress", bytes: unreported });
    unreported = 0;
  }
  return hasher.digest();
}

function sendChunks(slots: SlotMemory, fd: number, size: number, file: number): Hash | undefined {
  const chunker = new Chunker();
  const list = new ChunkListHasher();
  let slot = takeSlot(slots);
  try {
    // The slot's first byte is at `start` of the file; `filled` bytes are in it, `scanned` of them were searched.
    for (let start = 0, filled = 0, scanned = 0; start < size; ) {
      const buffer = slotBuffer(slots, slot);
      const cut = chunker.cut(buffer, scanned, filled);
      if (cut < 0 && start + filled < size) {
        scanned = filled;
        const wanted = filled < MIN_CHUNK ? MIN_CHUNK - filled : Math.min(PIECE, MAX_CHUNK - filled);
        const length = Math.min(wanted, size - start - filled);
        if (!readFully(fd, buffer, filled, length)) return undefined;
        filled += length;
        continue;
      }
      const length = cut < 0 ? filled : cut;
      const rest = filled - length;
      if ((length === MAX_CHUNK || start + length === size) && isZero(buffer, 0, length)) {
        const hash = zeroChunkHash(length);
        list.add(hash, length);
        send({ kind: "chunk", file, hash, start, length, slot: undefined });
        buffer.copyWithin(0, length, filled);
      } else {
        const hash = hashOf(buffer.subarray(0, length));
        list.add(hash, length);
        const full = slot;
        if (start + length < size) {
          slot = takeSlot(slots);
          buffer.copy(slotBuffer(slots, slot), 0, length, filled);
        } else {
          slot = -1;
        }
        send({ kind: "chunk", file, hash, start, length, slot: full });
      }
      start += length;
      filled = rest;
      scanned = 0;
    }
    return list.digest();
  } finally {
    if (slot >= 0) returnSlot(slots, slot);
  }
}

/** Reads `length` bytes from the file's position on; false where the file ends before that. */
function readFully(fd: number, buffer: Buffer, at: number, length: number): boolean {
  for (let done = 0; done < length; ) {
    const count = readSync(fd, buffer, at + done, length - done, null);
    if (count === 0) return false;
    done += count;
  }
  return true;
}
