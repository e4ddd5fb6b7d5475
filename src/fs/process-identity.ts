/** Telling whether a process that was written down somewhere still runs, in spite of pids being used again. */

import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";

/** A process, told apart from a later one of the same pid by when it started. */
export interface ProcessIdentity {
  readonly pid: number;
  /** In the system's own form: equal or not is all that it tells. */
  readonly started: string;
}

/** This process. */
export async function thisProcess(): Promise<ProcessIdentity> {
  return await processOf(process.pid);
}

/** The process that has this pid now. */
export async function processOf(pid: number): Promise<ProcessIdentity> {
  return { pid, started: (await startOf(pid)) ?? "unknown" };
}

/** True while that very process runs; one that has ended and waits for its parent to notice does not. */
export async function isRunning(identity: ProcessIdentity): Promise<boolean> {
  return (await startOf(identity.pid)) === identity.started;
}

/** When the process started; undefined where there is no such process, or only what is left of it. */
async function startOf(pid: number): Promise<string | undefined> {
  return process.platform === "linux" ? await startFromProc(pid) : await startFromPs(pid);
}

/** Fields 3 (state) and 22 (start time in clock ticks after boot) of proc_pid_stat(5); field 2, in parentheses, may hold anything. */
async function startFromProc(pid: number): Promise<string | undefined> {
  try {
    const text = await readFile(`/proc/${pid}/stat`, "latin1");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" || fields[0] === "X" ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

async function startFromPs(pid: number): Promise<string | undefined> {
  try {
    const { stdout } = await promisify(execFile)("ps", ["-o", "stat=,lstart=", "-p", String(pid)]);
    const [state, ...start] = stdout.trim().split(/\s+/);
    return state === undefined || state.startsWith("Z") ? undefined : start.join(" ");
  } catch {
    return undefined;
  }
}
