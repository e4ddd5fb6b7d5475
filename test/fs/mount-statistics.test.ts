import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { openControlSocket } from "../../src/fs/mount-control.ts";
import type { MountRecord } from "../../src/fs/mount-record.ts";
import { askStatistics, type MountStatistics } from "../../src/fs/mount-statistics.ts";
import { thisProcess } from "../../src/fs/process-identity.ts";

const ID = "0badcafe";

const STATISTICS: MountStatistics = {
  countedSince: "2026-01-01T00:00:00.000Z",
  requests: [{ request: "read", count: 3, p50Us: 1, p90Us: 2, p99Us: 3 }],
  tiers: { disk: { hits: 1, misses: 2 }, memory: { hits: 3, misses: 4 }, store: { hits: 5, misses: 6 } },
  fetched: { blobs: 7, ahead: 8, bytes: 9, failures: 10 },
  stores: [{ request: "get", count: 11, failures: 12, bytes: 13, meanMs: 14, slowestMs: 15 }],
  replicas: [],
};

/** A home with the directory of one mount's record, at the end of a path that long. */
function makeHome(t: TestContext, length = 0): string {
  const top = mkdtempSync(join(tmpdir(), "datamon-statistics-"));
  t.after(() => rmSync(top, { recursive: true, force: true }));
  const home = join(top, "h".repeat(length));
  mkdirSync(join(home, "mounts", ID), { recursive: true });
  return home;
}

async function recordOf(): Promise<MountRecord> {
  return {
    id: ID,
    repo: "birds",
    mode: "ro",
    directory: "/birds",
    channel: "kernel",
    daemon: await thisProcess(),
    since: "2026-01-01T00:00:00.000Z",
    cacheDirectory: "/cache",
    state: "mounted",
  };
}

function answering(t: TestContext, home: string): void {
  const control = openControlSocket(
    home,
    ID,
    () => STATISTICS,
    (error) => assert.fail(String(error)),
  );
  t.after(() => control.close());
}

describe("the control socket of a mount", () => {
  for (const length of [0, 200]) {
    it(`answers below a home of a path ${length === 0 ? "as usual" : "longer than sockets take"}`, async (t) => {
      const home = makeHome(t, length);
      answering(t, home);
      const record = await recordOf();
      const answers = await Promise.all(Array.from({ length: 20 }, () => askStatistics(home, record)));
      for (const answer of answers) assert.deepEqual(answer, STATISTICS);
    });
  }

  it("takes the place of one that a dead daemon left", async (t) => {
    const home = makeHome(t);
    writeFileSync(join(home, "mounts", ID, "control.sock"), "");
    answering(t, home);
    assert.deepEqual(await askStatistics(home, await recordOf()), STATISTICS);
  });

  it("is asked again while another daemon takes over", async (t) => {
    const home = makeHome(t);
    const path = join(home, "mounts", ID, "control.sock");
    // One that dies at half a word.
    const dying = createServer((socket) => {
      socket.resume().end('{"kind":');
      dying.close(() => answering(t, home));
    }).listen(path);
    await once(dying, "listening");
    assert.deepEqual(await askStatistics(home, await recordOf()), STATISTICS);
  });

  it("tells of a daemon that is dead", async (t) => {
    const home = makeHome(t);
    const child = spawn("true");
    await once(child, "exit");
    const record = { ...(await recordOf()), daemon: { pid: child.pid!, started: "long ago" } };
    await assert.rejects(askStatistics(home, record), {
      code: "io",
      message: `the daemon of /birds (pid ${child.pid}) died`,
    });
  });

  it("tells of an answer that makes no sense", async (t) => {
    const home = makeHome(t);
    const path = join(home, "mounts", ID, "control.sock");
    const server = createServer((socket) => socket.end('{"hello":1}')).listen(path);
    t.after(() => server.close());
    await once(server, "listening");
    await assert.rejects(askStatistics(home, await recordOf()), { code: "io", message: /ask the daemon of \/birds/ });
  });
});
