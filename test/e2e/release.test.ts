/** What is published: the packed tarball, installed into an empty folder, and the archive that has everything. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { it } from "node:test";
import { assertSame, CHECKOUT, Home, run, sh, smallTree, uploadedId } from "./support.ts";

/** What of a checkout the packing reads. */
const SOURCES = [
  "src",
  "scripts",
  "deploy",
  "docs",
  "package.json",
  "package-lock.json",
  "tsconfig.json",
  "tsconfig.build.json",
  "LICENSE",
  "README.md",
  "CHANGELOG.md",
];

interface Ended {
  readonly failed: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

function start(cwd: string, program: string, ...args: string[]): Promise<Ended> {
  return new Promise((resolve) => {
    // What is compressed here is unpacked once.
    execFile(program, args, { cwd, env: { ...process.env, GZIP_LEVEL: "1" } }, (error, stdout, stderr) => {
      resolve({ failed: error !== null, stdout, stderr });
    });
  });
}

/** npm's ways to say that it cannot reach its registry. */
const NO_REGISTRY = /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENOTCACHED/;

it("a release, packed or with everything in it, uploads and mounts", async (t) => {
  const home = new Home();
  t.after(() => home.end());
  const checkout = home.path("checkout");
  mkdirSync(checkout);
  for (const name of SOURCES) cpSync(join(CHECKOUT, name), join(checkout, name), { recursive: true });
  symlinkSync(join(CHECKOUT, "node_modules"), join(checkout, "node_modules"));
  const releases = home.path("releases");
  const released = await start(checkout, "scripts/release", releases);
  if (released.failed && NO_REGISTRY.test(released.stderr))
    return t.skip("the registry of npm packages cannot be reached");
  assert.equal(released.failed, false, released.stderr);

  const { version } = JSON.parse(readFileSync(join(CHECKOUT, "package.json"), "utf8"));
  assert.equal(readFileSync(join(releases, "latest"), "utf8"), `${version}\n`);
  const tarball = join(releases, version, `datamon-${version}.tgz`);
  const names = (await sh("tar", "-tzf", tarball)).split("\n").map((name) => name.replace(/^package\//, ""));
  for (const name of ["dist/cli/main.js", "scripts/datamon", "scripts/wrap_application.sh", "scripts/datamover"]) {
    assert.ok(names.includes(name), name);
  }
  assert.deepEqual(
    names.filter((name) => /^(src|test|node_modules|bench)\//.test(name)),
    [],
  );

  const packed = async () => {
    const folder = home.path("installed");
    mkdirSync(folder);
    writeFileSync(join(folder, "package.json"), "{}");
    const installed = await start(folder, "npm", "install", "--no-audit", "--no-fund", "--prefer-offline", tarball);
    assert.equal(installed.failed, false, installed.stderr);
    await uses(home, join(folder, "node_modules", ".bin", "datamon"), "packed", version);
  };
  const complete = async () => {
    if (process.platform !== "linux" || process.arch !== "x64") return;
    await uses(home, join(CHECKOUT, "deploy", "datamon.sh"), "complete", version, { DATAMON_RELEASES: releases });
  };
  // One waits for the registry while the other unpacks.
  for (const used of await Promise.allSettled([packed(), complete()])) {
    if (used.status === "rejected") throw used.reason;
  }
});

/** Works with an installed `datamon` and a repo of its own. */
async function uses(home: Home, launcher: string, repo: string, version: string, env: NodeJS.ProcessEnv = {}) {
  const datamon = async (...args: string[]) => {
    const ended = await run(args, { home: home.root, cwd: home.root, launcher, env });
    assert.equal(ended.code, 0, ended.stderr);
    return ended.stdout;
  };
  assert.equal(await datamon("version"), `${version}\n`);
  const tree = smallTree(home.path(`tree-${repo}`));
  await datamon("repo", "create", "--repo", repo, "--description", "counts");
  uploadedId(await datamon("bundle", "upload", "--repo", repo, "--path", tree, "--message", "m", "--label", "v1"));
  const mnt = home.path(`mnt-${repo}`);
  for (const channel of ["kernel", "fuse-native"]) {
    await datamon("mount", "--rw", "--message", "more", "--channel", channel, `${repo}@v1`, mnt);
    await assertSame(mnt, tree, channel);
    writeFileSync(join(mnt, "lark.csv"), `lark,${channel}\n`);
    assert.match(await datamon("unmount", mnt), /^bundle: /);
    const destination = home.path(`${repo}-${channel}`);
    await datamon("bundle", "download", "--repo", repo, "--destination", destination);
    assert.equal(readFileSync(join(destination, "lark.csv"), "utf8"), `lark,${channel}\n`);
  }
  await sh("test", "!", "-e", mnt);
}
