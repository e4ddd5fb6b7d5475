import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { MAX_BLOB_SIZE } from "../../src/cas/frame.ts";
import { type Hash, hashOf } from "../../src/cas/hash.ts";
import { GROUP_SPAN, type Group, Grouper } from "../../src/cas/ingest/grouping.ts";
import { SmallFiles } from "../../src/cas/ingest/small-files.ts";
import { pseudoRandom } from "./pseudo-random.ts";

const MIB = 1024 * 1024;
const sample = pseudoRandom(3, 4 * MIB);

/** Files of these sizes, each of its own content. */
function filesOf(sizes: readonly number[], salt = 0): Buffer[] {
  return sizes.map((size, index) => {
    const content = Buffer.from(sample.subarray(index, index + size));
    content.writeUInt32LE(index + salt, 0);
    return content;
  });
}

/** The group blobs that the files make, and that every file lies where it is said to lie. */
function group(files: readonly Buffer[]): { hashes: Hash[]; contents: Buffer[] } {
  const blobs = new Map<Hash, Buffer>();
  const hashes: Hash[] = [];
  const grouper = new Grouper((hash, content, release) => {
    hashes.push(hash);
    blobs.set(hash, Buffer.from(content));
    release();
  });
  const places = files.map((file, index) => grouper.add(hashOf(file), file, index));
  grouper.end();
  files.forEach((file, index) => {
    const { group, offset } = places[index]!;
    const blob = blobs.get(group.hash!)!;
    assert.ok(blob.subarray(offset, offset + file.length).equals(file));
  });
  for (const [hash, content] of blobs) assert.equal(hashOf(content), hash);
  return { hashes, contents: hashes.map((hash) => blobs.get(hash)!) };
}

test("every file is in a group, and no group is too large", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 4, max: 600_000 }), { minLength: 1, maxLength: 60 }), (sizes) => {
      const { contents } = group(filesOf(sizes));
      for (const content of contents) assert.ok(content.length <= MAX_BLOB_SIZE);
      for (const content of contents.slice(0, -1)) assert.ok(content.length >= 1.5 * MIB);
      assert.equal(
        contents.reduce((sum, content) => sum + content.length, 0),
        sizes.reduce((sum, size) => sum + size, 0),
      );
    }),
    { numRuns: 20 },
  );
});

test("groups of files of 4 KiB have about 4 MiB", () => {
  const { hashes } = group(filesOf(Array.from({ length: 20_000 }, () => 4096)));
  assert.ok(hashes.length >= 14 && hashes.length <= 40, `${hashes.length} groups`);
});

test("the same run of files makes the same groups elsewhere", () => {
  const run = filesOf(Array.from({ length: 8000 }, () => 4096));
  const before = filesOf(
    Array.from({ length: 700 }, () => 5000),
    1_000_000,
  );
  const alone = new Set(group(run).hashes);
  const { hashes } = group([...before, ...run]);
  const shared = hashes.filter((hash) => alone.has(hash)).length;
  assert.ok(shared >= alone.size - 4 && shared > 0, `${shared} of ${alone.size}`);
});

test("the groups of pinned files are those of the format", () => {
  const { hashes, contents } = group(
    filesOf(Array.from({ length: 3000 }, (_, index) => 100 + ((index * 7919) % 9000))),
  );
  assert.deepEqual(
    contents.map(({ length }) => length),
    [2023857, 2935683, 4009185, 4832775],
  );
  assert.equal(
    hashOf(Buffer.from(hashes.join(""))),
    "55f42d8754628e41e39aa494a57c5534055fc625bf6ad1391b186ba7646fc3e9",
  );
});

test("a group does not wait for ever", () => {
  const ended: Hash[] = [];
  const grouper = new Grouper((hash, _content, release) => {
    ended.push(hash);
    release();
  });
  const file = Buffer.from("x");
  grouper.add(hashOf(file), file, 10);
  grouper.passed(10 + GROUP_SPAN - 1);
  assert.equal(ended.length, 0);
  grouper.passed(10 + GROUP_SPAN);
  assert.deepEqual(ended, [hashOf(file)]);
});

test("tiny files end groups by their hashes too", () => {
  const files = filesOf(Array.from({ length: 60_000 }, () => 4));
  const alone = new Set(group(files).hashes);
  const { hashes } = group(files.slice(1000));
  assert.ok(hashes.filter((hash) => alone.has(hash)).length >= alone.size / 2);
});

test("small files are found again by their content", () => {
  const known = new SmallFiles();
  const groups: Group[] = [{ hash: "a" }, { hash: "b" }];
  const hashes = Array.from({ length: 5000 }, (_, index) => hashOf(Buffer.from(String(index))));
  for (const [index, hash] of hashes.entries()) {
    assert.equal(known.find(hash), undefined);
    known.add(hash, groups[index < 2500 ? 0 : 1]!, index * 3);
  }
  for (const [index, hash] of hashes.entries()) {
    assert.deepEqual(known.find(hash), { group: groups[index < 2500 ? 0 : 1], offset: index * 3 });
  }
  known.clear();
  assert.equal(known.find(hashes[0]!), undefined);
});
