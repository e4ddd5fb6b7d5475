/**
 * The portable channel: libfuse 2 through the npm package `fuse-native`. Limits that lie in the
 * package and in libfuse's path interface, and cannot be mended here:
 *
 * - Names are handed over as decoded strings: an entry whose name is not UTF-8 is listed with U+FFFD
 *   in its name and cannot be opened; making one fails with EILSEQ.
 * - Times are in milliseconds and not before 1970. A change of only one of a file's two times is
 *   taken by libfuse and goes nowhere.
 * - Inode numbers are shown modulo 2^32.
 * - It does not say who makes a request: with `allowOther`, new files belong to the daemon's user.
 * - Two names of one file are two files to the kernel: what is written through one may be read
 *   stale through the other while both are open.
 * - `fallocate`, `SEEK_HOLE` and rename with flags are refused by the kernel.
 * - A file open by a name removed meanwhile is lost when the directory it stood in is removed too.
 * - It mounts over no directory that is a mount point itself.
 */

import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";
import { promisify } from "node:util";
import { DiskCache, Readahead } from "../../../cache/index.ts";
import { DatamonError, ioError, isErrno } from "../../../cas/index.ts";
import { detach, isMounted, type MountPoint, mountedAt } from "../../mount-table.ts";
import { openNamespace } from "../../namespace.ts";
import type { OpenModeChoice } from "../../open-mode.ts";
import { CatalogOutlook } from "../../outlook.ts";
import type { Channel, ChannelCounts, ChannelOptions } from "../channel.ts";
import { Meter } from "../meter.ts";
import { createMount, type FuseMount, type Operations } from "./binding.ts";
import { MAX_REQUEST, operationsOf, type Served } from "./operations.ts";

/** How often the table of mounts is looked at, in milliseconds: the package does not tell that a mount ended. */
const WATCH_INTERVAL = 200;

/** Lifetime of names and attributes that nobody but the kernel changes, in seconds. */
const FOREVER = 1_000_000;

/** Mounts `options.directory` through `fuse-native`. Throws `DatamonError`, "unsupported" where the package or libfuse is missing. */
export async function openFuseNative(options: ChannelOptions): Promise<Channel> {
  const namespace = openNamespace(options.spec);
  const outlook = CatalogOutlook.open(options.spec);
  const served: { -readonly [Part in keyof Served]: Served[Part] } = {
    namespace,
    cache: undefined,
    fetcher: options.fetcher,
    readahead: outlook && new Readahead(options.fetcher, outlook),
    caller: { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, pid: 0 },
    closed: false,
    reading: new Set(),
    onError: (request, path, error) => options.onError(request, path, error),
  };
  const close = () => {
    served.closed = true;
    namespace.close();
    outlook?.close();
    served.cache?.close();
  };
  try {
    served.cache = DiskCache.open(
      options.cacheDirectory,
      options.cacheSize === undefined ? {} : { sizeLimit: options.cacheSize },
    );
    const operations = new Metered(operationsOf(served));
    const { stats } = served.cache;
    const counts = () => ({ requests: operations.counts(), diskHits: stats.hits, memoryHits: 0 });
    const fuse = createMount(options.directory, operations.metered, {
      timeout: false,
      fsname: mountOptions(options.name, namespace.writable),
      defaultPermissions: options.unchecked !== true,
      allowOther: options.allowOther === true,
      maxRead: MAX_REQUEST,
    });
    const rebase = async (catalog: string | undefined, bundle: string | undefined): Promise<boolean> => {
      const reading = [...served.reading];
      const retire = namespace.rebase(catalog, bundle);
      if (retire !== undefined) void Promise.allSettled(reading).then(retire);
      return retire !== undefined;
    };
    const layers = { freeze: async () => namespace.freeze(), rebase };
    return new FuseNativeChannel(await openMount(fuse, options), fuse, close, options.openMode, counts, layers);
  } catch (error) {
    close();
    throw error;
  }
}

/** Mounts, and waits until the mount answers. */
async function openMount(fuse: FuseMount, { directory, allowOther }: ChannelOptions): Promise<MountPoint> {
  try {
    await promisify(fuse.open.bind(fuse))();
  } catch (error) {
    throw await explainMounting(directory, allowOther === true, error as Error);
  }
  try {
    await stat(directory);
    const mount = await mountedAt(directory);
    if (mount === undefined) throw new Error("it was unmounted at once");
    return mount;
  } catch (error) {
    await detach(directory, { lazy: true }).catch(() => {});
    throw ioError(`mount ${directory}`, error);
  }
}

/** libfuse tells on stderr why it did not mount, and the package nothing but that it did not. */
async function explainMounting(directory: string, allowOther: boolean, error: Error): Promise<DatamonError> {
  if (error.message === "Mountpoint in use") {
    return new DatamonError("unsupported", `cannot mount ${directory}: something is mounted there already`, {
      hint: "Choose a directory below it, or leave --channel away.",
      cause: error,
    });
  }
  const device =
    process.platform === "linux"
      ? await access("/dev/fuse", constants.R_OK | constants.W_OK).catch((why) => why)
      : undefined;
  if (isErrno(device, "ENOENT")) {
    return new DatamonError("unsupported", `cannot mount ${directory}: there is no /dev/fuse`, {
      hint: "Load the fuse kernel module (modprobe fuse); a container must be given the device.",
      cause: error,
    });
  }
  if (device !== undefined) {
    return new DatamonError("denied", `cannot mount ${directory}: /dev/fuse may not be opened`, {
      hint: "Open it to everybody (chmod 666 /dev/fuse), or mount as root.",
      cause: device,
    });
  }
  return new DatamonError("denied", `cannot mount ${directory}: ${error.message}`, {
    hint:
      allowOther && process.getuid?.() !== 0
        ? "--allow-other needs the line user_allow_other in /etc/fuse.conf."
        : "Without root, the fuse3 package must be installed and the directory be your own; in a container, root needs CAP_SYS_ADMIN.",
    cause: error,
  });
}

/** Operations that count how often each is asked for, and how long it takes. */
class Metered {
  readonly metered: Operations;
  readonly #names: readonly string[];
  readonly #meter: Meter;

  constructor(operations: Operations) {
    const entries = Object.entries(operations) as [string, (...args: unknown[]) => void][];
    this.#names = entries.map(([name]) => name);
    this.#meter = new Meter(entries.length);
    const metered = entries.map(([name, operation], kind) => [name, this.#count(kind, operation)]);
    this.metered = Object.fromEntries(metered) as Operations;
  }

  counts(): ChannelCounts["requests"] {
    return this.#names
      .map((request, kind) => ({ request, ...this.#meter.latencies(kind) }))
      .filter(({ count }) => count > 0);
  }

  /** The last argument of every operation takes its answer. */
  #count(kind: number, operation: (...args: unknown[]) => void): (...args: unknown[]) => void {
    return (...args) => {
      const began = performance.now();
      const done = args.pop() as (...answer: unknown[]) => void;
      operation(...args, (...answer: unknown[]) => {
        this.#meter.note(kind, performance.now() - began);
        done(...answer);
      });
    };
  }
}

class FuseNativeChannel implements Channel {
  readonly openMode: OpenModeChoice;
  readonly closed: Promise<void>;
  readonly counts: () => ChannelCounts;
  readonly freeze: Channel["freeze"];
  readonly rebase: Channel["rebase"];
  readonly #mount: MountPoint;
  readonly #fuse: FuseMount;
  readonly #close: () => void;
  #gone = false;
  #resolveClosed!: () => void;

  constructor(
    mount: MountPoint,
    fuse: FuseMount,
    close: () => void,
    openMode: OpenModeChoice,
    counts: () => ChannelCounts,
    { freeze, rebase }: Pick<Channel, "freeze" | "rebase">,
  ) {
    this.freeze = freeze;
    this.rebase = rebase;
    this.counts = counts;
    this.openMode = openMode;
    this.#mount = mount;
    this.#fuse = fuse;
    this.#close = close;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    void this.#watch();
  }

  async unmount(options: { lazy?: boolean } = {}): Promise<void> {
    try {
      if (!this.#gone) await detach(this.#mount.directory, options);
    } catch (error) {
      // Somebody else was quicker.
      if (await this.#isMounted()) throw error;
    }
    await this.#endIfGone();
    await this.closed;
  }

  async #watch(): Promise<void> {
    while (!this.#gone) {
      await setTimeout(WATCH_INTERVAL);
      await this.#endIfGone();
    }
  }

  async #endIfGone(): Promise<void> {
    if (this.#gone || (await this.#isMounted()) || this.#gone) return;
    this.#gone = true;
    this.#close();
    // Nothing is left to unmount: this lets go of the event loop.
    this.#fuse.close(() => this.#resolveClosed());
  }

  /** A table of mounts that cannot be read just now, for want of descriptors, says nothing. */
  async #isMounted(): Promise<boolean> {
    return await isMounted(this.#mount).catch(() => true);
  }
}

/**
 * The package passes on only the options it lists, but puts `fsname` into the list as it stands, so
 * that the others can follow it. Commas and backslashes of the name itself are escaped.
 *
 * A writable tree gives attributes no lifetime: libfuse takes the names of a hard-linked file for
 * different files and would show one name's old size after a write through the other.
 */
function mountOptions(name: string, writable: boolean): string {
  const common = [
    "subtype=datamon",
    "use_ino",
    "big_writes",
    `entry_timeout=${FOREVER}`,
    `negative_timeout=${FOREVER}`,
  ];
  const own = writable ? ["attr_timeout=0"] : ["ro", "kernel_cache", `attr_timeout=${FOREVER}`];
  return [name.replace(/[\\,]/g, "\\$&"), ...common, ...own].join(",");
}
