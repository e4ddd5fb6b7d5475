import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { pathToFileURL } from "node:url";
import { BlobStore, blobKey, DamagedObjectError, hashOf, openStore } from "../../src/cas/index.ts";

describe("blob store", () => {
  let root: string;
  let blobs: BlobStore;
  before(async () => {
    root = await mkdtemp(join(tmpdir(), "datamon-blobs-"));
    blobs = new BlobStore(await openStore(pathToFileURL(root).href));
  });
  after(() => rm(root, { recursive: true }));

  async function stored(content: Buffer): Promise<{ hash: string; key: string; file: string }> {
    const hash = hashOf(content);
    await blobs.put(hash, content);
    return { hash, key: blobKey(hash), file: join(root, blobKey(hash)) };
  }

  it("keeps blobs under their hashes", async () => {
    for (const content of [
      Buffer.alloc(0),
      Buffer.from("content"),
      randomBytes(300_000),
      Buffer.alloc(500_000, "ab"),
    ]) {
      const hash = hashOf(content);
      assert.equal(await blobs.has(hash), false);
      const bytes = await blobs.put(hash, content);
      assert.equal(bytes, (await readFile(join(root, "blobs", hash.slice(0, 2), hash))).length);
      assert.equal(await blobs.has(hash), true);
      assert.ok((await blobs.get(hash)).equals(content));
      assert.equal(await blobs.put(hash, content), 0);
    }
  });

  it("counts a blob once that many put at the same time", async () => {
    const content = randomBytes(10_000);
    const hash = hashOf(content);
    const counts = await Promise.all(Array.from({ length: 10 }, () => blobs.put(hash, content)));
    assert.deepEqual(
      counts.filter((count) => count > 0),
      [content.length + 8],
    );
  });

  it("gives back memory in which no content came", async () => {
    const content = randomBytes(100_000);
    const { hash, key, file } = await stored(content);
    // A gateway that answers with a long page while it has no store to ask: at first.
    let isAway = true;
    const server = createServer((request, response) => {
      assert.ok(decodeURIComponent(request.url!).includes(key));
      const page = Buffer.alloc(50_000, "The store is away. ");
      if (isAway) response.writeHead(503, { "content-length": page.length }).end(page);
      else createReadStream(file).pipe(response.writeHead(200, { "content-length": content.length + 8 }));
      isAway = false;
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const before = process.env.STORAGE_EMULATOR_HOST;
    process.env.STORAGE_EMULATOR_HOST = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    try {
      const remote = new BlobStore(await openStore("gs://bucket"));
      const taken: Buffer[] = [];
      const memory = {
        take: (length: number) => {
          const buffer = Buffer.alloc(length);
          taken.push(buffer);
          return buffer;
        },
        give: (part: Buffer) => void taken.splice(taken.findIndex(({ buffer }) => buffer === part.buffer) >>> 0, 1),
      };
      const got = await remote.get(hash, memory);
      assert.ok(got.equals(content));
      assert.equal(isAway, false);
      assert.deepEqual(
        taken.map(({ buffer }) => buffer),
        [got.buffer],
      );
    } finally {
      if (before === undefined) delete process.env.STORAGE_EMULATOR_HOST;
      else process.env.STORAGE_EMULATOR_HOST = before;
      server.close();
      server.closeAllConnections();
    }
  });

  it("says that a blob is not there", async () => {
    const hash = hashOf(Buffer.from("nowhere"));
    await assert.rejects(blobs.get(hash), { code: "not-found", key: blobKey(hash) });
  });

  it("serves nothing of a damaged blob, and names it", async () => {
    const content = Buffer.from("some content of a blob, some content of a blob, some content of a blob");
    const { hash, key, file } = await stored(content);
    const good = await readFile(file);
    const swapped = Buffer.from(good);
    swapped[good.length - 6] = (swapped[good.length - 6] ?? 0) ^ 1;
    const other = await readFile((await stored(Buffer.from("another blob"))).file);
    const huge = Buffer.concat([good, Buffer.alloc(20_000_000)]);
    for (const bytes of [swapped, other, huge, Buffer.alloc(0), good.subarray(0, 20), Buffer.from("hello, world")]) {
      await writeFile(file, bytes);
      await assert.rejects(
        blobs.get(hash),
        (error) => error instanceof DamagedObjectError && error.key === key && error.message.includes(key),
      );
    }
    await writeFile(file, good);
    assert.ok((await blobs.get(hash)).equals(content));
  });
});
