import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, it } from "node:test";
import { isRunning, thisProcess } from "../../src/fs/process-identity.ts";

describe("the identity of a process", () => {
  it("holds while the process runs", async () => {
    assert.equal(await isRunning(await thisProcess()), true);
  });

  it("is not that of another process with the same pid", async () => {
    assert.equal(await isRunning({ ...(await thisProcess()), started: "earlier" }), false);
  });

  it("ends with the process, also where nobody has taken note of its end", async (t) => {
    // The shell starts a process, tells who that is, and turns into one that never asks for its children.
    const shell = spawn("sh", ["-c", "sleep 60 & cat /proc/$!/stat; exec sleep 60"], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    t.after(() => shell.kill("SIGKILL"));
    const [stat] = (await once(shell.stdout, "data")) as [Buffer];
    const fields = String(stat).split(" ");
    const identity = { pid: Number(fields[0]), started: String(fields[21]) };
    assert.equal(await isRunning(identity), true);
    process.kill(identity.pid, "SIGKILL");
    while (await isRunning(identity)) await new Promise(setImmediate);
    process.kill(identity.pid, 0);
  });
});
