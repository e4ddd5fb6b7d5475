/** The Linux channel: the FUSE protocol spoken directly on /dev/fuse. */

import { closeSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { DatamonError } from "../../../cas/index.ts";
import { detach, isMounted, type MountPoint, mountedAt } from "../../mount-table.ts";
import type { Channel, ChannelOptions } from "../channel.ts";
import { mountDirectory } from "./mounting.ts";
import { Server } from "./server.ts";

/** Read-ahead of a mount, in KiB: one request of the largest size. The kernel's own 128 slows sequential reads down by a third. */
const READ_AHEAD_KB = 1024;

/** Mounts `options.directory` through the kernel's own protocol. Throws `DatamonError`. */
export async function openKernel(options: ChannelOptions): Promise<Channel> {
  if (process.platform !== "linux") {
    throw new DatamonError("unsupported", "the kernel channel needs Linux", { hint: "Use --channel fuse-native." });
  }
  const { directory } = options;
  const server = new Server(options);
  try {
    await server.opened;
    const fd = await mountDirectory(directory, {
      name: options.name,
      readOnly: options.spec.kind === "snapshot",
      allowOther: options.allowOther === true,
    });
    const mount = await mountedAt(directory);
    if (mount === undefined) {
      closeSync(fd);
      throw new DatamonError("io", `the mount on ${directory} went away at once`);
    }
    server.serve(fd, mount);
    await server.started;
    await raiseReadAhead(mount);
    return new KernelChannel(mount, server);
  } catch (error) {
    await server.abandon();
    throw error;
  }
}

class KernelChannel implements Channel {
  readonly closed: Promise<void>;
  readonly #mount: MountPoint;
  readonly #server: Server;

  constructor(mount: MountPoint, server: Server) {
    this.#mount = mount;
    this.#server = server;
    this.closed = server.closed.then(async () => {
      // A worker that died leaves a mount that fails every call.
      if (await isMounted(mount)) await detach(mount.directory, { lazy: true }).catch(() => {});
    });
  }

  async unmount(options: { lazy?: boolean } = {}): Promise<void> {
    if (options.lazy) await this.#server.abandon();
    else if (await isMounted(this.#mount)) {
      try {
        await detach(this.#mount.directory);
      } catch (error) {
        // Somebody else may have been quicker.
        if (await isMounted(this.#mount)) throw error;
      }
    }
    await this.closed;
  }
}

/** Only root may, and not in every container; the mount is the same without, only slower. */
async function raiseReadAhead(mount: MountPoint): Promise<void> {
  if (process.getuid?.() !== 0) return;
  await writeFile(`/sys/class/bdi/${mount.device}/read_ahead_kb`, String(READ_AHEAD_KB)).catch(() => {});
}
