import { MAX_CHUNK } from "../chunker.ts";

/**
 * Memory for chunks on their way from the threads that read to the one that stores them: slots of
 * `MAX_CHUNK` bytes, shared by all. A reader that finds none free waits, and so reads no faster than
 * chunks are stored. Every reader holds a slot while it waits for its next one, so there must be
 * more slots than readers.
 */
export interface SlotMemory {
  readonly content: SharedArrayBuffer;
  /** How often a slot was given back, then for each slot 1 where it is taken. */
  readonly state: Int32Array<SharedArrayBuffer>;
}

/** Memory for `count` slots; the system provides a page when it is first written to. */
export function slotMemory(count: number): SlotMemory {
  return {
    content: new SharedArrayBuffer(count * MAX_CHUNK),
    state: new Int32Array(new SharedArrayBuffer((1 + count) * 4)),
  };
}

/** The bytes of a slot. */
export function slotBuffer(memory: SlotMemory, slot: number): Buffer {
  return Buffer.from(memory.content, slot * MAX_CHUNK, MAX_CHUNK);
}

/** Takes a free slot; blocks the thread until there is one. */
export function takeSlot({ state }: SlotMemory): number {
  for (;;) {
    const returns = Atomics.load(state, 0);
    // The first that is free, so that no more memory is ever touched than is needed at one time.
    for (let slot = 0; slot < state.length - 1; slot++) {
      if (Atomics.compareExchange(state, slot + 1, 0, 1) === 0) return slot;
    }
    Atomics.wait(state, 0, returns);
  }
}

/** Gives a slot back. */
export function returnSlot({ state }: SlotMemory, slot: number): void {
  Atomics.store(state, slot + 1, 0);
  Atomics.add(state, 0, 1);
  Atomics.notify(state, 0, 1);
}
