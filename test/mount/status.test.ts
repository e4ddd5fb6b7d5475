/** What `datamon mount status` tells of real mounts. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { promisify } from "node:util";
import type { MountReport } from "../../src/fs/index.ts";

const ENTRY = join(import.meta.dirname, "../../src/cli/main.ts");
const MIB = 1 << 20;

/** A home with one bundle of a file of 3 MiB and a small one, and a directory to mount it on. */
class Home {
  readonly path = mkdtempSync(join(tmpdir(), "datamon-status-"));
  readonly mounted = join(this.path, "mounted");

  constructor(t: TestContext) {
    t.after(async () => {
      await this.datamon("unmount", this.mounted).catch(() => {});
      rmSync(this.path, { recursive: true, force: true });
    });
  }

  async datamon(...args: string[]): Promise<string> {
    const env = { ...process.env, HOME: this.path, DATAMON_CONFIG: "" };
    return (await promisify(execFile)(process.execPath, [ENTRY, ...args], { env })).stdout;
  }

  async mount(...flags: string[]): Promise<void> {
    const tree = join(this.path, "tree");
    mkdirSync(tree);
    writeFileSync(join(tree, "large"), randomBytes(3 * MIB));
    writeFileSync(join(tree, "small"), "small");
    await this.datamon("repo", "create", "--repo", "birds", "--description", "birds");
    await this.datamon("bundle", "upload", "--repo", "birds", "--path", tree, "--message", "first");
    await this.datamon("mount", ...flags, "birds", this.mounted);
  }

  async status(): Promise<MountReport> {
    return JSON.parse(await this.datamon("mount", "status", "-o", "json", this.mounted)) as MountReport;
  }
}

function count({ requests }: MountReport, request: string): number {
  return requests.find((one) => one.request === request)?.count ?? 0;
}

describe("mount status", () => {
  it("counts what the kernel channel does", async (t) => {
    const home = new Home(t);
    await home.mount("--channel", "kernel");
    const before = await home.status();
    assert.equal(before.repo, "birds");
    assert.equal(before.restarts, 0);
    assert.equal(before.fetched.bytes, 0);
    assert.equal(count(before, "init"), 1);
    assert.equal(count(before, "read-fetched"), 0);

    readFileSync(join(home.mounted, "large"));
    readFileSync(join(home.mounted, "small"));
    const after = await home.status();
    assert.equal(after.fetched.bytes, 3 * MIB + 5);
    assert.equal(after.fetched.failures, 0);
    assert.ok(count(after, "lookup") >= 2);
    assert.ok(count(after, "read-fetched") >= 2);
    assert.ok(after.tiers.store.hits >= 2);
    for (const { request, count: times, p50Us, p90Us, p99Us } of after.requests) {
      assert.ok(times > 0 && p50Us > 0 && p50Us <= p90Us && p90Us <= p99Us, request);
    }
    assert.match(await home.datamon("mount", "status", home.mounted), /^fetched: \d blobs \(\d ahead\), 3\.0 MiB$/m);

    process.kill(after.daemonPid, "SIGKILL");
    readFileSync(join(home.mounted, "small"));
    const next = await home.status();
    assert.equal(next.restarts, 1);
    assert.equal(next.since, after.since);
    assert.ok(next.countedSince > after.countedSince);
    assert.notEqual(next.daemonPid, after.daemonPid);
  });

  it("counts what fuse-native does, and tells when its daemon is dead", async (t) => {
    const home = new Home(t);
    await home.mount("--channel", "fuse-native");
    readFileSync(join(home.mounted, "small"));
    const status = await home.status();
    assert.ok(count(status, "getattr") > 0);
    assert.equal(count(status, "read"), 1);
    assert.equal(status.fetched.blobs, 1);
    process.kill(status.daemonPid, "SIGKILL");
    await assert.rejects(home.status(), { code: 1, stderr: /the daemon of .*mounted \(pid \d+\) died/ });
  });

  it("knows nothing of a directory where nothing is mounted", async (t) => {
    await assert.rejects(new Home(t).status(), { code: 2, stderr: /nothing of yours is mounted/ });
  });
});
