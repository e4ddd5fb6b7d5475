import assert from "node:assert/strict";
import { closeSync } from "node:fs";
import { describe, it } from "node:test";
import fc from "fast-check";
import { memoryFile } from "../../../../src/fs/channels/kernel/libc.ts";
import { PassedFiles } from "../../../../src/fs/channels/kernel/passed.ts";

const supported = process.platform === "linux" ? {} : { skip: "memory files are Linux's" };

describe("what is noted of open inodes", supported, () => {
  it("is what the next daemon finds, whenever the one before died", () => {
    const note = fc.record({
      ino: fc.oneof(fc.nat(20), fc.constant(2 ** 53 - 1)),
      backing: fc.integer({ min: -1, max: 1000 }),
      handles: fc.nat(3),
    });
    fc.assert(
      fc.property(fc.array(fc.array(note, { maxLength: 40 }), { minLength: 1, maxLength: 4 }), (lives) => {
        const fd = memoryFile("datamon-test");
        try {
          const open = new Map<number, readonly [number, number]>();
          for (const notes of lives) {
            const passed = new PassedFiles(fd);
            assert.deepEqual(passed.read(), Object.fromEntries(open));
            for (const { ino, backing, handles } of notes) {
              // Of an inode that is not open no end is told.
              if (handles === 0 && !open.has(ino)) continue;
              passed.note(ino, backing, handles);
              if (handles === 0) open.delete(ino);
              else open.set(ino, [backing, handles]);
            }
          }
          assert.deepEqual(new PassedFiles(fd).read(), Object.fromEntries(open));
        } finally {
          closeSync(fd);
        }
      }),
    );
  });
});
