/** The seam between a mount and what carries the kernel's requests to its namespace. */

import type { Fetcher } from "../../cache/index.ts";
import type { NamespaceSpec } from "../namespace.ts";
import type { OpenModeChoice } from "../open-mode.ts";
import type { Supervision } from "../supervision/supervision.ts";
import type { Latencies } from "./meter.ts";

/** `kernel`: Linux, the FUSE protocol spoken directly. `fuse-native`: libfuse through the npm package of that name. */
export type ChannelKind = "kernel" | "fuse-native";

export interface ChannelOptions {
  /** Where to mount: a path that `prepareDirectory` returned. */
  readonly directory: string;
  readonly spec: NamespaceSpec;
  readonly cacheDirectory: string;
  /** Limit of the disk cache in bytes. */
  readonly cacheSize?: number | undefined;
  /** Shown as the mount's device, such as `datamon:repo@bundle`. */
  readonly name: string;
  /** Other users than the one who mounts see it too, each with the permissions that its files give. */
  readonly allowOther?: boolean | undefined;
  /** Every user may do everything with all files, whatever their owners and modes say; with `allowOther` only. */
  readonly unchecked?: boolean | undefined;
  /** How files are to be opened. */
  readonly openMode: OpenModeChoice;
  /** Where reads go whose content is not on this machine. */
  readonly fetcher: Fetcher;
  /** The supervisor of this process, which has another one take the mount over; of channels that can do so. */
  readonly supervision?: Supervision | undefined;
  /** Told of each failure that is not part of a file system's normal life; `subject` is an inode or path. */
  onError(request: string, subject: string, error: unknown): void;
}

/** What came of a channel's requests since it was opened. Reads that the kernel answers by itself are not among them. */
export interface ChannelCounts {
  /** By the channel's own names of its requests; those that came. */
  readonly requests: readonly (Latencies & { readonly request: string })[];
  /** Slices of blobs that were on disk when they were asked for. */
  readonly diskHits: number;
  /** Reads that were answered from memory without the main thread. */
  readonly memoryHits: number;
}

/** A mount that is served. */
export interface Channel {
  /** How files are opened, which is not always as it was asked. */
  readonly openMode: OpenModeChoice;
  /** Resolves when the mount is gone, however it went, and the namespace is closed. */
  readonly closed: Promise<void>;
  /**
   * Takes the mount away and waits for `closed`. DatamonError "conflict" where the mount is in use;
   * with `lazy` it goes all the same, and what is open in it fails from then on.
   */
  unmount(options?: { lazy?: boolean }): Promise<void>;
  /**
   * Freezes a writable namespace (`Namespace.freeze`) while nobody changes anything: false where
   * nothing had been changed. DatamonError "io" where those who write could not be stopped, and when the mount is gone.
   */
  freeze(): Promise<boolean>;
  /** Puts a bundle in the place of what is frozen (`Namespace.rebase`); false where that cannot be done yet. */
  rebase(catalog: string | undefined, bundle: string | undefined): Promise<boolean>;
  counts(): ChannelCounts;
}

/** Mounts; resolves when the mount answers. Throws `DatamonError`. */
export async function openChannel(kind: ChannelKind, options: ChannelOptions): Promise<Channel> {
  if (kind === "kernel") {
    const { openKernel } = await import("./kernel/channel.ts");
    return await openKernel(options);
  }
  const { openFuseNative } = await import("./fuse-native/index.ts");
  return await openFuseNative(options);
}
