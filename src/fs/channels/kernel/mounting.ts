/** Making a mount: mount(2) for root, fusermount3 for everybody else. */

import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { DatamonError, ioError, isErrno } from "../../../cas/index.ts";
import { MS_NODEV, MS_NOSUID, MS_RDONLY, mount, receiveDescriptor, socketPair } from "./libc.ts";

/** The file system type, as the table of mounts shows it after `fuse.`. */
const SUBTYPE = "datamon";

/** What a container has to be given before anything in it can mount. */
const CONTAINER_HINT =
  "In a container, grant it the device and the capability: docker run --device /dev/fuse --cap-add SYS_ADMIN " +
  "--security-opt apparmor:unconfined; in Kubernetes, securityContext.privileged: true.";

export interface MountRequest {
  /** Shown as the mount's device. */
  readonly name: string;
  readonly readOnly: boolean;
  readonly allowOther: boolean;
  /** The kernel is not to check permissions. */
  readonly unchecked?: boolean;
}

/** Mounts on `directory`, an absolute path. Returns the descriptor on which the kernel's requests come. */
export async function mountDirectory(directory: string, request: MountRequest): Promise<number> {
  return process.getuid?.() === 0 ? mountAsRoot(directory, request) : await mountAsUser(directory, request);
}

function mountAsRoot(directory: string, request: MountRequest): number {
  const fd = openDevice(directory);
  const ids = `user_id=${process.getuid?.()},group_id=${process.getgid?.()}`;
  const options = [`fd=${fd}`, "rootmode=40000", ids];
  if (!request.unchecked) options.push("default_permissions");
  if (request.allowOther) options.push("allow_other");
  try {
    // A bundle has no devices; on a writable mount there are those that root made there.
    const flags = MS_NOSUID | (request.readOnly ? MS_NODEV | MS_RDONLY : 0);
    mount(request.name, directory, `fuse.${SUBTYPE}`, flags, options.join(","));
    return fd;
  } catch (error) {
    closeSync(fd);
    if (isErrno(error, "EPERM", "EACCES")) {
      throw new DatamonError("denied", `this process may not mount on ${directory}`, {
        hint: CONTAINER_HINT,
        cause: error,
      });
    }
    if (isErrno(error, "ENODEV")) throw noDevice(directory, error);
    throw ioError(`mount on ${directory}`, error);
  }
}

function openDevice(directory: string): number {
  try {
    return openSync("/dev/fuse", "r+");
  } catch (error) {
    if (isErrno(error, "ENOENT", "ENODEV", "ENXIO")) throw noDevice(directory, error);
    if (isErrno(error, "EPERM", "EACCES")) {
      throw new DatamonError("denied", "cannot open /dev/fuse", { hint: CONTAINER_HINT, cause: error });
    }
    throw ioError("open /dev/fuse", error);
  }
}

function noDevice(directory: string, cause?: unknown): DatamonError {
  return new DatamonError("unsupported", `cannot mount on ${directory}: this machine has no /dev/fuse`, {
    hint: `Load the kernel module: modprobe fuse. ${CONTAINER_HINT}`,
    cause,
  });
}

async function mountAsUser(directory: string, request: MountRequest): Promise<number> {
  // Commas separate options; fusermount3 takes them with a backslash as part of a name.
  const name = request.name.replace(/[\\,]/g, "\\$&");
  const options = [`fsname=${name}`, `subtype=${SUBTYPE}`];
  if (!request.unchecked) options.push("default_permissions");
  options.push("nosuid", "nodev", request.readOnly ? "ro" : "rw");
  if (request.allowOther) options.push("allow_other");
  const [ours, theirs] = socketPair();
  try {
    const outcome = await runFusermount(["-o", options.join(","), "--", directory], theirs);
    if (outcome.status !== 0) throw explain(directory, outcome.errors, request.allowOther);
    const fd = receiveDescriptor(ours);
    if (fd === undefined) throw new DatamonError("io", `fusermount3 gave no descriptor for ${directory}`);
    return fd;
  } finally {
    closeSync(ours);
    closeSync(theirs);
  }
}

/** Runs fusermount3 with its end of the socket; it has ended, and what it sent is waiting, when this resolves. */
async function runFusermount(args: string[], socket: number): Promise<{ status: number | null; errors: string }> {
  return await new Promise((resolve, reject) => {
    const child = spawn("fusermount3", args, {
      // Its own messages are told apart by their English words.
      env: { ...process.env, LC_ALL: "C", _FUSE_COMMFD: "3" },
      stdio: ["ignore", "ignore", "pipe", socket],
    });
    let errors = "";
    child.stderr?.on("data", (text) => {
      errors += text;
    });
    child.on("error", (error) => {
      const missing = isErrno(error, "ENOENT");
      const hint = "Install it (Debian: apt install fuse3), or mount as root.";
      reject(
        missing
          ? new DatamonError("unsupported", "cannot mount as an ordinary user: fusermount3 is not installed", { hint })
          : ioError("start fusermount3", error),
      );
    });
    child.on("close", (status) => resolve({ status, errors: errors.trim() }));
  });
}

/** The failure that fusermount3 told about, by the words it has for each. */
function explain(directory: string, errors: string, allowOther: boolean): DatamonError {
  const message = `cannot mount on ${directory}: ${errors || "fusermount3 failed"}`;
  if (allowOther && /user_allow_other/.test(errors)) {
    return new DatamonError("denied", message, {
      hint: "Ask the administrator for a line user_allow_other in /etc/fuse.conf, or leave --allow-other away.",
    });
  }
  if (/fuse device not found|kernel module|no such device/i.test(errors)) return noDevice(directory);
  if (/too many FUSE filesystems/i.test(errors)) {
    return new DatamonError("denied", message, { hint: "Unmount one, or raise mount_max in /etc/fuse.conf." });
  }
  if (/user has no write access|not owned|sticky|bad mount point/i.test(errors)) {
    return new DatamonError("denied", message, { hint: "Mount on a directory of your own." });
  }
  const hint = `fusermount3 must be setuid root and /dev/fuse open to you (mode 0666). ${CONTAINER_HINT}`;
  if (/permi(tted|ssion)/i.test(errors)) return new DatamonError("denied", message, { hint });
  return new DatamonError("io", message, { hint });
}
