import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { bytesOf } from "../../../../src/cas/index.ts";
import { negotiate, offers } from "../../../../src/fs/channels/kernel/negotiate.ts";
import { InitFlag, Opcode } from "../../../../src/fs/channels/kernel/protocol.ts";
import { direntSize, Reply } from "../../../../src/fs/channels/kernel/reply.ts";
import { Request } from "../../../../src/fs/channels/kernel/request.ts";
import { FsError } from "../../../../src/fs/errno.ts";
import type { Attr } from "../../../../src/fs/namespace.ts";
import { put, requestOf, text, u32, u64 } from "./requests.ts";

const attr: Attr = {
  ino: 2 ** 40 + 3,
  mode: 0o100644,
  uid: 1000,
  gid: 1001,
  size: 2 ** 33 + 7,
  nlink: 2,
  mtimeNs: 1_700_000_000_123_456_789n,
  atimeNs: 5_000_000_007n,
  ctimeNs: -1n,
  blocks: 2 ** 24 + 1,
  rdev: 0x0103,
};

/** `fuse_attr` of the attributes above, field by field. */
const attrBytes = Buffer.concat([
  u64(attr.ino, attr.size, attr.blocks, 5, 1_700_000_000, -1n),
  u32(7, 123_456_789, 999_999_999, attr.mode, 2, 1000, 1001, 0x0103, 4096, 0),
]);

function errno(name: string): (error: unknown) => boolean {
  return (error) => error instanceof FsError && error.errno === name;
}

describe("requests", () => {
  const request = new Request();

  it("are read into memory that is there, so that a kill meanwhile loses none", () => {
    const before = process.memoryUsage.rss();
    const requests = Array.from({ length: 64 }, () => new Request());
    const bytes = requests.reduce((sum, { buffer }) => sum + buffer.length, 0);
    assert.ok(process.memoryUsage.rss() - before > bytes * 0.8);
  });

  it("reads the header", () => {
    const bytes = requestOf({ opcode: 15, unique: 0x8000_0001_0000_0002n, ino: 2 ** 53 - 1, uid: 7, gid: 8, pid: 9 });
    assert.equal(request.load(put(request, bytes)), true);
    request.checkLength();
    assert.equal(request.opcode, Opcode.READ);
    assert.deepEqual([request.uniqueLow, request.uniqueHigh], [2, 0x8000_0001]);
    assert.equal(request.ino, Number.MAX_SAFE_INTEGER);
    assert.deepEqual(request.caller, { uid: 7, gid: 8, pid: 9 });
    assert.equal(request.bodyLength, 0);
  });

  it("refuses what has no header, and a header with another length", () => {
    assert.equal(request.load(39), false);
    assert.equal(request.load(put(request, requestOf({ opcode: 1, length: 99 }))), true);
    assert.throws(() => request.checkLength(), errno("EINVAL"));
  });

  it("reads numbers and refuses those past 2^53", () => {
    request.load(
      put(request, requestOf({ opcode: 15 }, u32(0xffff_ffff, 1), u64(2n ** 53n - 1n, 2n ** 53n, 2n ** 64n - 1n))),
    );
    assert.equal(request.u32(0), 0xffff_ffff);
    assert.equal(request.u64(8), Number.MAX_SAFE_INTEGER);
    assert.throws(() => request.u64(16), errno("EFBIG"));
    assert.throws(() => request.u64(24), errno("EFBIG"));
    assert.throws(() => request.u64(28), errno("EINVAL"));
    assert.throws(() => request.u32(32), errno("EINVAL"));
    request.load(put(request, requestOf({ opcode: 15, ino: 2n ** 60n })));
    assert.throws(() => request.ino, errno("EFBIG"));
  });

  it("reads strings of any bytes, and only those that end", () => {
    request.load(put(request, requestOf({ opcode: 12 }, u64(5), text("a\xff\n", "neu"))));
    assert.equal(request.string(8), "a\xff\n");
    assert.equal(request.string(12), "neu");
    request.load(put(request, requestOf({ opcode: 1 }, Buffer.from("abc"))));
    assert.throws(() => request.string(0), errno("EINVAL"));
    assert.throws(() => request.string(3), errno("EINVAL"));
  });

  it("reads times of 64 bits", () => {
    const times = [u64(-2n, 1_700_000_000n, 2n ** 62n), u32(999_999_999, 5, 0, 0)];
    request.load(put(request, requestOf({ opcode: 4 }, ...times)));
    assert.equal(request.timeNs(0, 24), -1_000_000_001n);
    assert.equal(request.timeNs(8, 28), 1_700_000_000_000_000_005n);
    assert.throws(() => request.timeNs(16, 32), errno("EOVERFLOW"));
  });
});

describe("replies", () => {
  const reply = new Reply();
  const written = (end: number): Buffer => Buffer.from(reply.buffer.subarray(0, end));

  it("writes headers with the number of the request", () => {
    const request = new Request();
    request.load(put(request, requestOf({ opcode: 1, unique: 0x8000_0000_0000_0006n })));
    reply.header(request, 16, 2);
    assert.deepEqual(written(16), Buffer.concat([u32(16, 0xffff_fffe), u64(0x8000_0000_0000_0006n)]));
  });

  it("writes entries and attributes", () => {
    const forever = 0x7fff_ffff;
    assert.deepEqual(written(reply.entry(0, attr)), Buffer.concat([u64(attr.ino, 0, forever, forever, 0), attrBytes]));
    assert.deepEqual(written(reply.attributes(0, attr)), Buffer.concat([u64(forever, 0), attrBytes]));
    assert.deepEqual(written(reply.noEntry(0)), Buffer.concat([u64(0, 0, forever), Buffer.alloc(104)]));
  });

  it("writes opens, sizes and totals", () => {
    assert.deepEqual(written(reply.open(0, 2 ** 45, 2)), Buffer.concat([u64(2 ** 45), u32(2, 0)]));
    assert.deepEqual(written(reply.size(0, 77)), u32(77, 0));
    const stats = { blocks: 2 ** 34, bfree: 5, bavail: 4, files: 9, ffree: 3, bsize: 4096, namemax: 255 };
    assert.deepEqual(
      written(reply.statfs(0, stats)),
      Buffer.concat([u64(2 ** 34, 5, 4, 9, 3), u32(4096, 255, 4096, 0), Buffer.alloc(24)]),
    );
  });

  it("writes directory entries in units of eight bytes", () => {
    reply.buffer.fill(0xee);
    const name = bytesOf("häher");
    assert.equal(reply.dirent(0, 7, 3, name, 8), direntSize(name.length, false));
    assert.deepEqual(written(32), Buffer.concat([u64(7, 3), u32(6, 8), Buffer.from("häher\0\0")]));
    for (let length = 1; length <= 255; length++) {
      assert.equal(direntSize(length, false), Math.ceil((24 + length) / 8) * 8);
      assert.equal(direntSize(length, true), Math.ceil((152 + length) / 8) * 8);
    }
  });

  it("splits every time exactly", () => {
    const anyTime = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
    fc.assert(
      fc.property(anyTime, anyTime, anyTime, (mtimeNs, atimeNs, ctimeNs) => {
        reply.attr(0, { ...attr, mtimeNs, atimeNs, ctimeNs });
        const times = [atimeNs, mtimeNs, ctimeNs].map((_, index) => {
          const nanoseconds = reply.buffer.readUInt32LE(48 + 4 * index);
          assert.ok(nanoseconds < 1_000_000_000);
          return reply.buffer.readBigInt64LE(24 + 8 * index) * 1_000_000_000n + BigInt(nanoseconds);
        });
        assert.deepEqual(times, [atimeNs, mtimeNs, ctimeNs]);
      }),
    );
  });
});

const MODEST = { stackDepth: 0, truncatingOpens: false };

describe("negotiation", () => {
  const bit = (...flags: number[]): number => flags.reduce((sum, flag) => sum + 2 ** flag, 0);

  it("takes of what is offered what it wants, and nothing else", () => {
    const all = negotiate(
      { major: 7, minor: 45, maxReadahead: 131072, flags: 0xffff_ffff, flags2: 0xffff_ffff },
      MODEST,
    );
    const wanted = bit(0, 5, 13, 15, 18, 22, 23, 25, 28);
    assert.deepEqual(all, {
      major: 7,
      minor: 40,
      maxReadahead: 1048576,
      flags: wanted,
      flags2: 0,
      maxBackground: 64,
      maxWrite: 1048576,
      maxPages: 256,
      maxStackDepth: 0,
    });
    const some = negotiate({ major: 7, minor: 31, maxReadahead: 4096, flags: bit(0, 1, 13), flags2: 0 }, MODEST);
    assert.deepEqual([some.minor, some.flags, some.maxWrite, some.maxPages], [31, bit(0, 13), 131072, 0]);
  });

  it("hands files over and learns of truncation where that is wanted and offered", () => {
    const offered = { major: 7, minor: 45, maxReadahead: 0, flags: bit(3, 30), flags2: bit(5) };
    const wishes = { stackDepth: 2, truncatingOpens: true };
    const all = negotiate(offered, wishes);
    assert.deepEqual([all.flags, all.flags2, all.maxStackDepth], [bit(3, 30), bit(5), 2]);
    const none = negotiate({ ...offered, flags2: 0 }, wishes);
    assert.deepEqual([none.flags, none.flags2, none.maxStackDepth], [bit(3), 0, 0]);
    const modest = negotiate(offered, MODEST);
    assert.deepEqual([modest.flags, modest.flags2, modest.maxStackDepth], [0, 0, 0]);
  });

  it("believes the second word of flags only where it is announced", () => {
    const init = { major: 7, minor: 45, maxReadahead: 0, flags: 0, flags2: bit(5) };
    assert.equal(offers(init, 37), false);
    assert.equal(offers({ ...init, flags: bit(InitFlag.INIT_EXT) }, 37), true);
    assert.equal(offers({ ...init, flags: 0x8000_0000 }, 31), true);
  });

  it("writes the reply to INIT", () => {
    const reply = new Reply();
    reply.buffer.fill(0xee);
    const init = negotiate({ major: 7, minor: 45, maxReadahead: 131072, flags: 0xffff_ffff, flags2: 0 }, MODEST);
    const expected = [u32(7, 40, 1048576, init.flags), u32(64 + 48 * 65536, 1048576, 1, 256, 0), Buffer.alloc(28)];
    assert.deepEqual(Buffer.from(reply.buffer.subarray(0, reply.init(0, init))), Buffer.concat(expected));
  });
});
