import { setTimeout } from "node:timers/promises";
import { DatamonError } from "../cas/index.ts";
import type { Log } from "./log.ts";

/** Seconds: ten less than what Kubernetes gives a pod, which are left for keeping changes. */
export const DEFAULT_GRACE = 20;

/** Seconds without a heartbeat, which comes every two, after which a sidecar that was asked to end takes the application for ended. */
export const ENDED_SILENCE = 6;

/** A signal asked this process to end. */
export class TerminatedError extends DatamonError {
  /** As a shell would give it: 128 and the signal's number. */
  readonly status: number;

  constructor(name: "SIGTERM" | "SIGINT" | "SIGHUP") {
    super("interrupted", `ended by ${name}`);
    this.status = 128 + { SIGTERM: 15, SIGINT: 2, SIGHUP: 1 }[name];
  }
}

/**
 * Listens for the signals that ask a container to end; from then on they do not end this process by
 * themselves.
 *
 * @returns a signal that is aborted with a `TerminatedError` by the first of them
 */
export function listenForTermination(log: Log): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    process.on(name, () => {
      log(controller.signal.aborted ? `${name} again; ending as soon as what is under way is safe` : `got ${name}`);
      controller.abort(new TerminatedError(name));
    });
  }
  return controller.signal;
}

/** Sleeps until a signal asks this process to end, for whoever wants to look around in its container. */
export async function sleepInsteadOfEnding(status: number, termination: AbortSignal, log: Log): Promise<void> {
  if (termination.aborted) return;
  log(`sleeping instead of ending with status ${status}, until SIGTERM comes`);
  while (!termination.aborted) await setTimeout(3_600_000, undefined, { signal: termination }).catch(() => undefined);
}
