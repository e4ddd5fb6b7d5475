/** deploy/datamon.sh with releases made for the test, whose `datamon` only says what it is. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { promisify } from "node:util";
import { CHECKOUT, sh } from "../e2e/support.ts";

const SCRIPT = join(CHECKOUT, "deploy", "datamon.sh");
const root = mkdtempSync(join(tmpdir(), "datamon-installer-"));
after(() => rmSync(root, { recursive: true, force: true }));

const linux = process.platform === "linux" && process.arch === "x64";
const skip = !linux && "self-contained archives are for Linux on x86-64";

interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

async function run(env: NodeJS.ProcessEnv, ...args: string[]): Promise<Ended> {
  const settings = { env: { PATH: process.env.PATH, ...env } };
  try {
    return { code: 0, ...(await promisify(execFile)("/bin/sh", [SCRIPT, ...args], settings)) };
  } catch (error) {
    const { code, stdout, stderr } = error as Ended;
    return { code, stdout, stderr };
  }
}

let homes = 0;
function newHome(): string {
  const home = join(root, `home-${homes++}`);
  mkdirSync(home);
  return home;
}

/** Adds a release whose `datamon` prints its version and its arguments, and exits with 7. */
async function release(location: string, version: string): Promise<string> {
  const name = `datamon-${version}`;
  const staging = mkdtempSync(join(root, "staging-"));
  const program = join(staging, name, "scripts", "datamon");
  mkdirSync(join(staging, name, "scripts"), { recursive: true });
  writeFileSync(program, `#!/bin/sh\nprintf '%s\\n' ${version} "$@"\nexit 7\n`);
  chmodSync(program, 0o755);
  const folder = join(location, version);
  mkdirSync(folder, { recursive: true });
  const archive = join(folder, `${name}-linux-x64.tar.gz`);
  await sh("tar", "-czf", archive, "-C", staging, name);
  const sum = createHash("sha256").update(readFileSync(archive)).digest("hex");
  writeFileSync(join(folder, "SHA256SUMS"), `${"0".repeat(64)}  ${name}.tgz\n${sum}  ${name}-linux-x64.tar.gz\n`);
  writeFileSync(join(location, "latest"), `${version}\n`);
  return archive;
}

/** Turns the last look for a newer version into one of another day. */
function anotherDay(home: string): void {
  const file = join(home, ".datamon", "releases", "newest");
  const [version] = readFileSync(file, "utf8").split("\n");
  writeFileSync(file, `${version}\n2001-01-01\n`);
}

test("installs the newest release, runs it in its own place, and looks for a newer one once a day", {
  skip,
}, async () => {
  const location = join(root, "releases");
  await release(location, "1.0.0");
  const HOME = newHome();
  const env = { HOME, DATAMON_RELEASES: location };
  assert.deepEqual(await run(env, "repo list", "it's"), {
    code: 7,
    stdout: "1.0.0\nrepo list\nit's\n",
    stderr: `datamon: installing version 1.0.0 from ${location} …\n`,
  });
  await release(location, "1.1.0");
  assert.deepEqual(await run(env), { code: 7, stdout: "1.0.0\n", stderr: "" }, "the same day");
  anotherDay(HOME);
  assert.equal((await run(env)).stdout, "1.1.0\n");
  assert.equal((await run({ ...env, DATAMON_VERSION: "1.0.0" })).stdout, "1.0.0\n", "both are kept");

  anotherDay(HOME);
  const away = await run({ HOME, DATAMON_RELEASES: join(root, "nowhere") });
  assert.equal(away.stdout, "1.1.0\n");
  assert.match(away.stderr, /does not answer; using version 1\.1\.0/);
  assert.equal((await run({ HOME })).stdout, "1.1.0\n", "without a location, what is here");
  const left = readdirSync(join(HOME, ".datamon", "releases")).sort();
  assert.deepEqual(left, ["1.0.0", "1.1.0", "newest"]);
});

test("takes releases from a server", { skip }, async (t) => {
  const location = join(root, "served");
  await release(location, "2.0.0");
  const server = createServer((request, response) => {
    const file = join(location, request.url ?? "");
    if (existsSync(file)) response.end(readFileSync(file));
    else response.writeHead(404).end();
  }).listen(0, "127.0.0.1");
  t.after(() => server.close());
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  const env = { HOME: newHome(), DATAMON_RELEASES: `http://127.0.0.1:${port}` };
  assert.equal((await run(env)).stdout, "2.0.0\n");
  assert.match((await run({ ...env, DATAMON_VERSION: "2.5.0" })).stderr, /version 2\.5\.0 is not in/);
});

test("runs nothing that is not the release", { skip }, async () => {
  const location = join(root, "damaged");
  const archive = await release(location, "3.0.0");
  writeFileSync(archive, Buffer.concat([readFileSync(archive), Buffer.from("x")]));
  const HOME = newHome();
  const damaged = await run({ HOME, DATAMON_RELEASES: location });
  assert.equal(damaged.code, 1);
  assert.equal(damaged.stdout, "");
  assert.match(damaged.stderr, /is damaged and was not installed/);
  assert.ok(!existsSync(join(HOME, ".datamon", "releases", "3.0.0")));

  writeFileSync(join(location, "latest"), "../../evil\n");
  assert.match((await run({ HOME, DATAMON_RELEASES: location })).stderr, /does not name a version/);
  const plain = await run({ HOME, DATAMON_RELEASES: "http://example.org/releases" });
  assert.match(plain.stderr, /by https only/);
});

test("names what is missing", async () => {
  const none = await run({ HOME: newHome() });
  assert.equal(none.code, 1);
  assert.match(none.stderr, /no release location is known/);
  const bare = await run({ HOME: newHome(), DATAMON_RELEASES: "https://example.org", PATH: join(root, "empty") });
  assert.equal(bare.code, 1);
  assert.match(bare.stderr, /needed and missing: tar gzip .*sha256sum.*curl/);
});
