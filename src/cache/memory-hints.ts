import type { Hash } from "../cas/index.ts";

const SLOTS = 4096;

/**
 * Tells other threads which blobs one has in memory: a table in shared memory with a part of each
 * hash. It may be wrong either way for a moment, or for a blob that shares its slot, which costs time
 * and nothing else.
 */
export class MemoryHints {
  readonly slots: Int32Array;

  /** @param slots those of another thread's hints */
  constructor(slots: Int32Array = new Int32Array(new SharedArrayBuffer(SLOTS * 4))) {
    this.slots = slots;
  }

  has(hash: Hash): boolean {
    return Atomics.load(this.slots, slotOf(hash)) === markOf(hash);
  }

  add(hash: Hash): void {
    Atomics.store(this.slots, slotOf(hash), markOf(hash));
  }

  delete(hash: Hash): void {
    if (this.has(hash)) Atomics.store(this.slots, slotOf(hash), 0);
  }
}

function slotOf(hash: Hash): number {
  return Number.parseInt(hash.slice(0, 8), 16) % SLOTS;
}

function markOf(hash: Hash): number {
  return Number.parseInt(hash.slice(8, 16), 16) | 1;
}
