/** What a writable mount promises of changes: who sees them when, and what they outlive. */

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  appendFileSync,
  closeSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  statSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { setImmediate } from "node:timers/promises";
import type { ChannelKind } from "../../src/fs/channels/channel.ts";
import { at, Fixture, type Mounted, type TreeEntry } from "./fixture.ts";
import { noise } from "./reading.ts";
import type { Abilities } from "./suite.ts";

const LARGE = noise(1, 2_500_000);
const TREE: TreeEntry[] = [
  { path: at("file"), mode: 0o100644, content: Buffer.from("of the base") },
  { path: at("large"), mode: 0o100644, content: LARGE },
];

interface Place {
  readonly directory: string;
  path(name: string): string;
  /** The log of the scratch's journal. */
  readonly log: string;
  /** Kills the daemon, which is all that serves the mount; `meanwhile`, and mounts what is left. */
  die(meanwhile?: () => void): Promise<void>;
}

async function place(t: TestContext, kind: ChannelKind): Promise<Place> {
  const fixture = new Fixture(t);
  const spec = fixture.overlay(await fixture.snapshot(TREE));
  let mounted: Mounted = await fixture.mount(kind, spec);
  return {
    directory: mounted.directory,
    path: (name) => join(mounted.directory, name),
    log: join(fixture.root, "scratch", "journal.sqlite-wal"),
    async die(meanwhile) {
      mounted.process.kill("SIGKILL");
      await mounted.ended;
      meanwhile?.();
      mounted = await fixture.mount(kind, spec);
    },
  };
}

/** Names that count up. */
const names = (count: number): string[] => Array.from({ length: count }, (_, index) => `n${index}`);

/** The names that count up, as far as they are there without a gap; each file holds its name. */
function countedNames({ directory, path }: Place): number {
  const found = readdirSync(directory).filter((name) => name.startsWith("n"));
  assert.deepEqual(found.toSorted(), names(found.length).toSorted());
  for (const name of found) assert.equal(readFileSync(path(name), "utf8"), name);
  return found.length;
}

export function durabilityTests(kind: ChannelKind, can: Abilities): void {
  describe("what was changed", () => {
    it("is seen by all programs at once", async (t) => {
      const { path, directory } = await place(t, kind);
      const other = (script: string): string =>
        execFileSync("sh", ["-ec", script], { cwd: directory, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
      const fd = openSync(path("open"), "wx+");
      writeSync(fd, "first");
      assert.equal(other("cat open; stat -c %s open"), "first5\n");
      other("printf ' second' >> open");
      assert.equal(fstatSync(fd).size, 12);
      assert.equal(readFileSync(path("open"), "utf8"), "first second");
      ftruncateSync(fd, 3);
      assert.equal(other("cat open"), "fir");
      other("printf X | dd of=open bs=1 seek=1 conv=notrunc status=none");
      const content = Buffer.alloc(10);
      assert.equal(content.toString("utf8", 0, readSync(fd, content, 0, 10, 0)), "fXr");
      other("mv open moved; mkdir made; chmod 640 moved");
      assert.equal(statSync(path("moved")).mode & 0o777, 0o640);
      assert.deepEqual(readdirSync(directory).sort(), ["file", "large", "made", "moved"]);
      unlinkSync(path("moved"));
      assert.equal(other("ls -x"), "file  large  made\n");
      closeSync(fd);
    });

    if (can.replaces) {
      it("by a rename is the old or the new, whole, at every moment", async (t) => {
        const { path, directory } = await place(t, kind);
        const version = (number: number): string => `${number}\n`.repeat(3000);
        writeFileSync(path("current"), version(0));
        const script = 'for i in $(seq 100); do yes "$i" | head -n 3000 > next; mv next current; done';
        const writer = spawn("sh", ["-ec", script], { cwd: directory, stdio: "inherit" });
        const ended = once(writer, "exit");
        let last = 0;
        for (let looks = 0; last < 100 && writer.exitCode === null; looks++) {
          const fd = openSync(path("current"), "r");
          const content = readFileSync(fd, "utf8");
          closeSync(fd);
          const number = Number.parseInt(content, 10);
          assert.ok(number >= last, `${number} after ${last}`);
          assert.equal(content, version(number), `version ${number}, look ${looks}`);
          last = number;
          // For the end of the writer to be heard of.
          await setImmediate();
        }
        assert.deepEqual(await ended, [0, null]);
        assert.equal(readFileSync(path("current"), "utf8"), version(100));
      });
    }

    it("is kept when the daemon is killed, closed or not, synced or not", async (t) => {
      const { path, directory, die } = await place(t, kind);
      const written = openSync(path("written"), "wx");
      writeSync(written, noise(2, 300_000));
      const synced = openSync(path("large"), "r+");
      writeSync(synced, noise(3, 50_000), 0, 50_000, 1_000_000);
      fsyncSync(synced);
      const appended = openSync(path("file"), "a");
      writeSync(appended, ", and more");
      writeFileSync(path("closed"), noise(4, 1000));
      mkdirSync(path("directory"));
      renameSync(path("closed"), path("directory/moved"));
      truncateSync(path("large"), 2_000_000);
      const unnamed = openSync(path("unnamed"), "wx");
      writeSync(unnamed, "gone with the last who has it open");
      unlinkSync(path("unnamed"));
      await die();
      for (const fd of [written, synced, appended, unnamed]) assert.throws(() => fsyncSync(fd));
      for (const fd of [written, synced, appended, unnamed]) {
        try {
          closeSync(fd);
        } catch {
          // Its mount is gone; it is closed all the same.
        }
      }
      assert.deepEqual(readdirSync(directory).sort(), ["directory", "file", "large", "written"]);
      assert.ok(readFileSync(path("written")).equals(noise(2, 300_000)));
      const large = Buffer.from(LARGE.subarray(0, 2_000_000));
      noise(3, 50_000).copy(large, 1_000_000);
      assert.ok(readFileSync(path("large")).equals(large));
      assert.equal(readFileSync(path("file"), "utf8"), "of the base, and more");
      assert.ok(readFileSync(path("directory/moved")).equals(noise(4, 1000)));
    });

    it("is there up to where the journal was torn, and nothing of it is misread", async (t) => {
      const where = await place(t, kind);
      const { path, log, die } = where;
      const begun = statSync(log).size;
      for (const name of names(150)) writeFileSync(path(name), name);
      await die(() => truncateSync(log, statSync(log).size - 90_000));
      const afterCut = countedNames(where);
      assert.ok(afterCut > 50 && afterCut < 150, `${afterCut} after the end was cut off`);
      for (const name of names(150).slice(afterCut)) writeFileSync(path(name), name);
      await die(() => {
        const size = statSync(log).size;
        const fd = openSync(log, "r+");
        writeSync(fd, noise(5, 90_000), 0, 90_000, size - 90_000);
        closeSync(fd);
      });
      const afterNoise = countedNames(where);
      assert.ok(afterNoise > 20 && afterNoise < 150, `${afterNoise} after the end became noise`);
      // Of all of them the journal knows nothing then, and their data lies about.
      await die(() => truncateSync(log, begun));
      assert.equal(countedNames(where), 0);
      for (const name of names(150).reverse()) appendFileSync(path(name), name);
      assert.equal(countedNames(where), 150);
      await die();
      assert.equal(countedNames(where), 150);
      assert.equal(readFileSync(path("file"), "utf8"), "of the base");
    });
  });
}
