import assert from "node:assert/strict";
import { chmodSync, chownSync, closeSync, readdirSync, realpathSync, statSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import Database from "better-sqlite3";
import { DiskCache } from "../../src/cache/index.ts";
import { stampOf } from "../../src/cache/stamp.ts";
import { bytesOnDisk, freshDirectory, insertPiece, KIB, largeFile, MIB, sample, startChild } from "./support.ts";

const [ADA, BOB, GROUP, OTHERS] = [64_001, 64_002, 64_003, 64_004];
const SIZE = 64 * KIB;
/** What `Request`s of large files are about. */
const FILE = { from: 500, count: 6, size: 300_001 };

const skip = process.getuid?.() !== 0 && "only root can start processes of other users";

/** A cache directory of this mode, of nobody who uses it. */
function sharedDirectory(t: TestContext, mode: number): string {
  const directory = freshDirectory(t);
  chownSync(directory, 0, GROUP);
  chmodSync(directory, mode);
  return directory;
}

for (const [whose, mode, ada, bob] of [
  ["a group", 0o2770, { uid: ADA, gid: GROUP }, { uid: BOB, gid: GROUP }],
  ["everybody", 0o777, { uid: ADA, gid: GROUP }, { uid: BOB, gid: OTHERS }],
] as const) {
  test(`two users of a cache directory of ${whose} share what is in it and make room for each other`, {
    skip,
  }, async (t) => {
    const directory = sharedDirectory(t, mode);
    const limit = 6 * MIB;
    const one = await startChild(t, directory, limit, undefined, ada);
    assert.equal(await one.ask({ do: "insert", from: 0, to: 20, size: SIZE }), 20);
    assert.equal(await one.ask({ do: "assemble", ...FILE, count: 4 }), 3);
    const two = await startChild(t, directory, limit, undefined, bob);
    assert.equal(await two.ask({ do: "check", from: 0, to: 20, size: SIZE }), 20);
    assert.equal(await two.ask({ do: "read", ...FILE, count: 4 }), 3);
    assert.equal(await two.ask({ do: "assemble", ...FILE }), 5, "into the container of the other user's file");
    assert.equal(await two.ask({ do: "insert", from: 20, to: 40, size: SIZE }), 20);
    assert.equal(await one.ask({ do: "check", from: 0, to: 40, size: SIZE }), 40);
    assert.equal(await one.ask({ do: "read", ...FILE }), 5);
    // Each has to evict what the other one brought.
    for (const [round, child] of [two, one, two, one].entries()) {
      const from = 1000 + round * 50;
      assert.equal(await child.ask({ do: "insert", from, to: from + 50, size: SIZE }), 50);
      assert.ok(bytesOnDisk(directory) <= limit * 1.05);
    }
    const [a, b] = await Promise.all([one.ask({ do: "status" }), two.ask({ do: "status" })]);
    assert.deepEqual(a, b);
    assert.equal((a as { degraded?: string }).degraded, undefined);
    for (const name of readdirSync(directory, { recursive: true, encoding: "utf8" })) {
      const info = statSync(join(directory, name), { throwIfNoEntry: false });
      if (info === undefined) continue;
      const expected = info.isDirectory() ? mode : mode & 0o666;
      assert.equal(info.mode & 0o7777 & expected, expected, `${name} has the mode ${info.mode.toString(8)}`);
    }
    assert.equal(await one.ask({ do: "end" }), "closed");
    // The first one's log of the index went with it, or is the other's to use.
    assert.equal(await two.ask({ do: "insert", from: 2000, to: 2010, size: SIZE }), 10);
  });
}

test("a cache directory of another user serves what it holds, in use or not, and is left as it is", {
  skip,
}, async (t) => {
  const directory = freshDirectory(t);
  chmodSync(directory, 0o755);
  const cache = DiskCache.open(directory, { sizeLimit: 100 * MIB });
  for (let seed = 0; seed < 10; seed++) cache.insert(sample(seed, SIZE).hash, sample(seed, SIZE).content);
  const file = largeFile(FILE.from, FILE.count, FILE.size);
  for (const index of file.layout.pieces.keys()) insertPiece(cache, file, index);
  for (const used of [true, false]) {
    if (!used) cache.close();
    const child = await startChild(t, directory, 100 * MIB, undefined, { uid: BOB, gid: OTHERS });
    assert.equal(await child.ask({ do: "check", from: 0, to: 20, size: SIZE }), 10);
    assert.equal(await child.ask({ do: "read", ...FILE }), 5);
    assert.equal(await child.ask({ do: "insert", from: 10, to: 11, size: SIZE }), 0);
    assert.equal(((await child.ask({ do: "status" })) as { containers: number }).containers, 11);
    assert.equal(await child.ask({ do: "end" }), "closed");
  }
  const again = DiskCache.open(directory, { sizeLimit: 100 * MIB });
  t.after(() => again.close());
  assert.equal(again.status().containers, 11);
});

test("where others can write, too, nobody's word is taken for what was verified", (t) => {
  for (const mode of [0o700, 0o777]) {
    const directory = freshDirectory(t);
    chmodSync(directory, mode);
    const cache = DiskCache.open(directory, { sizeLimit: 100 * MIB });
    t.after(() => cache.close());
    const { layout } = largeFile(FILE.from, FILE.count, FILE.size);
    for (const index of layout.pieces.keys()) insertPiece(cache, largeFile(FILE.from, FILE.count, FILE.size), index);
    const fd = cache.openPartial(layout.file)!;
    t.after(() => closeSync(fd));
    assert.ok(cache.setWhole(layout.file, fd, stampOf(fd)));
    const opened = cache.openWhole(layout.file);
    assert.ok(opened !== undefined, "what this process verified");
    closeSync(opened);
    const index = new Database(realpathSync(join(directory, "index.sqlite")));
    index.prepare("UPDATE container SET stamp = ? WHERE stamp IS NOT NULL").run(stampOf(fd));
    index.close();
    const forged = cache.openWhole(layout.file);
    if (forged !== undefined) closeSync(forged);
    assert.equal(forged !== undefined, mode === 0o700);
  }
});
