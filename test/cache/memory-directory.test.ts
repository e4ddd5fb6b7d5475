import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { setImmediate } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { MemoryDirectory, MemoryReader } from "../../src/cache/memory-directory.ts";
import { hashOf } from "../../src/cas/index.ts";

const A = hashOf(Buffer.from("a"));
/** Of the same place in the table. */
const B = A.slice(0, 8) + hashOf(Buffer.from("b")).slice(8);

function shared(): { directory: MemoryDirectory; reader: MemoryReader; bytes: Buffer } {
  const directory = new MemoryDirectory();
  const memory = new SharedArrayBuffer(1000);
  const reader = new MemoryReader({ entries: directory.entries, memory });
  return { directory, reader, bytes: Buffer.from(memory) };
}

test("what is listed can be read, as long as it is", () => {
  const { directory, reader, bytes } = shared();
  bytes.write("content", 100, "latin1");
  assert.equal(reader.pin(A, 0, 1), undefined);
  directory.add(A, 100, 7);
  assert.ok(reader.has(A));
  assert.equal(reader.pin(A, 3, 4)?.toString(), "tent");
  assert.equal(reader.pin(A, 3, 5), undefined, "there is no more of it");
  assert.ok(directory.isRead(A));
  reader.unpin(A);
  assert.ok(!directory.isRead(A));
  directory.delete(A);
  assert.ok(!reader.has(A));
  assert.equal(reader.pin(A, 0, 1), undefined);
});

test("who reads keeps the place until it is done", () => {
  const { directory, reader } = shared();
  directory.add(A, 100, 7);
  assert.notEqual(reader.pin(A, 0, 7), undefined);
  directory.delete(A);
  assert.ok(directory.isRead(A));
  directory.add(B, 200, 7);
  assert.ok(!reader.has(B), "the place is taken");
  reader.unpin(A);
  assert.ok(!directory.isRead(A));
  directory.add(B, 200, 7);
  assert.ok(reader.has(B));
});

test("of two in one place, one is listed and neither is taken for the other", () => {
  const { directory, reader } = shared();
  directory.add(A, 100, 7);
  directory.add(B, 200, 7);
  assert.ok(reader.has(A));
  assert.ok(!reader.has(B));
  assert.equal(reader.pin(B, 0, 1), undefined);
  directory.delete(B);
  assert.ok(reader.has(A));
});

test("what others do not see is known to be there, and not read", () => {
  const { directory, reader } = shared();
  directory.add(A, undefined, 7);
  assert.ok(reader.has(A));
  assert.equal(reader.pin(A, 0, 7), undefined);
  assert.ok(!directory.isRead(A));
});

test("a reader in another thread never sees bytes of another blob", async () => {
  const { directory, bytes } = shared();
  /** Whether the reader is to end, and how often it has read. */
  const state = new Int32Array(new SharedArrayBuffer(8));
  const worker = new Worker(
    `
    const { parentPort, workerData } = require("node:worker_threads");
    import(workerData.module).then(({ MemoryReader }) => {
      const { entries, memory, hashes, state } = workerData;
      const reader = new MemoryReader({ entries, memory });
      let wrong = 0;
      while (Atomics.load(state, 0) === 0) {
        for (const [index, hash] of hashes.entries()) {
          const piece = reader.pin(hash, 0, 64);
          if (piece === undefined) continue;
          for (let round = 0; round < 20; round++) if (piece.some((byte) => byte !== index + 1)) wrong++;
          Atomics.add(state, 1, 1);
          reader.unpin(hash);
        }
      }
      parentPort.postMessage(wrong);
    });
    `,
    {
      eval: true,
      workerData: {
        module: new URL("../../src/cache/memory-directory.ts", import.meta.url).href,
        entries: directory.entries,
        memory: bytes.buffer,
        hashes: [A, B],
        state,
      },
    },
  );
  const finished = once(worker, "message");
  // One after the other comes into the same place of the table and of the memory, until the reader has met them often.
  for (let changes = 0; Atomics.load(state, 1) < 2000; changes++) {
    const [hash, byte] = changes % 2 === 0 ? [A, 1] : [B, 2];
    bytes.fill(byte, 0, 64);
    directory.add(hash, 0, 64);
    for (let turns = changes % 500; turns > 0; turns--) directory.isRead(hash);
    directory.delete(hash);
    while (directory.isRead(hash));
    if (changes % 1000 === 0) await setImmediate();
  }
  Atomics.store(state, 0, 1);
  assert.deepEqual(await finished, [0]);
});
