/** A thread that kills at a moment of its own while the main thread waits in a call. */

import { setTimeout } from "node:timers/promises";
import { parentPort } from "node:worker_threads";
import { killDaemon, killTree } from "./supervised-mount.ts";

/** Whom to kill, and when. */
export interface KillOrder {
  readonly supervisor: number;
  readonly both: boolean;
  /** In milliseconds. */
  readonly delay: number;
}

parentPort?.on("message", async ({ supervisor, both, delay }: KillOrder) => {
  await setTimeout(delay);
  if (both) killTree(supervisor);
  else killDaemon(supervisor);
  parentPort?.postMessage("killed");
});
