import assert from "node:assert/strict";
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  readSync,
  realpathSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import Database from "better-sqlite3";
import { DiskCache } from "../../src/cache/index.ts";
import { DatamonError, hashOf } from "../../src/cas/index.ts";
import { bytesOnDisk, containerPath, containersIn, freshDirectory, KIB, MIB, sample } from "./support.ts";

test("what was inserted is located with its bytes, in this and a later opening", (t) => {
  const directory = freshDirectory(t);
  const { hash, content } = sample(1, 100_000);
  const first = DiskCache.open(directory);
  assert.equal(first.locate(hash), undefined);
  assert.equal(first.insert(hash, content), true);
  assert.equal(first.insert(hash, content), true, "again");
  const resident = first.locate(hash);
  assert.equal(resident?.length, content.length);
  const read = Buffer.alloc(50);
  readSync(resident.fd, read, 0, 50, resident.offset + 10);
  assert.ok(read.equals(content.subarray(10, 60)));
  first.close();

  const second = DiskCache.open(directory);
  t.after(() => second.close());
  assert.ok(second.load(hash)?.equals(content));
  assert.ok(second.has(hash));
  const status = second.status();
  assert.equal(status.containers, 1);
  assert.equal(status.bytes, bytesOnDisk(directory));
  assert.equal(status.degraded, undefined);
});

test("content written by another thread is the same content", async (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  const { hash, content } = sample(1, MIB);
  const outcomes = await Promise.all([cache.insertAsync(hash, content), cache.insertAsync(hash, content)]);
  assert.deepEqual(outcomes, [true, true]);
  assert.ok(cache.load(hash)?.equals(content));
  assert.deepEqual(readdirSync(join(directory, "tmp")), []);
  assert.equal(cache.status().containers, 1);
});

test("a read beyond a blob's end is an error that names the blob", (t) => {
  const cache = DiskCache.open(freshDirectory(t));
  t.after(() => cache.close());
  const { hash, content } = sample(1, 100);
  cache.insert(hash, content);
  assert.throws(
    () => cache.read(hash, 90, 11, Buffer.alloc(20), 0),
    (error: DatamonError) => error.code === "damaged" && error.message.includes(hash),
  );
});

const damages: Record<string, (path: string) => void> = {
  "one byte changed": (path) => {
    const bytes = Buffer.alloc(200_000, "x");
    writeFileSync(path, bytes, { flag: "r+" });
  },
  "cut short": (path) => truncateSync(path, 1000),
  emptied: (path) => truncateSync(path, 0),
  "grown beyond any blob": (path) => truncateSync(path, 20 * MIB),
  "replaced by a link": (path) => {
    rmSync(path);
    symlinkSync("/etc/passwd", path);
  },
};

for (const [name, damage] of Object.entries(damages)) {
  const { hash, content } = sample(7, 200_000);
  const isServed = (cache: DiskCache): boolean => {
    const found = cache.load(hash);
    if (found !== undefined) assert.ok(found.equals(content), "damaged bytes were served");
    return found !== undefined;
  };

  test(`a container that is ${name} is not served and can be inserted again`, (t) => {
    const directory = freshDirectory(t);
    const open = DiskCache.open(directory);
    t.after(() => open.close());
    open.insert(hash, content);
    assert.ok(isServed(open), "verified and open");
    damage(containerPath(directory, hash));
    // What follows the blob's own bytes does not make these wrong, nor does what happens to the name of an open file.
    assert.equal(isServed(open), name === "grown beyond any blob" || name === "replaced by a link");
    assert.equal(open.insert(hash, content), true);
    assert.ok(isServed(open));
  });

  test(`a container that was ${name} before the cache was opened is not served`, (t) => {
    const directory = freshDirectory(t);
    const before = DiskCache.open(directory);
    before.insert(hash, content);
    before.close();
    damage(containerPath(directory, hash));
    rmSync(join(directory, "index.sqlite"));
    const cache = DiskCache.open(directory);
    t.after(() => cache.close());
    assert.equal(isServed(cache), false);
  });
}

const indexDamages: Record<string, (directory: string) => void> = {
  missing: (directory) => rmSync(join(directory, "index.sqlite")),
  "missing behind its link": (directory) => rmSync(realpathSync(join(directory, "index.sqlite"))),
  empty: (directory) => truncateSync(join(directory, "index.sqlite"), 0),
  "not a database": (directory) => writeFileSync(join(directory, "index.sqlite"), "no database at all".repeat(1000)),
  "damaged in its pages": (directory) => {
    const path = realpathSync(join(directory, "index.sqlite"));
    writeFileSync(path, Buffer.alloc(lstatSync(path).size - 4096, 0x5a), { flag: "r+", flush: true });
  },
  "a file in the link's place": (directory) => {
    rmSync(join(directory, "index.sqlite"));
    writeFileSync(join(directory, "index.sqlite"), "no link");
  },
  "another program's database": (directory) => {
    const path = realpathSync(join(directory, "index.sqlite"));
    rmSync(path);
    const other = new Database(path);
    other.exec("CREATE TABLE container(a, b)");
    other.close();
  },
  "of wrong sums": (directory) => {
    const database = new Database(realpathSync(join(directory, "index.sqlite")));
    database.exec("UPDATE total SET bytes = 5");
    database.close();
  },
  "of names that are no hashes": (directory) => {
    const database = new Database(realpathSync(join(directory, "index.sqlite")));
    database.exec("UPDATE container SET name = '../../' || name");
    database.close();
  },
};

for (const [name, damage] of Object.entries(indexDamages)) {
  test(`an index that is ${name} is built again from the containers`, (t) => {
    const directory = freshDirectory(t);
    const samples = Array.from({ length: 20 }, (_, seed) => sample(seed, 10_000));
    const before = DiskCache.open(directory);
    for (const { hash, content } of samples) before.insert(hash, content);
    before.close();
    for (const file of readdirSync(join(directory, "index"))) utimesSync(join(directory, "index", file), 0, 0);
    damage(directory);

    const cache = DiskCache.open(directory);
    t.after(() => cache.close());
    for (const { hash, content } of samples) assert.ok(cache.load(hash)?.equals(content));
    const status = cache.status();
    assert.equal(status.containers, samples.length);
    assert.equal(status.bytes, bytesOnDisk(directory));
    assert.equal(status.degraded, undefined);
    assert.ok(lstatSync(join(directory, "index.sqlite")).isSymbolicLink());
    assert.equal(
      new Set(readdirSync(join(directory, "index")).map((file) => file.slice(0, 16))).size,
      1,
      "old ones are gone",
    );
  });
}

test("an index that is deleted while it is open is built again by the next insert, with everything in it", (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  const [one, two] = [sample(1, 5000), sample(2, 5000)];
  cache.insert(one.hash, one.content);
  rmSync(join(directory, "index.sqlite"));
  assert.ok(cache.load(one.hash)?.equals(one.content));
  assert.ok(cache.insert(two.hash, two.content));
  assert.equal(cache.status().containers, 2);
});

test("a directory that is deleted while it is open is made again", (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  const [one, two] = [sample(1, 5000), sample(2, 5000)];
  cache.insert(one.hash, one.content);
  rmSync(directory, { recursive: true });
  assert.ok(cache.insert(two.hash, two.content));
  assert.ok(cache.load(two.hash)?.equals(two.content));
  assert.equal(cache.status().containers, 1);
});

test("the least recently used go first, and the limit holds", (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory, { sizeLimit: 10 * MIB });
  t.after(() => cache.close());
  const kept = sample(1000, 100 * KIB);
  cache.insert(kept.hash, kept.content);
  for (let seed = 0; seed < 300; seed++) {
    const { hash, content } = sample(seed, 100 * KIB);
    assert.ok(cache.insert(hash, content));
    assert.ok(bytesOnDisk(directory) <= 10 * MIB);
    if (seed % 20 === 0) {
      backdate(directory, kept.hash);
      assert.ok(cache.locate(kept.hash), `in use at ${seed}`);
    }
  }
  const status = cache.status();
  assert.equal(status.bytes, bytesOnDisk(directory));
  assert.ok(status.bytes > 9 * MIB);
  assert.ok(cache.stats.evicted >= 200);
  assert.equal(cache.has(sample(0, 100 * KIB).hash), false);
});

/** Makes a container the oldest of all, so that only its use since saves it. */
function backdate(directory: string, hash: string): void {
  const database = new Database(realpathSync(join(directory, "index.sqlite")));
  database.prepare("UPDATE container SET last_use = 1 WHERE name = ?").run(hash);
  database.close();
}

test("a blob larger than the limit is not taken, and that is no trouble", (t) => {
  const cache = DiskCache.open(freshDirectory(t), { sizeLimit: 10_000 });
  t.after(() => cache.close());
  const { hash, content } = sample(1, 20_000);
  assert.equal(cache.insert(hash, content), false);
  assert.equal(cache.status().degraded, undefined);
});

test("an evicted container is read to its end by whoever has it open", (t) => {
  const directory = freshDirectory(t);
  const reader = DiskCache.open(directory, { sizeLimit: 3 * MIB });
  const writer = DiskCache.open(directory, { sizeLimit: 3 * MIB });
  t.after(() => {
    reader.close();
    writer.close();
  });
  const { hash, content } = sample(1, MIB);
  writer.insert(hash, content);
  assert.ok(reader.locate(hash));
  for (let seed = 2; seed < 6; seed++) {
    const other = sample(seed, MIB);
    writer.insert(other.hash, other.content);
  }
  assert.equal(existsSync(containerPath(directory, hash)), false);
  assert.ok(reader.load(hash)?.equals(content));
  assert.equal(writer.locate(hash), undefined);
});

test("every few seconds uses are recorded, and the space of evicted containers comes free", (t) => {
  t.mock.timers.enable({ apis: ["setInterval", "Date"], now: Date.now() });
  const directory = freshDirectory(t);
  const reader = DiskCache.open(directory, { sizeLimit: 3 * MIB });
  const writer = DiskCache.open(directory, { sizeLimit: 3 * MIB });
  t.after(() => {
    reader.close();
    writer.close();
  });
  const samples = Array.from({ length: 7 }, (_, seed) => sample(seed, MIB));
  const insert = (seed: number): void => {
    t.mock.timers.tick(10);
    assert.ok(writer.insert(samples[seed]!.hash, samples[seed]!.content));
  };
  for (const seed of [0, 1, 2]) insert(seed);
  t.mock.timers.tick(10);
  assert.ok(reader.locate(samples[0]!.hash));
  t.mock.timers.tick(5001);
  insert(3);
  assert.ok(writer.has(samples[0]!.hash), "used by the reader");
  assert.equal(writer.has(samples[1]!.hash), false);
  for (const seed of [4, 5, 6]) insert(seed);
  assert.equal(deletedFiles(directory), 1, "the reader still has it open");
  t.mock.timers.tick(5001);
  assert.equal(deletedFiles(directory), 0);
});

/** How many files of the directory this process has open that have no name any more. */
function deletedFiles(directory: string): number {
  const paths = readdirSync("/proc/self/fd").map((fd) => {
    try {
      return readlinkSync(join("/proc/self/fd", fd));
    } catch {
      return "";
    }
  });
  return paths.filter((path) => path.startsWith(directory) && path.endsWith(" (deleted)")).length;
}

test("a file system of many containers is served with few descriptors", (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory, { sizeLimit: 20 * MIB });
  t.after(() => cache.close());
  const before = readdirSync("/proc/self/fd").length;
  const samples = Array.from({ length: 100 }, (_, seed) => sample(seed, 4000));
  for (const { hash, content } of samples) cache.insert(hash, content);
  for (let round = 0; round < 3; round++)
    for (const { hash, content } of samples) assert.ok(cache.load(hash)?.equals(content));
  assert.ok(readdirSync("/proc/self/fd").length <= before + 8);
});

test("a container that the index does not know is found and counted", (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  const { hash, content } = sample(1, 5000);
  cache.insert(hash, content);
  const database = new Database(realpathSync(join(directory, "index.sqlite")));
  database.exec("DELETE FROM container; DELETE FROM resident");
  database.close();
  const other = DiskCache.open(directory);
  t.after(() => other.close());
  assert.equal(other.status().containers, 0);
  assert.ok(other.load(hash)?.equals(content));
  assert.equal(other.status().containers, 1);
});

test("clear removes containers and catalogs, and the cache goes on", (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  const samples = Array.from({ length: 5 }, (_, seed) => sample(seed, 100_000));
  for (const { hash, content } of samples) cache.insert(hash, content);
  mkdirSync(join(directory, "catalogs"), { recursive: true });
  const catalog = join(directory, "catalogs", `${hashOf(Buffer.from("c"))}.sqlite`);
  writeFileSync(catalog, Buffer.alloc(8192));
  writeFileSync(join(directory, "catalogs", "notes.txt"), "not ours");
  assert.deepEqual(
    { catalogs: cache.status().catalogs, catalogBytes: cache.status().catalogBytes },
    { catalogs: 1, catalogBytes: 8192 },
  );
  const onDisk = bytesOnDisk(directory);
  assert.equal(cache.clear(), onDisk + 8192);
  assert.deepEqual(containersIn(directory), []);
  assert.equal(existsSync(catalog), false);
  assert.ok(existsSync(join(directory, "catalogs", "notes.txt")));
  assert.equal(cache.status().bytes, 0);
  for (const { hash, content } of samples) {
    assert.equal(cache.locate(hash), undefined);
    assert.ok(cache.insert(hash, content));
  }
  assert.equal(cache.status().containers, 5);
});

test("temporary files of killed writers go when they are old", (t) => {
  const directory = freshDirectory(t);
  DiskCache.open(directory).close();
  const [old, young] = [join(directory, "tmp", "old"), join(directory, "tmp", "young")];
  writeFileSync(old, "x");
  writeFileSync(young, "x");
  utimesSync(old, new Date(0), new Date(0));
  DiskCache.open(directory).close();
  assert.equal(existsSync(old), false);
  assert.ok(existsSync(young));
});

test("files that are no containers are left alone", (t) => {
  const directory = freshDirectory(t);
  const before = DiskCache.open(directory);
  const { hash, content } = sample(1, 1000);
  before.insert(hash, content);
  before.close();
  const strange = [join(directory, "containers", "README"), join(directory, "containers", hash.slice(0, 2), "notes")];
  for (const path of strange) writeFileSync(path, "x");
  mkdirSync(join(directory, "containers", "zz"));
  copyFileSync(containerPath(directory, hash), join(directory, "containers", "zz", hash));
  rmSync(join(directory, "index.sqlite"));
  const cache = DiskCache.open(directory);
  t.after(() => cache.close());
  assert.equal(cache.status().containers, 1);
  for (const path of strange) assert.ok(existsSync(path));
});

test("a cache that cannot be made is an error that names the directory", (t) => {
  const file = join(freshDirectory(t), "file");
  writeFileSync(file, "");
  assert.throws(
    () => DiskCache.open(join(file, "cache")),
    (error: DatamonError) => error instanceof DatamonError && error.message.includes(join(file, "cache")),
  );
});

test("a closed cache answers that nothing is resident", async (t) => {
  const directory = freshDirectory(t);
  const cache = DiskCache.open(directory);
  const { hash, content } = sample(1, 1000);
  cache.insert(hash, content);
  const late = cache.insertAsync(sample(2, 1000).hash, sample(2, 1000).content);
  cache.close();
  cache.close();
  assert.equal(await late, false);
  assert.equal(cache.locate(hash), undefined);
  assert.equal(cache.insert(hash, content), false);
  assert.deepEqual(readdirSync(join(directory, "tmp")), []);
});
