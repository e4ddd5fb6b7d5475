import { createHmac, randomBytes } from "node:crypto";
import { fstatSync, readFileSync } from "node:fs";
import { getEnvironmentData, setEnvironmentData } from "node:worker_threads";

const SECRET = "datamon cache secret";
let bootId: string | undefined;

/**
 * What a file is known by while it does not change: the machine's run, inode, size and times. A stamp
 * ends with the run, since what was not yet on the disk when the machine stopped may be missing.
 */
export function stampOf(fd: number): string {
  bootId ??= readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
  const { dev, ino, size, mtimeNs, ctimeNs } = fstatSync(fd, { bigint: true });
  return [bootId, dev, ino, size, mtimeNs, ctimeNs].join(":");
}

/** A stamp that only the threads of this process can make, for where others could write one, too. */
export function sealed(name: string, stamp: string): string {
  let secret = getEnvironmentData(SECRET) as string | undefined;
  if (secret === undefined) {
    secret = randomBytes(32).toString("hex");
    // Threads that are started from now on have it.
    setEnvironmentData(SECRET, secret);
  }
  return `${stamp}:${createHmac("sha256", secret).update(`${name}\n${stamp}`).digest("hex")}`;
}
