/** scripts/datamon: found and started from anywhere, with little loaded. */

import assert from "node:assert/strict";
import { copyFileSync, existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { assertFailed, CHECKOUT, type Ended, Home, LAUNCHER, run } from "./support.ts";

const { version } = JSON.parse(readFileSync(`${CHECKOUT}/package.json`, "utf8"));
/** A user id that has no account. */
const NOBODY = 54_321;
const asNobody = process.getuid?.() === 0 ? { uid: NOBODY } : {};

let home: Home;

before(() => {
  home = new Home();
});
after(() => home.end());

function assertVersion(ended: Ended): void {
  assert.deepEqual(ended, { code: 0, signal: null, stdout: `${version}\n`, stderr: "" });
}

describe("the launcher", () => {
  it("runs from any working directory", async () => {
    for (const cwd of ["/", CHECKOUT, home.root]) assertVersion(await run(["version"], { home: home.root, cwd }));
  });

  it("runs through symbolic links on PATH, absolute, relative and chained", async () => {
    const bin = home.path("bin");
    mkdirSync(bin);
    symlinkSync(LAUNCHER, `${bin}/absolute`);
    symlinkSync("absolute", `${bin}/relative`);
    symlinkSync("../bin/relative", `${bin}/chained`);
    symlinkSync(CHECKOUT, home.path("checkout"));
    symlinkSync("../checkout/scripts/datamon", `${bin}/through-a-directory`);
    const PATH = `${bin}:${process.env.PATH}`;
    for (const launcher of ["absolute", "relative", "chained", "through-a-directory"]) {
      assertVersion(await run(["version"], { home: home.root, launcher, cwd: "/", env: { PATH } }));
      assertVersion(await run(["version"], { home: home.root, launcher: `./bin/${launcher}`, cwd: home.root }));
    }
  });

  it("runs by its bare name given to a shell", async () => {
    const cwd = `${CHECKOUT}/scripts`;
    assertVersion(await run(["datamon", "version"], { home: home.root, launcher: "sh", cwd }));
  });

  it("says what to do where only an old Node.js is found", async () => {
    mkdirSync(home.path("elsewhere/scripts"), { recursive: true });
    copyFileSync(LAUNCHER, home.path("elsewhere/scripts/datamon"));
    mkdirSync(home.path("old"));
    writeFileSync(home.path("old/node"), "#!/bin/sh\necho v18.19.0\n", { mode: 0o755 });
    const launcher = home.path("elsewhere/scripts/datamon");
    const old = await run(["version"], { launcher, env: { PATH: `${home.path("old")}:/usr/bin:/bin` } });
    assertFailed(old, 1, "with an old Node.js");
    assert.match(old.stderr, /Node\.js 24 or newer is needed; this machine has v18\.19\.0/);
  });

  it("prints the version as JSON", async () => {
    assert.equal((await home.json("version")).version, version);
  });

  it("loads nothing for the version that it does not need", async () => {
    const hook = home.path("hook.cjs");
    const log = home.path("loaded");
    writeFileSync(
      hook,
      `const { appendFileSync } = require("node:fs");
      require("node:module").registerHooks({
        resolve(specifier, context, next) {
          const found = next(specifier, context);
          appendFileSync(${JSON.stringify(log)}, found.url + "\\n");
          return found;
        },
      });
      process.on("exit", () => appendFileSync(${JSON.stringify(log)}, process.report.getReport().sharedObjects.join("\\n")));`,
    );
    const NODE_OPTIONS = `--require ${hook}`;
    assertVersion(await home.runWith({ NODE_OPTIONS }, "version"));
    const loaded = readFileSync(log, "utf8");
    assert.match(loaded, /\/commander\//, "the hook sees what is loaded");
    assert.doesNotMatch(loaded, /better-sqlite3|\/zod\/|\/yaml\/|@aws-sdk|@google-cloud|koffi|fuse-native/);
    assert.doesNotMatch(loaded, /\/src\/(meta|cache|fs)\//);

    assert.equal((await home.runWith({ NODE_OPTIONS }, "repo", "list")).code, 0);
    const listing = readFileSync(log, "utf8");
    assert.match(listing, /\/src\/meta\//, "the hook sees imports at run time");
    assert.doesNotMatch(listing, /@aws-sdk|@google-cloud/, "no store's SDK without that store");
  });
});

describe("without a home directory", () => {
  const NO_HOME = { code: 1, signal: null, stdout: "" };

  it("the version is told all the same", async () => {
    assertVersion(await run(["version"], { ...asNobody }));
    assertVersion(await run(["version"], { home: "/dev/null" }));
  });

  it("a command that needs one says so", {
    skip: asNobody.uid === undefined && "only root can run as another user",
  }, async () => {
    const { stderr, ...rest } = await run(["repo", "list"], { ...asNobody });
    assert.deepEqual(rest, NO_HOME);
    assert.match(stderr, /^datamon: HOME is not set\n {2}Set it to a directory/);
  });

  it("an empty or relative one is refused, and nothing is made", async () => {
    for (const [value, why] of [
      ["", /HOME is not set/],
      ["here", /HOME is here, which is not an absolute path/],
    ] as const) {
      for (const args of [
        ["repo", "list"],
        ["config", "show"],
        ["config", "create", "--name", "A", "--email", "a"],
        ["mount", "list"],
        ["cache", "status"],
      ]) {
        const ended = await run(args, { home: value, cwd: home.root });
        assertFailed(ended, 1, args.join(" "));
        assert.match(ended.stderr, why);
        assert.equal(existsSync(home.path("here")), false);
      }
    }
  });

  it("one that cannot be written to is named", {
    skip: asNobody.uid === undefined && "root would be let in",
  }, async () => {
    for (const args of [
      ["repo", "create", "--repo", "birds", "--description", "counts"],
      ["config", "create", "--name", "A", "--email", "a"],
      ["cache", "status"],
      ["mount", "birds", "/tmp/nowhere"],
    ]) {
      const ended = await run(args, { home: "/usr", ...asNobody });
      assertFailed(ended, 1, args.join(" "));
      assert.match(ended.stderr, /cannot .*\/usr\/\.datamon.*permission denied/);
    }
  });
});

describe("what is kept in the home directory", () => {
  it("is its owner's alone", async () => {
    await home.repo();
    const mode = (path: string) => statSync(path).mode & 0o077;
    assert.equal(mode(home.own()), 0);
    assert.equal(mode(home.own("store")), 0);
  });
});
