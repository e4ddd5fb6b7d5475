import assert from "node:assert/strict";
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { makePipe, requestWaits } from "../../../../src/fs/channels/kernel/libc.ts";
import { Lift } from "../../../../src/fs/channels/kernel/lift.ts";
import { OUT_HEADER } from "../../../../src/fs/channels/kernel/protocol.ts";

const supported = process.platform === "linux" ? {} : { skip: "splice is Linux's" };

const CONTENT = Buffer.from(Array.from({ length: 300_000 }, (_, at) => at % 251));
const HEADER = Buffer.alloc(4096, "header of a reply");

/** A file with `CONTENT`, and a pipe in the place of the device. */
function setUp(t: TestContext) {
  const directory = mkdtempSync(join(tmpdir(), "datamon-lift-"));
  const path = join(directory, "container");
  writeFileSync(path, CONTENT);
  const fd = openSync(path, "r+");
  const device = makePipe([1024 * 1024])!;
  const lift = new Lift(device.to);
  t.after(() => {
    lift.close();
    for (const open of [fd, device.from, device.to]) closeSync(open);
    rmSync(directory, { recursive: true });
  });
  const sent = Buffer.alloc(1024 * 1024);
  const receive = () => sent.subarray(0, readSync(device.from, sent));
  return { fd, lift, device, receive };
}

describe("a reply whose content lies in a file", supported, () => {
  it("is its header and the run of the file", (t) => {
    const { fd, lift, receive } = setUp(t);
    assert.ok(lift.capacity >= CONTENT.length);
    for (const [offset, length] of [
      [0, CONTENT.length],
      [4097, 131_072],
      [CONTENT.length - 1, 1],
    ] as const) {
      assert.equal(lift.send(HEADER, { fd, offset, length }), true);
      const received = receive();
      assert.deepEqual(received.subarray(0, OUT_HEADER), HEADER.subarray(0, OUT_HEADER));
      assert.ok(received.subarray(OUT_HEADER).equals(CONTENT.subarray(offset, offset + length)));
    }
  });

  it("is not sent where the file is shorter, and leaves nothing to the next", (t) => {
    const { fd, lift, device, receive } = setUp(t);
    ftruncateSync(fd, 100_000);
    assert.equal(lift.send(HEADER, { fd, offset: 50_000, length: 100_000 }), false);
    assert.equal(requestWaits(device.from), false);
    assert.equal(lift.send(HEADER, { fd, offset: 0, length: 70_000 }), true);
    assert.ok(receive().subarray(OUT_HEADER).equals(CONTENT.subarray(0, 70_000)));
  });

  it("throws what the device says, and leaves nothing to the next", (t) => {
    const { fd, device, receive } = setUp(t);
    const closed = new Lift(openSync("/dev/full", "r"));
    assert.throws(() => closed.send(HEADER, { fd, offset: 0, length: 70_000 }), { code: "EBADF" });
    closed.close();
    const lift = new Lift(device.to);
    assert.equal(lift.send(HEADER, { fd, offset: 0, length: 70_000 }), true);
    assert.equal(receive().length, OUT_HEADER + 70_000);
    lift.close();
  });
});
