/** What is published: the packed tarball, installed into an empty folder. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { it } from "node:test";
import { assertSame, CHECKOUT, Home, run, sh, smallTree, uploadedId } from "./support.ts";

/** What of a checkout the packing reads. */
const SOURCES = [
  "src",
  "scripts",
  "docs",
  "package.json",
  "tsconfig.json",
  "tsconfig.build.json",
  "LICENSE",
  "README.md",
  "CHANGELOG.md",
];

interface Npm {
  readonly failed: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

function npm(cwd: string, ...args: string[]): Promise<Npm> {
  return new Promise((resolve) => {
    execFile("npm", args, { cwd, env: process.env }, (error, stdout, stderr) => {
      resolve({ failed: error !== null, stdout, stderr });
    });
  });
}

it("the packed release, installed into an empty folder, uploads and mounts", async (t) => {
  const home = new Home();
  t.after(() => home.end());
  const checkout = home.path("checkout");
  mkdirSync(checkout);
  for (const name of SOURCES) {
    if (existsSync(join(CHECKOUT, name))) cpSync(join(CHECKOUT, name), join(checkout, name), { recursive: true });
  }
  symlinkSync(join(CHECKOUT, "node_modules"), join(checkout, "node_modules"));
  const packed = await npm(checkout, "pack", "--json", "--pack-destination", home.root);
  assert.equal(packed.failed, false, packed.stderr);
  const [{ filename, files }] = JSON.parse(packed.stdout.slice(packed.stdout.indexOf("[")));
  const names: string[] = files.map(({ path }: { path: string }) => path);
  assert.ok(names.includes("dist/cli/main.js") && names.includes("scripts/datamon"));
  assert.deepEqual(
    names.filter((name) => /^(src|test|node_modules|bench)\//.test(name)),
    [],
  );

  const folder = home.path("installed");
  mkdirSync(folder);
  writeFileSync(join(folder, "package.json"), "{}");
  const tarball = home.path(filename);
  const installed = await npm(folder, "install", "--no-audit", "--no-fund", "--prefer-offline", tarball);
  if (installed.failed && /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENOTCACHED/.test(installed.stderr)) {
    return t.skip("the registry of npm packages cannot be reached");
  }
  assert.equal(installed.failed, false, installed.stderr);

  const launcher = join(folder, "node_modules", ".bin", "datamon");
  const { version } = JSON.parse(readFileSync(join(CHECKOUT, "package.json"), "utf8"));
  const datamon = async (...args: string[]) => {
    const ended = await run(args, { home: home.root, cwd: home.root, launcher });
    assert.equal(ended.code, 0, ended.stderr);
    return ended.stdout;
  };
  assert.equal(await datamon("version"), `${version}\n`);
  const tree = smallTree(home.path("tree"));
  await datamon("repo", "create", "--repo", "birds", "--description", "counts");
  uploadedId(await datamon("bundle", "upload", "--repo", "birds", "--path", tree, "--message", "m", "--label", "v1"));
  const mnt = home.path("mnt");
  for (const channel of ["kernel", "fuse-native"]) {
    await datamon("mount", "--rw", "--message", "more", "--channel", channel, "birds@v1", mnt);
    await assertSame(mnt, tree, channel);
    writeFileSync(join(mnt, "lark.csv"), `lark,${channel}\n`);
    assert.match(await datamon("unmount", mnt), /^bundle: /);
    await datamon("bundle", "download", "--repo", "birds", "--destination", home.path(channel));
    assert.equal(readFileSync(home.path(channel, "lark.csv"), "utf8"), `lark,${channel}\n`);
  }
  await sh("test", "!", "-e", mnt);
});
