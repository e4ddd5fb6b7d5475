/**
 * Programs that ask much of a file system, on a writable mount: they do not notice when its daemon is killed,
 * they recover when nothing is left that serves it, and what they made is whole in the bundle.
 * DATAMON_TEST_FULL=1 gives them much more to do.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { chmodSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { after, before, describe, it } from "node:test";
import { setTimeout } from "node:timers/promises";
import Database from "better-sqlite3";
import { Fixture } from "./fixture.ts";
import { endWork, FULL, PROGRAMS, type Workplace } from "./programs.ts";
import { MountHome, type SupervisedMount } from "./supervised-mount.ts";

/** How long after its start a program's daemon dies, how long after that again, in milliseconds, and how often. */
const FIRST_DEATH = 300;
const NEXT_DEATH = FULL ? 4000 : 1500;
const DEATHS = FULL ? 10 : 2;

/** The milliseconds after which nothing is left that serves a program's mount: in the middle of its work, in its full size. */
const DEATH_OF_BOTH = FULL ? 4000 : 400;

const isRoot = process.getuid?.() === 0;

/** Waits for the end of a program's work, so many milliseconds at most; false where it goes on. */
async function hasEnded(ended: Promise<unknown>, milliseconds: number): Promise<boolean> {
  const waiting = new AbortController();
  const goesOn = setTimeout(milliseconds, false, { signal: waiting.signal }).catch(() => false);
  const answer = await Promise.race([ended.then(() => true), goesOn]);
  waiting.abort();
  return answer;
}

for (const program of PROGRAMS) {
  describe(`${program.name} on a writable mount`, () => {
    const skip = program.missing;
    let home: MountHome;
    let mounted: SupervisedMount;
    const placeIn = (directory: string): Workplace => ({
      inside: join(directory, "work"),
      outside: home.path("outside"),
    });

    before(async () => {
      if (skip !== undefined) return;
      home = await MountHome.make();
      // Some programs do not run as root.
      chmodSync(home.root, 0o755);
      mounted = await home.mount(home.path("mnt"), "birds", ...(isRoot ? ["--allow-other"] : []));
      const place = placeIn(mounted.directory);
      for (const directory of [place.inside, place.outside]) mkdirSync(directory);
      program.prepare?.(place);
    });
    after(() => home?.end());

    it(`${program.name} does not notice that the daemon is killed`, { skip }, async (t) => {
      const place = { ...placeIn(mounted.directory), inside: mounted.path("unaware") };
      mkdirSync(place.inside);
      const work = program.work(place);
      t.after(() => endWork(work));
      const complaints = text(work.stderr!);
      const ended = once(work, "close");
      let deaths = 0;
      for (let wait = FIRST_DEATH; deaths < DEATHS && !(await hasEnded(ended, wait)); wait = NEXT_DEATH, deaths++) {
        mounted.killDaemon();
      }
      t.diagnostic(`${deaths} deaths`);
      assert.deepEqual(await ended, [0, null], await complaints);
      await program.check(place);
    });

    it(`${program.name} recovers after daemon and supervisor were killed`, { skip }, async (t) => {
      const place = placeIn(mounted.directory);
      const work = program.work(place);
      t.after(() => endWork(work));
      work.stderr!.resume();
      t.diagnostic(
        (await hasEnded(once(work, "close"), DEATH_OF_BOTH)) ? "it had ended before" : "in the middle of its work",
      );
      await mounted.killBoth();
      await endWork(work);
      await mounted.resume();
      await program.recover(place);
      await program.check(place);
    });

    it(`${program.name} finds all as it was in the bundle`, { skip }, async () => {
      const bundle = await mounted.unmount();
      const elsewhere = await home.mount(
        home.path("elsewhere"),
        `birds@${bundle}`,
        ...(isRoot ? ["--allow-other"] : []),
      );
      await program.check(placeIn(elsewhere.directory));
    });
  });
}

describe("SQLite on a writable mount, with others that use the database", () => {
  for (const mode of ["wal", "delete", "persist"]) {
    it(`SQLite keeps a database in journal mode ${mode}`, async (t) => {
      const fixture = new Fixture(t);
      const spec = fixture.overlay();
      const mounted = await fixture.mount("kernel", spec);
      const file = mounted.path("database");
      const open = (): Database.Database => {
        const database = new Database(file);
        assert.equal(database.pragma(`journal_mode = ${mode}`, { simple: true }), mode);
        database.pragma("synchronous = FULL");
        return database;
      };
      const database = open();
      database.exec("CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT); CREATE INDEX by_text ON entry (text)");
      const insert = database.prepare("INSERT INTO entry (text) VALUES (?)");
      for (let batch = 0; batch < 10; batch++) {
        database.transaction(() => {
          for (let row = 0; row < 1000; row++) insert.run(`row ${(row * 7919) % 1000} of ${batch}`);
        })();
      }
      database.prepare("UPDATE entry SET text = text || '!' WHERE id % 3 = 0").run();
      const other = new Database(file);
      assert.equal(other.prepare("SELECT count(*) FROM entry").pluck().get(), 10_000);
      database.exec("BEGIN IMMEDIATE");
      assert.throws(() => other.exec("PRAGMA busy_timeout = 0; BEGIN IMMEDIATE"), { code: "SQLITE_BUSY" });
      database.exec("ROLLBACK");
      database.prepare("DELETE FROM entry WHERE id % 5 = 0").run();
      other.close();
      database.close();
      mounted.process.kill("SIGKILL");
      await mounted.ended;
      await fixture.mount("kernel", spec);
      const reopened = open();
      assert.equal(reopened.pragma("integrity_check", { simple: true }), "ok");
      assert.equal(reopened.prepare("SELECT count(*) FROM entry").pluck().get(), 8000);
      reopened.exec("VACUUM");
      assert.equal(reopened.pragma("integrity_check", { simple: true }), "ok");
      reopened.close();
    });
  }
});
