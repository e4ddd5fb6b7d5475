import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import fc from "fast-check";
import { DiskCache } from "../../../../src/cache/index.ts";
import { bytesOf, hashOf } from "../../../../src/cas/index.ts";
import { Dispatcher, type Miss } from "../../../../src/fs/channels/kernel/dispatch.ts";
import { Opcode } from "../../../../src/fs/channels/kernel/protocol.ts";
import { openNamespace } from "../../../../src/fs/namespace.ts";
import { CatalogWriter } from "../../../../src/meta/index.ts";
import { type Header, parseReply, put, requestOf, text, u32, u64 } from "./requests.ts";

const CONTENT = Buffer.from("content of a small file");
const REMOTE = hashOf(Buffer.from("a blob that is not here"));
const OWNER = { uid: 1000, gid: 1000, mtimeNs: 1_700_000_000_000_000_000n };
const FILE = 3;
const REMOTE_FILE = 4;

interface Reply {
  length: number;
  error: number;
  unique: bigint;
  body: Buffer;
}

class Served {
  readonly misses: Miss[] = [];
  readonly interrupts: [number, number][] = [];
  readonly failures: unknown[] = [];
  started = 0;
  readonly dispatcher: Dispatcher;

  private constructor(dispatcher: (served: Served) => Dispatcher) {
    this.dispatcher = dispatcher(this);
  }

  /** A tree with a directory `d` (2), in it `file` (3) and `remote` (4), and a link `soft` (5) beside it. */
  static async open(t: TestContext, kind: "snapshot" | "overlay"): Promise<Served> {
    const directory = mkdtempSync(join(tmpdir(), "datamon-dispatch-"));
    const catalog = join(directory, "catalog.sqlite");
    const writer = CatalogWriter.create(catalog);
    const blob = hashOf(CONTENT);
    writer.addDirectory(1, bytesOf("d"), writer.reserve(1), { ...OWNER, mode: 0o040755 });
    const content = {
      hash: blob,
      size: CONTENT.length,
      extents: [{ start: 0, blob, offset: 0, length: CONTENT.length }],
    };
    writer.addFile(2, bytesOf("file"), writer.reserve(1), { ...OWNER, mode: 0o100644 }, content);
    const away = { hash: REMOTE, size: 5000, extents: [{ start: 1000, blob: REMOTE, offset: 0, length: 100 }] };
    writer.addFile(2, bytesOf("remote"), writer.reserve(1), { ...OWNER, mode: 0o100644 }, away);
    writer.addSymlink(1, bytesOf("soft"), writer.reserve(1), { ...OWNER, mode: 0o120777 }, bytesOf("d/file"));
    await writer.finish();
    const scratch = join(directory, "scratch");
    mkdirSync(join(scratch, "data"), { recursive: true });
    const spec = kind === "snapshot" ? { kind, catalog, bundle: "b" } : { kind, catalog, scratch, bundle: "b" };
    const namespace = openNamespace(spec);
    const cache = DiskCache.open(join(directory, "cache"));
    cache.insert(blob, CONTENT);
    t.after(() => {
      namespace.close();
      cache.close();
      rmSync(directory, { recursive: true, force: true });
    });
    return new Served(
      (served) =>
        new Dispatcher(
          namespace,
          cache,
          {
            miss: (miss) => served.misses.push(miss),
            interrupt: (low, high) => served.interrupts.push([low, high]),
            reached: () => {},
            want: () => {},
            listing: () => {},
            opened: () => {},
            started: () => served.started++,
            failed: (_request, _subject, error) => served.failures.push(error),
          },
          { mode: kind === "snapshot" ? "noopen" : "plain" },
        ),
    );
  }

  /** Sends a request; undefined where there is no reply. */
  ask(header: Header, ...body: Buffer[]): Reply | undefined {
    return this.send(requestOf(header, ...body));
  }

  send(bytes: Buffer): Reply | undefined {
    const { request, reply } = this.dispatcher;
    const length = this.dispatcher.handle(put(request, bytes));
    return length === 0 ? undefined : parseReply(reply.buffer.subarray(0, length));
  }

  init(): Reply | undefined {
    return this.ask({ opcode: Opcode.INIT }, u32(7, 45, 131072, 0xffff_ffff, 0), Buffer.alloc(44));
  }
}

const failed = (reply: Reply | undefined): string | undefined =>
  Object.entries(constants.errno).find(([, number]) => number === -(reply?.error ?? 0))?.[0];

describe("a snapshot", () => {
  it("is agreed on with the kernel", async (t) => {
    const served = await Served.open(t, "snapshot");
    const newer = served.ask({ opcode: Opcode.INIT }, u32(8, 0, 0, 0));
    assert.deepEqual([newer?.error, newer?.body.readUInt32LE(0), served.started], [0, 7, 0]);
    assert.equal(failed(served.ask({ opcode: Opcode.INIT }, u32(7, 8, 0, 0))), "EPROTO");
    assert.equal(served.init()?.length, 80);
    assert.equal(served.started, 1);
  });

  it("answers lookups, also of names that are not there", async (t) => {
    const served = await Served.open(t, "snapshot");
    const found = served.ask({ opcode: Opcode.LOOKUP, ino: 2, unique: 0x1234_5678_9abcn }, text("file"));
    assert.deepEqual([found?.error, found?.length, found?.unique], [0, 144, 0x1234_5678_9abcn]);
    assert.deepEqual(found?.body.subarray(0, 32), u64(FILE, 0, 0x7fff_ffff, 0x7fff_ffff));
    const absent = served.ask({ opcode: Opcode.LOOKUP, ino: 2 }, text("absent"));
    assert.deepEqual([absent?.error, absent?.body.subarray(0, 24)], [0, u64(0, 0, 0x7fff_ffff)]);
    assert.equal(failed(served.ask({ opcode: Opcode.LOOKUP, ino: FILE }, text("x"))), "ENOTDIR");
    assert.equal(failed(served.ask({ opcode: Opcode.LOOKUP, ino: 2 }, text("n".repeat(256)))), "ENAMETOOLONG");
    assert.equal(failed(served.ask({ opcode: Opcode.GETATTR, ino: 99 }, Buffer.alloc(16))), "ENOENT");
  });

  it("refuses opens, closes and whatever it does not know, for the kernel to remember", async (t) => {
    const served = await Served.open(t, "snapshot");
    served.init();
    const { OPEN, OPENDIR, FLUSH } = Opcode;
    for (const opcode of [OPEN, OPENDIR, FLUSH, 9999]) {
      assert.equal(failed(served.ask({ opcode, ino: 2 }, Buffer.alloc(24))), "ENOSYS");
    }
    assert.equal(failed(served.ask({ opcode: Opcode.MKDIR, ino: 1 }, u32(0o755, 0), text("new"))), "EROFS");
    assert.deepEqual(served.failures, []);
  });

  it("opens where the kernel cannot do without", async (t) => {
    const served = await Served.open(t, "snapshot");
    served.ask({ opcode: Opcode.INIT }, u32(7, 31, 131072, 0));
    assert.deepEqual(
      served.ask({ opcode: Opcode.OPEN, ino: FILE }, u32(0, 0))?.body,
      Buffer.concat([u64(FILE), u32(2, 0)]),
    );
    assert.deepEqual(
      served.ask({ opcode: Opcode.OPENDIR, ino: 2 }, u32(0, 0))?.body,
      Buffer.concat([u64(0), u32(10, 0)]),
    );
  });

  it("reads what is here and passes on what is not", async (t) => {
    const served = await Served.open(t, "snapshot");
    const read = (ino: number, offset: number, size: number, unique = 2n): Reply | undefined =>
      served.ask({ opcode: Opcode.READ, ino, unique }, u64(0, offset), u32(size, 0), u64(0, 0));
    assert.deepEqual(read(FILE, 8, 2)?.body, Buffer.from("of"));
    assert.deepEqual(read(FILE, 0, 4096)?.body, CONTENT);
    assert.equal(read(FILE, 4096, 4096)?.length, 16);
    assert.deepEqual(read(REMOTE_FILE, 0, 1000)?.body, Buffer.alloc(1000));
    assert.equal(read(REMOTE_FILE, 900, 300, 0x2_0000_0006n), undefined);
    const [miss] = served.misses;
    assert.deepEqual([miss?.uniqueLow, miss?.uniqueHigh, miss?.length], [6, 2, 300]);
    assert.deepEqual(miss?.plan, [
      { kind: "zeros", length: 100 },
      { kind: "blob", blob: REMOTE, offset: 0, length: 100 },
      { kind: "zeros", length: 100 },
    ]);
    assert.equal(failed(read(2, 0, 10)), "EISDIR");
    served.ask({ opcode: Opcode.INTERRUPT, unique: 9n }, u64(0x2_0000_0006n));
    assert.deepEqual(served.interrupts, [[6, 2]]);
  });

  it("lists in steps of any size", async (t) => {
    const served = await Served.open(t, "snapshot");
    for (const opcode of [Opcode.READDIR, Opcode.READDIRPLUS]) {
      const plus = opcode === Opcode.READDIRPLUS;
      for (const size of [200, 400, 4096]) {
        const seen: unknown[] = [];
        for (let position = 0n; ; ) {
          const body = served.ask({ opcode, ino: 2 }, u64(0, position), u32(size, 0), u64(0, 0))?.body;
          assert.ok(body !== undefined && body.length <= size);
          if (body.length === 0) break;
          for (let at = 0; at < body.length; ) {
            const entry = plus ? body.subarray(at + 128) : body.subarray(at);
            const nameLength = entry.readUInt32LE(16);
            const name = entry.toString("latin1", 24, 24 + nameLength);
            const nodeid = plus ? body.readBigUInt64LE(at) : undefined;
            seen.push([name, Number(entry.readBigUInt64LE(0)), entry.readUInt32LE(20), nodeid]);
            position = entry.readBigUInt64LE(8);
            at += Math.ceil(((plus ? 128 : 0) + 24 + nameLength) / 8) * 8;
          }
        }
        const node = (ino: bigint): bigint | undefined => (plus ? ino : undefined);
        assert.deepEqual(seen, [
          [".", 2, 4, node(0n)],
          ["..", 1, 4, node(0n)],
          ["file", FILE, 8, node(3n)],
          ["remote", REMOTE_FILE, 8, node(4n)],
        ]);
      }
    }
  });

  it("sizes extended attributes before it sends them", async (t) => {
    const served = await Served.open(t, "snapshot");
    const get = (size: number, name: string): Reply | undefined =>
      served.ask({ opcode: Opcode.GETXATTR, ino: FILE }, u32(size, 0), text(name));
    assert.deepEqual(get(0, "user.datamon.bundle")?.body, u32(1, 0));
    assert.deepEqual(get(10, "user.datamon.bundle")?.body, Buffer.from("b"));
    assert.equal(failed(get(63, "user.datamon.hash")), "ERANGE");
    assert.equal(failed(get(0, "user.none")), "ENODATA");
    const list = served.ask({ opcode: Opcode.LISTXATTR, ino: FILE }, u32(100, 0));
    assert.deepEqual(list?.body.toString().split("\0").sort(), ["", "user.datamon.bundle", "user.datamon.hash"]);
    assert.equal(served.ask({ opcode: Opcode.READLINK, ino: 5 })?.body.toString(), "d/file");
  });
});

describe("an overlay", () => {
  it("takes changes", async (t) => {
    const served = await Served.open(t, "overlay");
    const created = served.ask({ opcode: Opcode.CREATE, ino: 2 }, u32(2, 0o100640, 0o22, 0), text("new"));
    assert.equal(created?.length, 16 + 128 + 16);
    const ino = Number(created?.body.readBigUInt64LE(0));
    const write = (offset: number | bigint, data: Buffer): Reply | undefined =>
      served.ask({ opcode: Opcode.WRITE, ino }, u64(0, offset), u32(data.length, 0), u64(0), u32(0, 0), data);
    assert.deepEqual(write(5, Buffer.from("hello"))?.body, u32(5, 0));
    assert.equal(failed(write(2n ** 53n - 3n, Buffer.from("hello"))), "EFBIG");
    assert.equal(failed(write(2n ** 62n, Buffer.from("hello"))), "EFBIG");
    const read = served.ask({ opcode: Opcode.READ, ino }, u64(0, 0), u32(100, 0), u64(0, 0));
    assert.equal(read?.body.toString(), "\0\0\0\0\0hello");
    const times = [u64(-5n, 1_000_000_000n, 0), u32(7, 8, 0)];
    const valid = 1 | 8 | 16 | 32;
    const head = [u32(valid, 0), u64(0, 3, 0)];
    const attributes = served.ask({ opcode: Opcode.SETATTR, ino }, ...head, ...times, u32(0o600, 0, 0, 0, 0));
    assert.deepEqual(attributes?.body.subarray(24, 32), u64(3));
    assert.deepEqual(attributes?.body.subarray(40, 56), u64(-5n, 1_000_000_000n));
    assert.deepEqual(attributes?.body.subarray(64, 72), u32(7, 8));
    assert.equal(attributes?.body.readUInt32LE(76), 0o100600);
    assert.equal(served.ask({ opcode: Opcode.RENAME2, ino: 2 }, u64(1), u32(1, 0), text("new", "moved"))?.error, 0);
    assert.equal(failed(served.ask({ opcode: Opcode.RENAME, ino: 1 }, u64(2), text("absent", "x"))), "ENOENT");
    const linked = served.ask({ opcode: Opcode.LINK, ino: 2 }, u64(ino), text("again"));
    assert.equal(linked?.body.readUInt32LE(40 + 64), 2);
    assert.equal(served.ask({ opcode: Opcode.UNLINK, ino: 1 }, text("moved"))?.error, 0);
    assert.equal(served.ask({ opcode: Opcode.RELEASE, ino }, Buffer.alloc(24))?.error, 0);
    assert.deepEqual(served.failures, []);
  });

  it("takes setuid and setgid bits away where the kernel leaves that to it", async (t) => {
    const served = await Served.open(t, "overlay");
    const set = (valid: number, mode: number): number | undefined =>
      served
        .ask(
          { opcode: Opcode.SETATTR, ino: FILE },
          u32(valid, 0),
          u64(0, 0, 0, 0, 0, 0),
          u32(0, 0, 0, mode, 0, 0, 0, 0),
        )
        ?.body.readUInt32LE(76);
    assert.equal(set(1, 0o6755), 0o106755);
    assert.equal(set(8 | 2048, 0), 0o100755);
  });
});

describe("malformed requests", () => {
  const opcodes = fc.oneof(fc.constantFrom(...Object.values(Opcode)), fc.integer({ min: 0, max: 0xffff_ffff }));
  const inos = fc.oneof(fc.bigInt({ min: 0n, max: 6n }), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }));
  const words = fc.array(fc.oneof(fc.integer({ min: 0, max: 300 }), fc.integer({ min: 0, max: 0xffff_ffff })), {
    maxLength: 24,
  });
  const tails = fc.oneof(fc.constant("file\0"), fc.constant("d\0x\0"), fc.string({ maxLength: 20, unit: "binary" }));
  const requests = fc.record({ opcode: opcodes, ino: inos, words, tail: tails, cut: fc.nat(200), lie: fc.nat(20) });

  for (const [kind, numRuns] of [
    ["snapshot", 10_000],
    ["overlay", 1_000],
  ] as const) {
    it(`are answered by a tree that is ${kind}, with an error at worst`, async (t) => {
      const served = await Served.open(t, kind);
      served.init();
      let unique = 2n;
      fc.assert(
        fc.property(requests, ({ opcode, ino, words, tail, cut, lie }) => {
          unique += 2n;
          const whole = requestOf({ opcode, ino, unique }, u32(...words), Buffer.from(tail, "latin1"));
          if (lie === 0) whole.writeUInt32LE(cut, 0);
          const sent = lie === 1 ? whole.subarray(0, cut) : whole;
          const before = served.misses.length;
          const reply = served.send(sent);
          const { FORGET, BATCH_FORGET, INTERRUPT } = Opcode;
          const silent = sent.length < 40 || [FORGET, BATCH_FORGET, INTERRUPT].includes(opcode as 2);
          if (reply === undefined) assert.ok(silent || served.misses.length > before);
          else {
            assert.ok(!silent);
            assert.equal(reply.unique, unique);
            assert.equal(reply.length, 16 + reply.body.length);
            assert.ok(reply.error <= 0 && reply.error > -4096);
          }
        }),
        { numRuns },
      );
      assert.deepEqual(served.failures, []);
    });
  }
});
