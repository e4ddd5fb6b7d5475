/** The Linux channel: the FUSE protocol spoken directly on /dev/fuse. */

import { closeSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { DatamonError } from "../../../cas/index.ts";
import { detach, isMounted, type MountPoint, mountedAt } from "../../mount-table.ts";
import type { OpenMode, OpenModeChoice } from "../../open-mode.ts";
import type { Supervision } from "../../supervision/supervision.ts";
import type { Channel, ChannelCounts, ChannelOptions } from "../channel.ts";
import { mountDirectory } from "./mounting.ts";
import { Server } from "./server.ts";

/** Read-ahead of a mount, in KiB: one request of the largest size. The kernel's own 128 slows sequential reads down by a third. */
const READ_AHEAD_KB = 1024;

/**
 * Mounts `options.directory` through the kernel's own protocol, or takes over the mount that is there
 * and whose daemon died. Throws `DatamonError`.
 */
export async function openKernel(options: ChannelOptions): Promise<Channel> {
  if (process.platform !== "linux") {
    throw new DatamonError("unsupported", "the kernel channel needs Linux", { hint: "Use --channel fuse-native." });
  }
  const { directory, supervision } = options;
  const server = new Server(options);
  try {
    await server.opened;
    if (supervision?.inherited !== undefined) {
      const { point } = supervision.inherited.mount;
      server.serve(supervision.device, point);
      const { openMode } = await server.started;
      return new KernelChannel(point, server, supervision, agreedMode(options.openMode, openMode));
    }
    const fd = await mountDirectory(directory, {
      name: options.name,
      readOnly: options.spec.kind === "snapshot",
      allowOther: options.allowOther === true,
      unchecked: options.unchecked === true,
    });
    const mount = await mountedAt(directory);
    if (mount === undefined) {
      closeSync(fd);
      throw new DatamonError("io", `the mount on ${directory} went away at once`);
    }
    server.serve(fd, mount);
    const session = await server.started;
    await raiseReadAhead(mount);
    await supervision?.share(fd, session, mount);
    return new KernelChannel(mount, server, supervision, agreedMode(options.openMode, session.openMode));
  } catch (error) {
    await server.abandon();
    throw error;
  }
}

class KernelChannel implements Channel {
  readonly openMode: OpenModeChoice;
  readonly closed: Promise<void>;
  readonly #mount: MountPoint;
  readonly #server: Server;
  readonly #supervision: Supervision | undefined;

  constructor(mount: MountPoint, server: Server, supervision: Supervision | undefined, openMode: OpenModeChoice) {
    this.openMode = openMode;
    this.#mount = mount;
    this.#server = server;
    this.#supervision = supervision;
    this.closed = server.closed.then(async () => {
      // A worker that died leaves a mount that fails every call.
      if (await isMounted(mount)) await detach(mount.directory, { lazy: true }).catch(() => {});
    });
  }

  async unmount(options: { lazy?: boolean } = {}): Promise<void> {
    if (options.lazy) {
      this.#supervision?.ending();
      await this.#server.abandon();
    } else if (await isMounted(this.#mount)) {
      try {
        await detach(this.#mount.directory);
      } catch (error) {
        // Somebody else may have been quicker.
        if (await isMounted(this.#mount)) throw error;
      }
    }
    await this.closed;
  }

  async freeze(): Promise<boolean> {
    return await this.#server.freeze();
  }

  async rebase(catalog: string | undefined, bundle: string | undefined): Promise<boolean> {
    return await this.#server.rebase(catalog, bundle);
  }

  counts(): ChannelCounts {
    return this.#server.counts();
  }
}

/** What was asked for, or what the kernel took instead. */
function agreedMode(asked: OpenModeChoice, mode: OpenMode): OpenModeChoice {
  return mode === asked.mode ? asked : { mode, reason: `this kernel does not offer ${asked.mode}` };
}

/** Only root may, and not in every container; the mount is the same without, only slower. */
async function raiseReadAhead(mount: MountPoint): Promise<void> {
  if (process.getuid?.() !== 0) return;
  await writeFile(`/sys/class/bdi/${mount.device}/read_ahead_kb`, String(READ_AHEAD_KB)).catch(() => {});
}
