/** Whatever an overlay has acknowledged is there after its process was killed. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { bytesOf } from "../../src/cas/index.ts";
import { OverlayNamespace } from "../../src/fs/overlay/overlay.ts";
import { noise, outcome, ROOT_USER, resolve, World } from "./fixture.ts";
import { BASE_SIZE, check } from "./overlay-crash-steps.ts";

const KILLS = 6;

test("SIGKILL at random moments, again and again on one scratch", async () => {
  const world = await World.open();
  try {
    const content = noise(BASE_SIZE, 77);
    const bundle = await world.bundle([{ path: "base", kind: "file", content }]);
    const catalog = await world.catalog(bundle);
    const directory = join(world.directory, "scratch");
    mkdirSync(directory);
    let done = 0;
    for (let kill = 0; kill < KILLS; kill++) {
      const wanted = 1 + Math.floor(Math.random() * 200);
      done += await workUntil([directory, catalog, bundle.id, String(done)], wanted);
      const namespace = OverlayNamespace.open(directory, catalog, bundle.id);
      await check(world, namespace, content, done);
      clear(namespace, done);
      namespace.close();
    }
  } finally {
    await world.close();
  }
});

/** Lets a child work until `wanted` steps are heard of, kills it, and returns how many it had said to be done. */
async function workUntil(given: string[], wanted: number): Promise<number> {
  const program = fileURLToPath(new URL("overlay-crash-child.ts", import.meta.url));
  const child = spawn(process.execPath, [program, ...given], { stdio: ["ignore", "pipe", "inherit"] });
  let heard = 0;
  child.stdout!.on("data", (bytes: Buffer) => {
    heard += bytes.length;
    if (heard >= wanted) child.kill("SIGKILL");
  });
  const [, signal] = await once(child, "close");
  assert.equal(signal, "SIGKILL");
  return heard;
}

/** Removes what a step that was cut short has left, so that the next child can do it again. */
function clear(namespace: OverlayNamespace, number: number): void {
  const directory = `d${number - (number % 10)}`;
  const remove = (parent: number, name: string): void => {
    if (outcome(() => namespace.lookup(parent, bytesOf(name))) === "ok") namespace.unlink(parent, bytesOf(name));
  };
  if (outcome(() => resolve(namespace, directory)) !== "ok") return;
  const { ino } = resolve(namespace, directory);
  for (const name of ["draft", `f${number}`]) remove(ino, name);
  remove(1, `l${number}`);
  if (number % 10 === 5 && outcome(() => resolve(namespace, `${directory}/f${number - 1}`)) !== "ok") {
    // The step unlinks it: it has to be there once more.
    namespace.create(ino, bytesOf(`f${number - 1}`), 0o600, ROOT_USER);
  }
  if (number % 10 === 0) namespace.rmdir(1, bytesOf(directory));
}
