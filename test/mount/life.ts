/** How mounts begin and end. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readdirSync, readFileSync, readSync, writeFileSync } from "node:fs";
import { describe, it } from "node:test";
import type { ChannelKind } from "../../src/fs/channels/channel.ts";
import { detach } from "../../src/fs/mount-table.ts";
import { at, type DaemonError, Fixture, type TreeEntry } from "./fixture.ts";
import { noise } from "./reading.ts";
import type { Abilities } from "./suite.ts";

const TREE: TreeEntry[] = [{ path: at("file"), mode: 0o100644, content: noise(40, 50_000) }];

export function lifeTests(kind: ChannelKind, can: Abilities): void {
  describe("life", () => {
    it("stands in the table of mounts while it is there", async (t) => {
      const fixture = new Fixture(t);
      const mounted = await fixture.mount(kind, await fixture.snapshot(TREE));
      const table = readFileSync("/proc/self/mountinfo", "utf8").split("\n");
      const line = table.find((entry) => entry.includes(` ${mounted.directory} `));
      assert.match(line ?? "", / ro,.* - fuse\.datamon datamon:repo@a,\\040b .*default_permissions/);
      await mounted.unmount();
      assert.equal(await mounted.ended, 0);
      assert.equal(mounted.isMounted(), false);
      assert.deepEqual(readdirSync(mounted.directory), []);
    });

    it("does not go while it is in use, unless it has to", async (t) => {
      const fixture = new Fixture(t);
      const mounted = await fixture.mount(kind, await fixture.snapshot(TREE));
      const fd = openSync(mounted.path("file"), "r");
      await assert.rejects(mounted.unmount(), (error: DaemonError) => {
        assert.equal(error.code, "conflict");
        assert.match(error.message, new RegExp(`${mounted.directory}.*pid ${process.pid}`));
        return true;
      });
      assert.equal(readSync(fd, Buffer.alloc(10), 0, 10, 0), 10);
      await mounted.unmount({ lazy: true });
      assert.equal(mounted.isMounted(), false);
      assert.throws(() => readSync(fd, Buffer.alloc(100_000), 0, 100_000, 40_000));
      assert.equal(await mounted.ended, 0);
      // A close asks the file system too.
      assert.throws(() => closeSync(fd), { code: "ENOTCONN" });
    });

    it("ends when somebody else takes the mount away", async (t) => {
      const fixture = new Fixture(t);
      const mounted = await fixture.mount(kind, fixture.overlay(await fixture.snapshot(TREE)));
      writeFileSync(mounted.path("new"), "new");
      await detach(mounted.directory);
      assert.equal(await mounted.ended, 0);
      // The namespace was closed: its scratch can be opened again.
      const again = await fixture.mount(kind, fixture.overlay(await fixture.snapshot(TREE)));
      assert.equal(readFileSync(again.path("new"), "utf8"), "new");
    });

    it("takes the place of one whose daemon was killed, and of no other", async (t) => {
      const fixture = new Fixture(t);
      const spec = await fixture.snapshot(TREE);
      const first = await fixture.mount(kind, spec);
      first.process.kill("SIGKILL");
      await first.ended;
      assert.throws(() => readdirSync(first.directory), { code: "ENOTCONN" });
      const second = await fixture.mount(kind, spec);
      assert.deepEqual(readFileSync(second.path("file")), noise(40, 50_000));
      await assert.rejects(fixture.mount(kind, spec), { code: "exists" });
      assert.deepEqual(readFileSync(second.path("file")), noise(40, 50_000));
    });

    it("mounts nothing where the bundle cannot be opened", async (t) => {
      const fixture = new Fixture(t);
      const { catalog, bundle } = await fixture.snapshot(TREE);
      writeFileSync(catalog, "no catalog");
      await assert.rejects(fixture.mount(kind, { kind: "snapshot", catalog, bundle }), { code: "damaged" });
      assert.deepEqual(readdirSync(fixture.directory), []);
    });

    if (can.interrupts) {
      it("is gone when its process exits, also with readers that wait", async (t) => {
        const fixture = new Fixture(t);
        const slow = noise(41, 20_000);
        const tree = [...TREE, { path: at("slow"), mode: 0o100644, content: slow }];
        const mounted = await fixture.mount(kind, await fixture.snapshot(tree), { stall: slow });
        const reader = spawn("sh", ["-c", "echo begun; cat slow"], {
          cwd: mounted.directory,
          stdio: ["ignore", "pipe", "ignore"],
        });
        const end = once(reader, "exit");
        await once(reader.stdout!, "data");
        mounted.process.kill("SIGTERM");
        assert.equal(await mounted.ended, 0);
        assert.equal(mounted.isMounted(), false);
        assert.notDeepEqual(await end, [0, null]);
      });
    }
  });
}
