import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { ByteString } from "../../../../src/cas/index.ts";
import { Positions } from "../../../../src/fs/channels/kernel/positions.ts";
import type { Attr, Entry } from "../../../../src/fs/namespace.ts";

const INO = 7;

/** A directory of the names `0000`, `0001`, … that counts how many entries were asked of it. */
class Directory {
  readonly entries: Entry[];
  readonly names: ByteString[];
  asked = 0;

  constructor(count: number) {
    this.entries = Array.from({ length: count }, (_, index) => ({ name: nameOf(index), attr: {} as Attr }));
    this.names = this.entries.map(({ name }) => name);
  }

  readdir(_ino: number, after: ByteString | undefined, limit: number): Entry[] {
    const start = after === undefined ? 0 : Number(after) + 1;
    this.asked += limit;
    return this.entries.slice(start, start + limit);
  }
}

const nameOf = (index: number): ByteString => String(index).padStart(4, "0") as ByteString;

/** The position of entry `index`: two come before the first. */
const positionOf = (index: number): number => index + 3;

describe("positions in listings", () => {
  it("finds every position, known or not", () => {
    const directory = new Directory(3000);
    const positions = new Positions(4);
    assert.equal(positions.seek(directory, INO, INO, 2), undefined);
    for (let start = 0; start < 3000; start += 100) {
      positions.note(INO, positionOf(start), directory.names.slice(start, start + 100));
    }
    for (const index of [0, 1, 99, 100, 1234, 2899, 2900, 2950, 2999]) {
      assert.equal(positions.seek(directory, INO, INO, positionOf(index)), nameOf(index));
      assert.equal(new Positions(4).seek(directory, INO, INO, positionOf(index)), nameOf(index));
    }
    assert.equal(positions.seek(directory, INO, INO, positionOf(3000)), "end");
  });

  it("asks nothing where the kernel goes on from a reply's end, or from within the newest", () => {
    const directory = new Directory(300);
    const positions = new Positions(4);
    positions.note(INO, positionOf(0), directory.names.slice(0, 100));
    positions.note(INO, positionOf(100), directory.names.slice(100, 200));
    for (const index of [99, 100, 150, 199]) positions.seek(directory, INO, INO, positionOf(index));
    assert.equal(directory.asked, 0);
    positions.seek(directory, INO, INO, positionOf(42));
    assert.equal(directory.asked, 43);
    positions.note(INO, positionOf(200), directory.names.slice(200, 300));
    directory.asked = 0;
    positions.seek(directory, INO, INO, positionOf(142));
    assert.equal(directory.asked, 43);
  });

  it("remembers so many listings, the ones used last, and each apart", () => {
    const directory = new Directory(10);
    const positions = new Positions(2);
    for (const key of [1, 2, 3]) positions.note(key, positionOf(0), directory.names.slice(0, key));
    for (const [key, asked] of [
      [2, 0],
      [3, 0],
      [1, 1],
    ] as const) {
      directory.asked = 0;
      positions.seek(directory, INO, key, positionOf(key - 1));
      assert.equal(directory.asked, asked);
    }
    positions.forget(3);
    directory.asked = 0;
    assert.equal(positions.seek(directory, INO, 3, positionOf(2)), nameOf(2));
    assert.equal(directory.asked, 3);
  });
});
