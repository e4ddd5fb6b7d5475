/** A store, a cache and a scratch on disks that are full. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { pattern } from "../fs/transfer/support.ts";
import { assertFailed, assertSame, committedId, Home, smallTree, write } from "./support.ts";

const MEBI = 1024 * 1024;
const skip = mayMount() ? false : "small disks cannot be mounted here";

let home: Home;
let tree: string;

/** Whether this user may mount a tmpfs. */
function mayMount(): boolean {
  const probe = new Home();
  const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", probe.root]).status === 0;
  if (mounted) spawnSync("umount", [probe.root]);
  rmSync(probe.root, { recursive: true });
  return mounted;
}

/** Mounts a file system of `size` MiB on a directory, which is made. */
function disk(directory: string, size: number): void {
  mkdirSync(directory, { recursive: true });
  must("mount", "-t", "tmpfs", "-o", `size=${size}m,mode=0700`, "tmpfs", directory);
}

function resize(directory: string, size: number): void {
  must("mount", "-o", `remount,size=${size}m`, directory);
}

function must(program: string, ...args: string[]): void {
  const ended = spawnSync(program, args);
  assert.equal(ended.status, 0, String(ended.stderr));
}

/** Fills what is free on a disk and returns the file that does. */
function fill(directory: string): string {
  const file = join(directory, "filling");
  const fd = openSync(file, "w");
  for (let size = MEBI; size >= 512; ) {
    try {
      writeSync(fd, Buffer.alloc(size));
    } catch {
      size /= 2;
    }
  }
  closeSync(fd);
  return file;
}

beforeEach(async () => {
  home = new Home();
  tree = smallTree(home.path("tree"));
  for (let at = 1; at <= 4; at++) write(join(tree, `large-${at}`), pattern(4_000_000, at));
});
afterEach(() => home.end());

describe("a full store", { skip }, () => {
  it("ends the upload with a clear error, and the same upload goes on where there is space again", async () => {
    disk(home.own("store"), 8);
    await home.repo();
    const upload = ["bundle", "upload", "--repo", "birds", "--path", tree, "--message", "m", "--label", "v1"];
    const failed = await home.run(...upload);
    assertFailed(failed, 1, "bundle upload");
    assert.equal(failed.stdout, "");
    assert.match(failed.stderr, /cannot store object blobs\/.*: the disk is full\n {2}Free some space/);
    assert.deepEqual(await home.json("bundle", "list", "--repo", "birds"), []);
    assert.deepEqual(readdirSync(home.own("store", "blob", ".tmp")), [], "no half of an object is left");

    resize(home.own("store"), 64);
    const before = home.blobs();
    assert.ok(before.size > 0);
    await home.ok(...upload);
    for (const [name, identity] of before) assert.equal(home.blobs().get(name), identity);
    await assertSame(await home.download("--label", "v1"), tree);
  });

  it("fails what writes a record, naming it", async () => {
    disk(home.own("store"), 1);
    await home.repo();
    const filling = fill(home.own("store"));
    const failed = await home.fails(1, "repo", "create", "--repo", "trees", "--description", "x");
    assert.match(failed, /cannot store object repos\/trees\/repo\.yaml in .*: the disk is full/);
    rmSync(filling);
    assert.equal((await home.json("repo", "list")).length, 1);
    await home.ok("repo", "create", "--repo", "trees", "--description", "x");
  });

  it("keeps what a mount changed until it can be committed", async () => {
    disk(home.own("store"), 64);
    await home.repo();
    await home.upload(tree);
    const mnt = home.path("mnt");
    await home.ok("mount", "--rw", "--message", "more", "birds", mnt);
    write(join(mnt, "more"), pattern(3_000_000, 9));
    const filling = fill(home.own("store"));
    const failed = await home.run("unmount", mnt);
    assertFailed(failed, 1, "unmount");
    assert.match(failed.stderr, /could not be committed: .*blobs\/.*the disk is full/);
    const scratch = /datamon scratch commit ([0-9a-f]+)/.exec(failed.stderr)?.[1] as string;
    assertFailed(await home.run("scratch", "commit", scratch), 1, "scratch commit");
    rmSync(filling);
    const id = committedId(await home.ok("scratch", "commit", scratch));
    write(join(tree, "more"), pattern(3_000_000, 9));
    must("diff", "-r", tree, await home.download("--bundle", id));
  });
});

describe("a full cache", { skip }, () => {
  it("lets a mount read everything right all the same", async () => {
    await home.repo();
    await home.upload(tree);
    rmSync(home.own("cache"), { recursive: true });
    const cache = home.path("cache");
    disk(cache, 3);
    const mnt = home.path("mnt");
    await home.ok("mount", "--cache-dir", cache, "birds", mnt);
    await assertSame(mnt, tree);
    fill(cache);
    await assertSame(mnt, tree);
    const log = readFileSync(home.own("mounts", readdirSync(home.own("mounts"))[0] as string, "log"), "utf8");
    assert.doesNotMatch(log, /EIO/);
    await home.ok("unmount", mnt);

    assert.match(await home.ok("cache", "status", "--cache-dir", cache), /^directory: /);
    await home.ok("mount", "--cache-dir", cache, "birds", mnt);
    await assertSame(mnt, tree);
    await home.ok("unmount", mnt);
  });

  it("that cannot even take the catalog is named", async () => {
    await home.repo();
    await home.upload(tree);
    rmSync(home.own("cache"), { recursive: true });
    const cache = home.path("cache");
    disk(cache, 1);
    const filling = fill(cache);
    for (const args of [
      ["mount", "--cache-dir", cache, "birds", home.path("mnt")],
      ["bundle", "mount", "--repo", "birds", "--destination", cache, "--mount", home.path("mnt")],
    ]) {
      const said = await home.fails(1, ...args);
      assert.match(said, /catalog [0-9a-f]{64}.*: the disk is full/);
      assert.ok(said.includes(cache));
    }
    assert.deepEqual(await home.json("mount", "list"), []);
    rmSync(filling);
    await home.ok("mount", "--cache-dir", cache, "birds", home.path("mnt"));
    await assertSame(home.path("mnt"), tree);
  });
});

describe("a full scratch", { skip }, () => {
  for (const channel of ["kernel", "fuse-native"]) {
    it(`gives ENOSPC through ${channel}, and what was written before is committed`, async () => {
      await home.repo();
      await home.upload(tree);
      disk(home.own("scratch"), 8);
      const mnt = home.path("mnt");
      await home.ok("mount", "--rw", "--message", "as far as it fits", "--channel", channel, "birds", mnt);
      const written = pattern(1_000_000, 5);
      const fd = openSync(join(mnt, "before"), "w");
      writeSync(fd, written);
      fsyncSync(fd);
      closeSync(fd);
      assert.throws(() => writeFileSync(join(mnt, "too-large"), pattern(12_000_000, 6), { flush: true }), {
        code: "ENOSPC",
      });
      assert.ok(readFileSync(join(mnt, "before")).equals(written));
      assert.ok(readFileSync(join(mnt, "large-1")).equals(readFileSync(join(tree, "large-1"))));
      assert.throws(() => writeFileSync(join(mnt, "large-2"), pattern(12_000_000, 7), { flush: true }), {
        code: "ENOSPC",
      });
      rmSync(join(mnt, "too-large"));
      rmSync(join(mnt, "large-2"));
      writeFileSync(join(mnt, "after"), "there is room again");

      const id = await home.commit(mnt);
      const folder = await home.download("--bundle", id);
      write(join(tree, "before"), written);
      write(join(tree, "after"), "there is room again");
      rmSync(join(tree, "large-2"));
      must("diff", "-r", tree, folder);
    });
  }

  it("that stays full when the mount ends keeps everything for a later commit", async () => {
    await home.repo();
    await home.upload(tree);
    disk(home.own("scratch"), 8);
    const mnt = home.path("mnt");
    await home.ok("mount", "--rw", "--message", "full", "birds", mnt);
    write(join(mnt, "before"), "kept");
    const filling = fill(home.own("scratch"));
    assert.throws(() => writeFileSync(join(mnt, "more"), pattern(1_000_000), { flush: true }), { code: "ENOSPC" });
    assert.equal(readFileSync(join(mnt, "before"), "utf8"), "kept");
    const ended = await home.run("unmount", mnt);
    let id: string;
    if (ended.code === 0) {
      id = committedId(ended.stdout);
    } else {
      assertFailed(ended, 1, "unmount");
      assert.match(ended.stderr, /the disk is full/);
      const scratch = /datamon scratch commit ([0-9a-f]+)/.exec(ended.stderr)?.[1] as string;
      assert.ok(existsSync(home.own("scratch", scratch)));
      rmSync(filling);
      id = committedId(await home.ok("scratch", "commit", scratch));
    }
    assert.equal(readFileSync(join(await home.download("--bundle", id), "before"), "utf8"), "kept");
  });
});
