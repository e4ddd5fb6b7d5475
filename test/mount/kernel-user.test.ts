/** The suite of the kernel channel once more, by a user who is not root. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { it } from "node:test";

const NOBODY = 65534;

/** A mount namespace in which /dev/fuse is open to everybody, as distributions set it up: fusermount3 opens it with the user's own rights. */
const AS_USER = [
  "mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse",
  `exec setpriv --reuid ${NOBODY} --regid ${NOBODY} --clear-groups "$@"`,
].join(" && ");

if (process.getuid?.() === 0) {
  it("passes the suite of mounts as an ordinary user", async (t) => {
    const home = mkdtempSync(join(tmpdir(), "datamon-user-"));
    chmodSync(home, 0o777);
    t.after(() => rmSync(home, { recursive: true, force: true }));
    const { NODE_TEST_CONTEXT: _, ...environment } = process.env;
    const suite = [process.execPath, "--test", join(import.meta.dirname, "kernel.test.ts")];
    const child = spawn("unshare", ["--mount", "sh", "-c", AS_USER, "sh", ...suite], {
      cwd: home,
      env: { ...environment, HOME: home, TMPDIR: home, NODE_COMPILE_CACHE: join(home, "compiled") },
      stdio: ["ignore", "pipe", "inherit"],
    });
    let output = "";
    child.stdout.on("data", (text) => {
      output += text;
    });
    const [status] = await once(child, "close");
    assert.equal(status, 0, output);
  });
}
