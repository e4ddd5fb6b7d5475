/** An overlay that goes on, for the same kernel, with what a process that died left. */

import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { bytesOf } from "../../src/cas/index.ts";
import { OverlayNamespace } from "../../src/fs/overlay/overlay.ts";

const CALLER = { uid: 0, gid: 0, pid: 1 };
const NAME = bytesOf("name");

let root: string;
let scratch: string;
let overlay: OverlayNamespace;
const dead: OverlayNamespace[] = [];

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "datamon-adoption-"));
  scratch = join(root, "0");
  mkdirSync(scratch);
  overlay = OverlayNamespace.open(scratch, undefined, undefined);
});

afterEach(() => {
  for (const one of [overlay, ...dead.splice(0)]) one.close();
  rmSync(root, { recursive: true, force: true });
});

/** Opens what a process that died at this moment would have left, as the next one does. */
function adopt(): void {
  dead.push(overlay);
  const next = join(root, String(dead.length));
  cpSync(scratch, next, { recursive: true, filter: (path) => !/lock|-shm$/.test(path) });
  scratch = next;
  overlay = OverlayNamespace.open(scratch, undefined, undefined, { adopted: true });
}

function dataFile(ino: number): boolean {
  return existsSync(join(scratch, "data", String(ino)));
}

describe("an adopted overlay", () => {
  it("knows the request whose change was made last, and only where the change was made", () => {
    overlay.begin("0:2");
    overlay.mkdir(1, NAME, 0o755, CALLER);
    adopt();
    assert.equal(overlay.isDone("0:2"), true);
    overlay.begin("0:4");
    assert.throws(() => overlay.mkdir(1, NAME, 0o755, CALLER), { errno: "EEXIST" });
    adopt();
    assert.equal(overlay.isDone("0:4"), false);
    overlay.begin("0:6");
    overlay.rmdir(1, NAME);
    adopt();
    assert.deepEqual([overlay.isDone("0:2"), overlay.isDone("0:6")], [false, true]);
    overlay.close();
    overlay = OverlayNamespace.open(scratch, undefined, undefined);
    assert.equal(overlay.isDone("0:6"), false, "another mount counts its requests anew");
  });

  it("keeps files that were open until the kernel forgets them", () => {
    const { ino } = overlay.create(1, NAME, 0o644, CALLER);
    overlay.open(ino, 0);
    overlay.write(ino, 0, Buffer.from("kept"));
    adopt();
    overlay.unlink(1, NAME);
    // A handle of this process comes and goes; the other is still there.
    overlay.open(ino, 0);
    overlay.release(ino);
    assert.equal(overlay.getattr(ino).size, 4);
    adopt();
    overlay.release(ino);
    assert.equal(overlay.getattr(ino).nlink, 0);
    overlay.forget(ino);
    assert.throws(() => overlay.getattr(ino), { errno: "ENOENT" });
    assert.equal(dataFile(ino), false);
  });

  it("removes a file that it knows to be closed at once", () => {
    adopt();
    const { ino } = overlay.create(1, NAME, 0o644, CALLER);
    overlay.write(ino, 0, Buffer.from("gone"));
    overlay.unlink(1, NAME);
    assert.throws(() => overlay.getattr(ino), { errno: "ENOENT" });
  });

  it("removes what was open when the mount ends", () => {
    const { ino } = overlay.create(1, NAME, 0o644, CALLER);
    overlay.write(ino, 0, Buffer.from("kept"));
    adopt();
    overlay.unlink(1, NAME);
    assert.ok(dataFile(ino));
    overlay.close();
    assert.equal(dataFile(ino), false);
  });

  it("is not disturbed when the kernel forgets what is there", () => {
    const { ino } = overlay.create(1, NAME, 0o644, CALLER);
    adopt();
    overlay.forget(ino);
    assert.equal(overlay.lookup(1, NAME).ino, ino);
  });
});
