/** The wrapper against sidecars that the tests play, in each shell that an image may have. */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { setTimeout } from "node:timers/promises";
import { runs, until } from "../e2e/support.ts";
import { endAll, isThere, SHELLS, WRAPPER, Wrapped, type WrappedOptions } from "./wrapped.ts";

const root = mkdtempSync(join(tmpdir(), "datamon-wrapper-"));
after(() => {
  endAll();
  rmSync(root, { recursive: true, force: true });
});

function which(program: string): string {
  return execFileSync("/bin/sh", ["-c", 'command -v "$0"', program], { encoding: "utf8" }).trim();
}

describe("wrap_application.sh", { concurrency: SHELLS.length }, () => {
  for (const shell of SHELLS)
    describe(`in ${shell[0]}`, { concurrency: 8, skip: !isThere(shell) }, () => {
      /** A coordination directory with a blank in its name. */
      const place = () => mkdtempSync(join(root, "co ord-"));
      const start = (coord: string, args: string[], options: WrappedOptions = {}) =>
        new Wrapped(coord, args, { shell, ...options });
      const touch = (...names: string[]) => writeFileSync(join(...names), "");

      it("runs the application between the sidecar's steps", async () => {
        const coord = place();
        const wrapped = start(
          coord,
          ["-b", "fuse", "--", "sh", "-c", 'cat; printf "<%s>" "$@"', "x", "a  b", "", "*"],
          {
            input: "input\n",
          },
        );
        await wrapped.says(/waiting for mountdone of the fuse sidecar since \d{4}-/);
        assert.equal(wrapped.stdout, "");
        touch(coord, "mountdone");
        await wrapped.signals("initupload");
        await wrapped.says(/<\*>/);
        assert.equal(wrapped.stdout, "input\n<a  b><><*>");
        await wrapped.says(/waiting for uploaddone/);
        assert.equal(wrapped.process.exitCode, null);
        touch(coord, "uploaddone");
        assert.equal(await wrapped.end(), 0);
        assert.ok(!existsSync(join(coord, "applicationfailed")));
      });

      it("waits for every database in its own directory", async () => {
        const coord = place();
        for (const name of ["one", "two"]) mkdirSync(join(coord, name));
        const wrapped = start(coord, ["-b", "postgres", "-b", "fuse", "-d", "one two", "true"]);
        touch(coord, "one", "dbstarted");
        touch(coord, "mountdone");
        await wrapped.says(/waiting for dbstarted of the postgres sidecar for two/);
        touch(coord, "two", "dbstarted");
        for (const name of ["one/initdbupload", "two/initdbupload", "initupload"]) await wrapped.signals(name);
        touch(coord, "uploaddone");
        touch(coord, "one", "dbuploaddone");
        await wrapped.says(/waiting for dbuploaddone of the postgres sidecar for two/);
        touch(coord, "two", "dbuploaddone");
        assert.equal(await wrapped.end(), 0);
      });

      it("has the databases in the coordination directory itself where none is named", async () => {
        const coord = place();
        const wrapped = start(coord, ["-b", "postgres", "--", "true"]);
        touch(coord, "dbstarted");
        await wrapped.signals("initdbupload");
        touch(coord, "dbuploaddone");
        assert.equal(await wrapped.end(), 0);
      });

      it("passes the exit status on, tells of the failure, and asks for no upload", async () => {
        const coord = place();
        touch(coord, "mountdone");
        const wrapped = start(coord, ["-b", "fuse", "--", "sh", "-c", "exit 7"]);
        assert.equal(await wrapped.end(), 7);
        assert.match(wrapped.stderr, /application exited with non-zero-status: 7/);
        assert.match(readFileSync(join(coord, "applicationfailed"), "utf8"), /exit status 7/);
        assert.ok(!existsSync(join(coord, "initupload")));
      });

      it("asks for the upload after a failure with --on-failure upload", async () => {
        const coord = place();
        touch(coord, "mountdone");
        const wrapped = start(coord, ["-b", "fuse", "--on-failure=upload", "--", "sh", "-c", "exit 7"]);
        assert.match(await wrapped.signals("initupload"), /exit status 7/);
        touch(coord, "uploaddone");
        assert.equal(await wrapped.end(), 7);
      });

      it("runs programs, never its own functions or the shell's", async () => {
        const wrapped = start(place(), ["--", "finish", "0"]);
        assert.equal(await wrapped.end(), 127);
      });

      for (const [signal, status] of [
        ["SIGTERM", 143],
        ["SIGHUP", 129],
      ] as const) {
        it(`passes ${signal} on`, async () => {
          const coord = place();
          const wrapped = start(coord, ["--", "sh", "-c", "echo up; exec sleep 60"]);
          await wrapped.says(/up/);
          wrapped.process.kill(signal);
          assert.equal(await wrapped.end(), status);
          assert.match(readFileSync(join(coord, "applicationfailed"), "utf8"), new RegExp(`ended by ${signal}`));
        });
      }

      it("lets the application end in its own way", async () => {
        const script = 'trap "echo told; exit 0" TERM INT; echo up; while :; do sleep 0.05; done';
        for (const signal of ["SIGTERM", "SIGINT"] as const) {
          const coord = place();
          touch(coord, "mountdone");
          const wrapped = start(coord, ["-b", "fuse", "--", "sh", "-c", script]);
          await wrapped.says(/up/);
          wrapped.process.kill(signal);
          await wrapped.signals("initupload");
          touch(coord, "uploaddone");
          assert.equal(await wrapped.end(), 0);
          assert.match(wrapped.stdout, /told/);
        }
      });

      it("ends by a signal before the application began", async () => {
        const coord = place();
        const wrapped = start(coord, ["-b", "fuse", "--", "true"]);
        await wrapped.says(/waiting/);
        wrapped.process.kill("SIGTERM");
        assert.equal(await wrapped.end(), 143);
        assert.match(
          readFileSync(join(coord, "applicationfailed"), "utf8"),
          /SIGTERM came; the application was not run/,
        );
      });

      it("waits for the upload in spite of one signal, and not of two", async () => {
        const coord = place();
        touch(coord, "mountdone");
        const wrapped = start(coord, ["-b", "fuse", "--", "true"]);
        await wrapped.says(/waiting for uploaddone/);
        wrapped.process.kill("SIGTERM");
        await wrapped.says(/the upload goes on/);
        wrapped.process.kill("SIGTERM");
        assert.equal(await wrapped.end(), 143);
      });

      it("fails with the message of a sidecar that failed, before, during and after the application", async () => {
        const fail = (coord: string) => writeFileSync(join(coord, "fusefailed"), "there is no repo birds\n");
        const before = place();
        fail(before);
        const never = start(before, ["-b", "fuse", "--", "true"]);
        assert.equal(await never.end(), 1);
        assert.match(never.stderr, /the fuse sidecar failed: there is no repo birds; the application was not run/);

        const during = place();
        touch(during, "mountdone");
        const stopped = start(during, ["-b", "fuse", "--", "sh", "-c", "echo $$; exec sleep 60"]);
        await stopped.says(/^\d+$/m);
        fail(during);
        assert.equal(await stopped.end(), 1);
        assert.match(stopped.stderr, /failed: there is no repo birds; ending the application/);
        assert.ok(!runs(Number(stopped.stdout)));

        const afterwards = place();
        touch(afterwards, "mountdone");
        const done = start(afterwards, ["-b", "fuse", "--", "true"]);
        await done.signals("initupload");
        fail(afterwards);
        assert.equal(await done.end(), 1);
        assert.match(done.stderr, /failed: there is no repo birds while its uploaddone was waited for/);
      });

      it("gives up on a sidecar that is silent, at each step", async () => {
        const limit = ["-b", "fuse", "--timeout", "1", "--"];
        const never = start(place(), [...limit, "true"]);
        const steps = await Promise.all(
          ([[], ["mountdone"], ["mountdone"]] as const).map(async (names, step) => {
            const coord = place();
            touch(coord, "fusealive");
            for (const name of names) touch(coord, name);
            const wrapped = start(coord, [...limit, ...(step === 2 ? ["true"] : ["sleep", "60"])]);
            assert.equal(await wrapped.end(), 1);
            return wrapped.stderr;
          }),
        );
        for (const stderr of steps) assert.match(stderr, /the fuse sidecar has been silent for 1 s/);
        assert.match(steps[0] as string, /the application was not run/);
        assert.match(steps[1] as string, /ending the application/);
        assert.match(steps[2] as string, /while its uploaddone was waited for/);
        await never.says(/waiting/);
        never.process.kill("SIGKILL");
      });

      it("hears a heart that beats, and bears a sidecar without one that has signalled", async () => {
        const coord = place();
        const wrapped = start(coord, ["-b", "fuse", "--timeout", "2", "--", "sleep", "4"]);
        let beats = 0;
        const beating = setInterval(() => writeFileSync(join(coord, "fusealive"), String(beats++)), 100);
        touch(coord, "mountdone");
        const foreign = place();
        touch(foreign, "mountdone");
        const other = start(foreign, ["-b", "fuse", "--timeout", "2", "--", "sleep", "4"]);
        await Promise.all([wrapped.signals("initupload"), other.signals("initupload")]);
        touch(coord, "uploaddone");
        touch(foreign, "uploaddone");
        assert.deepEqual(await Promise.all([wrapped.end(), other.end()]), [0, 0]);
        clearInterval(beating);
      });

      it("beats while it waits and while the application runs", async () => {
        const coord = place();
        const wrapped = start(coord, ["-b", "fuse", "--", "sleep", "60"]);
        const beat = () => readFileSync(join(coord, "applicationalive"), "utf8");
        const changes = async () => {
          const last = beat();
          await until(
            () => beat() !== last && beat() !== "",
            () => wrapped.stderr,
          );
        };
        await wrapped.signals("applicationalive");
        await changes();
        touch(coord, "mountdone");
        await wrapped.says(/running the application/);
        await changes();
        wrapped.process.kill("SIGTERM");
        assert.equal(await wrapped.end(), 143);
      });

      it("ends the application when it is killed itself", async () => {
        const wrapped = start(place(), ["--", "sh", "-c", "echo $$; exec sleep 60"]);
        await wrapped.says(/^\d+$/m);
        wrapped.process.kill("SIGKILL");
        assert.equal(await wrapped.end(), "SIGKILL");
        const application = Number(wrapped.stdout);
        await until(
          () => !runs(application),
          () => "the application runs on",
        );
        await wrapped.says(/the wrapper was killed; ending the application/);
      });

      it("refuses a coordination directory of an earlier run", async () => {
        const coord = place();
        touch(coord, "initupload");
        const wrapped = start(coord, ["-b", "fuse", "--", "true"]);
        assert.equal(await wrapped.end(), 1);
        assert.match(wrapped.stderr, /holds initupload of an earlier run/);
      });

      it("sleeps instead of ending with -s", async () => {
        const wrapped = start(place(), ["-s", "--", "sh", "-c", "exit 3"]);
        await wrapped.says(/sleeping instead of ending with status 3/);
        await setTimeout(300);
        assert.equal(wrapped.process.exitCode, null);
        wrapped.process.kill("SIGTERM");
        assert.equal(await wrapped.end(), 3);
      });

      it("needs no other programs than it says, and has its files read by all", async () => {
        const [program, ...rest] = shell as [string, ...string[]];
        const bin = mkdtempSync(join(root, "bin-"));
        for (const name of [program, "cat", "date", "mkdir", "mv", "rm", "sleep"])
          symlinkSync(which(name), join(bin, name));
        const coord = place();
        touch(coord, "mountdone");
        const script = 'trap "umask; exit 5" TERM; echo up; while :; do sleep 0.05; done';
        const inner = [join(bin, program), ...rest, "-c", script];
        const mask = process.umask(0o077);
        const options = { shell: [which(program), ...rest], path: bin };
        const wrapped = new Wrapped(coord, ["-b", "fuse", "--", ...inner], options);
        process.umask(mask);
        await wrapped.says(/up/);
        // Without env's --default-signal an application would not hear this one.
        wrapped.process.kill("SIGINT");
        assert.equal(await wrapped.end(), 5);
        assert.match(wrapped.stdout, /^up\n0077$/m);
        assert.doesNotMatch(wrapped.stderr, /not found/);
        assert.equal(statSync(join(coord, "applicationfailed")).mode & 0o777, 0o644);
      });

      it("explains itself", () => {
        const misuse = (args: string[], pattern: RegExp) => {
          const ended = spawnSync(shell[0] as string, [...shell.slice(1), WRAPPER, ...args], { encoding: "utf8" });
          assert.equal(ended.status, 1, args.join(" "));
          assert.match(ended.stderr, pattern);
          assert.match(ended.stderr, /^usage: wrap_application\.sh -c DIR/m);
        };
        misuse(["-b", "fuse", "--", "true"], /coordination directory is missing/);
        misuse(["-c", "/tmp/x", "-b", "mysql", "--", "true"], /no sidecar of the kind mysql/);
        misuse(["-c", "/tmp/x", "--"], /application is missing/);
        misuse(["-c"], /-c needs a value/);
        misuse(["-c", "/tmp/x", "--timeout", "soon", "true"], /number of seconds, not soon/);
        misuse(["-c", "/tmp/x", "--on-failure", "cry", "true"], /discard or upload, not cry/);
        misuse(["-x", "true"], /unknown option -x/);
      });
    });
});
