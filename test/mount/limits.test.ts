/** Writable mounts that run out of room: the limit of a scratch, and a full disk. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { detach } from "../../src/fs/mount-table.ts";
import { Fixture, type Mounted } from "./fixture.ts";
import { noise } from "./reading.ts";
import { MountHome } from "./supervised-mount.ts";

const ENTRY = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const MIB = 1024 * 1024;

/** Writes until the mount takes no more; returns how many bytes it took. */
function fill(path: string): number {
  const fd = openSync(path, "w");
  let size = 0;
  try {
    assert.throws(
      () => {
        for (;;) size += writeSync(fd, noise(1, 100_000), 0, 100_000, size);
      },
      { code: "ENOSPC" },
    );
  } finally {
    closeSync(fd);
  }
  return size;
}

/** Fills `mounted`, whose changes may take `size` bytes or somewhat less, and makes room again. */
function fillAndFree(mounted: Mounted, size: number): void {
  writeFileSync(mounted.path("kept"), "before");
  const taken = fill(mounted.path("big"));
  assert.ok(taken > size / 2 && taken <= size, `${taken} bytes were taken`);
  assert.equal(statSync(mounted.path("big")).size, taken);
  assert.equal(Buffer.compare(readFileSync(mounted.path("big")).subarray(0, 100_000), noise(1, 100_000)), 0);
  assert.equal(readFileSync(mounted.path("kept"), "utf8"), "before");
  unlinkSync(mounted.path("big"));
  writeFileSync(mounted.path("after"), noise(2, MIB));
  assert.equal(Buffer.compare(readFileSync(mounted.path("after")), noise(2, MIB)), 0);
  assert.deepEqual(readdirSync(mounted.directory).sort(), ["after", "kept"]);
}

for (const kind of ["kernel", "fuse-native"] as const) {
  describe(`a writable mount without room, through the channel ${kind}`, () => {
    it("ends at its limit, says how much is left, and goes on when there is room", async (t) => {
      const fixture = new Fixture(t);
      const mounted = await fixture.mount(kind, { ...fixture.overlay(), limit: 6 * MIB });
      const { blocks, bsize, bavail } = statfsSync(mounted.directory);
      assert.equal(blocks * bsize, 6 * MIB);
      assert.ok(bavail * bsize > 5 * MIB && bavail <= blocks);
      fillAndFree(mounted, 6 * MIB);
      const fd = openSync(mounted.path("after"), "r+");
      fill(mounted.path("big"));
      assert.ok(statfsSync(mounted.directory).bavail * bsize < 100_000);
      assert.throws(() => writeFileSync(mounted.path("more"), noise(3, 200_000)), { code: "ENOSPC" });
      assert.equal(writeSync(fd, noise(4, MIB), 0, MIB, 0), MIB, "what is there can be written over");
      closeSync(fd);
    });

    const mayMount = process.getuid?.() === 0;
    it("tells who writes of a full disk, and goes on when there is room", {
      skip: mayMount ? false : "needs root to mount a small disk",
    }, async (t) => {
      const fixture = new Fixture(t);
      const spec = fixture.overlay();
      const scratch = join(fixture.root, "scratch");
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=14m", "tmpfs", scratch]);
      const mounted = await fixture.mount(kind, spec);
      try {
        fillAndFree(mounted, 14 * MIB);
      } finally {
        await mounted.end();
        execFileSync("umount", [scratch]);
      }
    });
  });
}

it("--scratch-dir and --scratch-size say where changes are kept and how much they may take", (t) => {
  const home = mkdtempSync(join(tmpdir(), "datamon-limits-"));
  const directory = join(home, "mnt");
  const run = (...args: string[]): string =>
    execFileSync(process.execPath, [ENTRY, ...args], {
      cwd: home,
      env: { ...process.env, HOME: home, DATAMON_CONFIG: "" },
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
  t.after(() => {
    if (existsSync(join(directory, "kept"))) run("unmount", directory);
    rmSync(home, { recursive: true, force: true });
  });
  mkdirSync(join(home, "elsewhere"));
  run("config", "create", "--name", "Somebody", "--email", "somebody@example.org");
  run("repo", "create", "--repo", "birds", "--description", "of the test");
  assert.throws(() => run("mount", "--scratch-size", "6M", "birds", directory), /--rw/);
  run("mount", "--rw", "--message", "m", "--scratch-dir", "elsewhere", "--scratch-size", "6M", "birds", directory);
  writeFileSync(join(directory, "kept"), "kept");
  assert.equal(statfsSync(directory).blocks * statfsSync(directory).bsize, 6 * MIB);
  fill(join(directory, "big"));
  const [id] = readdirSync(join(home, "elsewhere"));
  const [listed] = JSON.parse(run("scratch", "list", "-o", "json"));
  assert.equal(listed.id, id);
  unlinkSync(join(directory, "big"));
  assert.match(run("unmount", directory), /^bundle: /);
  assert.deepEqual([readdirSync(join(home, "elsewhere")), JSON.parse(run("scratch", "list", "-o", "json"))], [[], []]);
});

for (const openMode of ["plain", "passthrough"]) {
  it(`a daemon that may open few files says so to who opens too many, and goes on, open mode ${openMode}`, async (t) => {
    const home = await MountHome.make();
    const directory = home.path("mnt");
    t.after(async () => {
      await detach(directory, { lazy: true }).catch(() => {});
      await home.end();
    });
    mkdirSync(home.path("base"));
    for (let index = 0; index < 50; index++) writeFileSync(home.path("base", `base-${index}`), noise(index, 500));
    await home.upload(home.path("base"));
    const mount = [process.execPath, ENTRY, "mount", "--rw", "--open-mode", openMode, "birds", directory];
    execFileSync("sh", ["-c", 'ulimit -n 256 && exec "$@"', "sh", ...mount], {
      env: { ...process.env, HOME: home.root, DATAMON_CONFIG: "" },
      stdio: "ignore",
    });
    const open: number[] = [];
    const write = (): void => {
      for (let index = 0; index < 256; index++) {
        open.push(openSync(join(directory, `open-${index}`), "w+"));
        writeSync(open[index]!, `content ${index}`);
      }
    };
    assert.throws(write, { code: "ENFILE" });
    for (let index = 0; index < 50; index++) {
      assert.ok(readFileSync(join(directory, `base-${index}`)).equals(noise(index, 500)));
    }
    const last = open.pop()!;
    for (const [index, fd] of open.entries())
      assert.equal(readFileSync(fd, "utf8").length, 0, `${index} is at its end`);
    assert.ok(open.length > 60, `${open.length} files could be open`);
    for (const fd of [last, ...open]) closeSync(fd);
    for (const index of open.keys()) {
      assert.equal(readFileSync(join(directory, `open-${index}`), "utf8"), `content ${index}`);
    }
    for (let index = 0; index < 300; index++) writeFileSync(join(directory, `later-${index}`), "one at a time");
    const [record] = home.records();
    assert.match(readFileSync(home.path(".datamon", "mounts", record!.id, "log"), "utf8"), /256 files open.*ulimit -n/);
    assert.match(await home.run("unmount", directory), /^bundle: /);
  });
}
