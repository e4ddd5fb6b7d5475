import assert from "node:assert/strict";
import { readdirSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { DiskCache } from "../../src/cache/index.ts";
import { bytesOnDisk, containersIn, freshDirectory, KIB, MIB, sample, startChild } from "./support.ts";

const SIZE = 64 * KIB;

test("three processes that insert and read at once keep the limit and never see wrong bytes", async (t) => {
  const directory = freshDirectory(t);
  const limit = 8 * MIB;
  const children = await Promise.all([1, 2, 3].map(() => startChild(t, directory, limit)));
  let running = true;
  let most = 0;
  const watch = (async () => {
    while (running) {
      most = Math.max(most, bytesOnDisk(directory));
      await setTimeout(5);
    }
  })();
  await Promise.all(
    children.map(async (child, number) => {
      for (let round = 0; round < 6; round++) {
        // Half of the samples are everybody's, half are this process's own.
        const [from, own] = [round * 30, 1000 * (number + 1) + round * 30];
        assert.equal(await child.ask({ do: "insert", from, to: from + 30, size: SIZE }), 30);
        assert.equal(await child.ask({ do: "insert", from: own, to: own + 30, size: SIZE }), 30);
        assert.notEqual(await child.ask({ do: "check", from: 0, to: from + 30, size: SIZE }), undefined);
      }
    }),
  );
  running = false;
  await watch;
  assert.ok(most <= limit * 1.05, `${most} bytes on disk with a limit of ${limit}`);
  assert.ok(most > limit * 0.8);
  for (const child of children) assert.equal(await child.ask({ do: "end" }), "closed");
  const cache = DiskCache.open(directory, { sizeLimit: limit });
  t.after(() => cache.close());
  assert.equal(cache.status().bytes, bytesOnDisk(directory), "the index knows exactly what is there");
  assert.equal(cache.status().containers, containersIn(directory).length);
});

test("three processes that assemble large files and evict each other's keep the limit", async (t) => {
  const directory = freshDirectory(t);
  const limit = 16 * MIB;
  const children = await Promise.all([1, 2, 3].map(() => startChild(t, directory, limit)));
  let running = true;
  let most = 0;
  const watch = (async () => {
    while (running) {
      most = Math.max(most, bytesOnDisk(directory));
      await setTimeout(5);
    }
  })();
  await Promise.all(
    children.map(async (child, number) => {
      for (let round = 0; round < 8; round++) {
        // Every other file is everybody's.
        const from = (round % 2 === 0 ? 0 : 1000 * (number + 1)) + round * 50;
        assert.equal(await child.ask({ do: "assemble", from, count: 8, size: 300_001 }), 7);
        assert.notEqual(await child.ask({ do: "read", from, count: 8, size: 300_001 }), undefined);
      }
    }),
  );
  running = false;
  await watch;
  assert.ok(most <= limit * 1.05, `${most} bytes on disk with a limit of ${limit}`);
  assert.ok(most > limit * 0.7);
  for (const child of children) assert.equal(await child.ask({ do: "end" }), "closed");
});

for (const [moment, fault] of [
  ["after its space was reserved", "cache.reserved:8:kill"],
  ["after its bytes were written", "cache.written:8:kill"],
  ["after it was renamed into place", "cache.renamed:8:kill"],
] as const) {
  test(`a process killed while it inserts, ${moment}, leaves a cache that works and counts`, async (t) => {
    const directory = freshDirectory(t);
    const child = await startChild(t, directory, MIB, fault);
    assert.equal(await child.ask({ do: "insert", from: 0, to: 20, size: SIZE }), undefined);
    assert.equal(await child.ended, "SIGKILL");

    const cache = DiskCache.open(directory, { sizeLimit: MIB });
    t.after(() => cache.close());
    for (let seed = 0; seed < 8; seed++) {
      const { hash, content } = sample(seed, SIZE);
      const found = cache.load(hash);
      assert.equal(found !== undefined, seed < 7 || moment === "after it was renamed into place");
      if (found !== undefined) assert.ok(found.equals(content));
    }
    const onDisk = bytesOnDisk(directory);
    const { bytes } = cache.status();
    assert.ok(bytes >= onDisk - SIZE && bytes <= onDisk + SIZE, "counted to within what was under way");
    for (let seed = 0; seed < 40; seed++) {
      const { hash, content } = sample(seed, SIZE);
      assert.ok(cache.insert(hash, content));
    }
    assert.equal(cache.status().bytes, containersIn(directory).length * SIZE);
  });
}

test("processes killed at any moment leave a cache that works", async (t) => {
  const directory = freshDirectory(t);
  for (let round = 0; round < 5; round++) {
    const children = await Promise.all([1, 2].map(() => startChild(t, directory, 4 * MIB)));
    const answers = children.map((child) => child.ask({ do: "insert", from: 0, to: 1_000_000, size: SIZE }));
    await setTimeout(10 + 17 * round);
    for (const child of children) child.kill();
    for (const child of children) assert.equal(await child.ended, "SIGKILL");
    await Promise.all(answers);
    const checker = await startChild(t, directory, 4 * MIB);
    assert.notEqual(await checker.ask({ do: "check", from: 0, to: 100, size: SIZE }), undefined);
    assert.equal(await checker.ask({ do: "insert", from: 0, to: 100, size: SIZE }), 100);
    assert.ok(bytesOnDisk(directory) <= 4 * MIB * 1.05);
    assert.equal(await checker.ask({ do: "end" }), "closed");
  }
});

const replacements: Record<string, (directory: string) => void> = {
  deleted: (directory) => rmSync(join(directory, "index.sqlite")),
  damaged: (directory) => writeFileSync(realpathSync(join(directory, "index.sqlite")), "junk".repeat(5000)),
};

for (const [name, replace] of Object.entries(replacements)) {
  test(`an index ${name} while another process has it open: both go on and agree`, async (t) => {
    const directory = freshDirectory(t);
    const limit = 100 * MIB;
    const old = await startChild(t, directory, limit);
    await old.ask({ do: "insert", from: 0, to: 20, size: SIZE });
    replace(directory);
    const fresh = await startChild(t, directory, limit);
    assert.equal(await fresh.ask({ do: "check", from: 0, to: 20, size: SIZE }), 20);
    const both = [
      old.ask({ do: "insert", from: 10, to: 60, size: SIZE }),
      fresh.ask({ do: "insert", from: 30, to: 90, size: SIZE }),
    ];
    assert.deepEqual(await Promise.all(both), [50, 60]);
    const [a, b] = await Promise.all([old.ask({ do: "status" }), fresh.ask({ do: "status" })]);
    assert.deepEqual(a, b);
    assert.equal((b as { containers: number }).containers, 90);
    assert.equal((b as { bytes: number }).bytes, bytesOnDisk(directory));
    for (const child of [old, fresh]) assert.equal(await child.ask({ do: "check", from: 0, to: 90, size: SIZE }), 90);
    // The one that had the old index open must not take the new one's files along when it closes.
    assert.equal(await old.ask({ do: "end" }), "closed");
    assert.deepEqual(await fresh.ask({ do: "status" }), b);
  });
}

test("an index replaced again and again under load loses no container", async (t) => {
  const directory = freshDirectory(t);
  const children = await Promise.all([1, 2].map(() => startChild(t, directory, 100 * MIB)));
  const inserted = children.map((child, number) =>
    child.ask({ do: "insert", from: number * 200, to: number * 200 + 200, size: 8 * KIB }),
  );
  let running = true;
  const replacing = (async () => {
    while (running) {
      rmSync(join(directory, "index.sqlite"), { force: true });
      const cache = DiskCache.open(directory, { sizeLimit: 100 * MIB });
      await setTimeout(3);
      cache.close();
    }
  })();
  assert.deepEqual(await Promise.all(inserted), [200, 200]);
  running = false;
  await replacing;
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  assert.equal(cache.status().containers, 400);
  assert.equal(cache.status().bytes, bytesOnDisk(directory));
  assert.deepEqual(readdirSync(join(directory, "tmp")), []);
});
