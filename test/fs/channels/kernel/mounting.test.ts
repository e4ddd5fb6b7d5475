/** How mounting fails, in the environments in which it does. They can only be made by root. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chownSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";

const NOBODY = 65534;

interface Outcome {
  code: string;
  message: string;
  hint?: string;
}

/** Runs the child by `command`, a prefix such as a program that takes rights away. */
async function attempt(
  t: TestContext,
  command: string[],
  options: { user?: boolean; path?: string; allowOther?: boolean } = {},
): Promise<Outcome> {
  const directory = mkdtempSync(join(tmpdir(), "datamon-mounting-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  chownSync(directory, NOBODY, NOBODY);
  const script = join(import.meta.dirname, "mount-child.ts");
  const [program = "", ...args] = [...command, process.execPath, script, directory];
  const child = spawn(program, options.allowOther ? [...args, "other"] : args, {
    env: { ...process.env, PATH: options.path ?? process.env.PATH },
    stdio: ["ignore", "pipe", "inherit"],
    ...(options.user && { uid: NOBODY, gid: NOBODY }),
  });
  let output = "";
  child.stdout.on("data", (text) => {
    output += text;
  });
  await once(child, "close");
  return JSON.parse(output) as Outcome;
}

/** A prefix that runs a program as an ordinary user who sees /dev/fuse with other permissions. */
function asUserWithDevice(mode: string): string[] {
  const device = `mount -t tmpfs none /mnt && mknod -m ${mode} /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse`;
  const drop = `exec setpriv --reuid ${NOBODY} --regid ${NOBODY} --clear-groups "$@"`;
  return ["unshare", "--mount", "sh", "-c", `${device} && ${drop}`, "sh"];
}

if (process.getuid?.() === 0) {
  describe("mounting", () => {
    it("works where nothing is missing", async (t) => {
      assert.deepEqual(await attempt(t, []), { code: "mounted" });
    });

    it("says what to grant where root may not mount", async (t) => {
      const outcome = await attempt(t, ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]);
      assert.equal(outcome.code, "denied");
      assert.match(outcome.hint ?? "", /--cap-add SYS_ADMIN/);
    });

    it("says so where there is no device", async (t) => {
      const emptyDev = 'mount -t tmpfs none /dev && exec "$@"';
      const outcome = await attempt(t, ["unshare", "--mount", "sh", "-c", emptyDev, "sh"]);
      assert.equal(outcome.code, "unsupported");
      assert.match(outcome.message, /no \/dev\/fuse/);
      assert.match(outcome.hint ?? "", /modprobe fuse.*--device \/dev\/fuse/);
    });

    it("says so where fusermount3 is missing", async (t) => {
      const outcome = await attempt(t, [], { user: true, path: "/nonexistent" });
      assert.equal(outcome.code, "unsupported");
      assert.match(outcome.hint ?? "", /apt install fuse3/);
    });

    it("says so where a user may not open the device", async (t) => {
      const outcome = await attempt(t, asUserWithDevice("600"));
      assert.equal(outcome.code, "denied");
      assert.match(outcome.hint ?? "", /0666/);
    });

    it("says so where others may not be let in", async (t) => {
      const outcome = await attempt(t, asUserWithDevice("666"), { allowOther: true });
      // Where the administrator allows it, nothing fails.
      const allowed = /^\s*user_allow_other/m.test(readFileSync("/etc/fuse.conf", "utf8"));
      assert.equal(outcome.code, allowed ? "mounted" : "denied");
      if (!allowed) assert.match(outcome.hint ?? "", /user_allow_other in \/etc\/fuse\.conf/);
    });
  });
}
