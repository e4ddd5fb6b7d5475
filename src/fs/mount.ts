/** The life of one mount, from the bundle's catalog to the commit: what its daemon does. */

import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout } from "node:timers/promises";
import { DiskCache, Fetcher } from "../cache/index.ts";
import { DatamonError } from "../cas/index.ts";
import { type Bundle, type Context, fetchCatalog, getRepo, newestBundle, resolveBundle } from "../meta/index.ts";
import { type Channel, type ChannelKind, openChannel } from "./channels/channel.ts";
import { commitScratch } from "./commit.ts";
import { type MountDirectory, prepareDirectory } from "./mount-directory.ts";
import { type MountLog, openMountLog } from "./mount-log.ts";
import {
  createRecordDirectory,
  failureOf,
  logFile,
  type MountRecord,
  removeRecord,
  removeSettled,
  writeRecord,
} from "./mount-record.ts";
import type { NamespaceSpec } from "./namespace.ts";
import { thisProcess } from "./process-identity.ts";
import { createScratch, discardScratch, type Scratch } from "./scratch.ts";

/** What to mount, where and how. */
export interface MountOptions {
  readonly repo: string;
  /** Which of its bundles; the newest where neither is given. */
  readonly ref?: { readonly bundle?: string; readonly label?: string };
  /** Where: an empty directory, made where it is missing. */
  readonly directory: string;
  /** Writable: what is changed becomes a new bundle when the mount ends. A repo without bundles starts empty. */
  readonly rw?: boolean;
  /** Writable, and empty at first whatever bundles there are. */
  readonly empty?: boolean;
  /** Message of the new bundle. */
  readonly message?: string;
  /** Label to set to the new bundle. */
  readonly label?: string;
  /** Directory for what is this user's: records of mounts and scratches go below it. */
  readonly home: string;
  readonly cacheDirectory: string;
  /** Limit of the disk cache in bytes. */
  readonly cacheSize?: number;
  /** `kernel` on Linux where nothing is said, `fuse-native` elsewhere. */
  readonly channel?: ChannelKind;
  readonly allowOther?: boolean;
  /** Id of a record directory that is there already; a new one is made otherwise. */
  readonly id?: string;
}

/** Told how a mount fares. */
export interface MountEvents {
  /** The mount answers. Where this throws, the mount is taken away again. */
  onReady?(record: MountRecord): void | Promise<void>;
  /** A writable mount ended and its changes are being committed. */
  onCommit?(): void;
}

/** How a mount ended: `committed` with the new bundle, `unchanged` where nothing was to be committed. */
export type MountOutcome =
  | { readonly kind: "unmounted" }
  | { readonly kind: "unchanged" }
  | { readonly kind: "committed"; readonly bundle: string };

/**
 * Mounts a bundle and serves it until it is unmounted, by whatever means, or until SIGINT, SIGTERM or
 * SIGHUP, which unmount it, in use or not. A writable mount is then committed, which only a SIGINT
 * stops. Throws `DatamonError`; changes that could not be committed are kept in a scratch that the error names.
 */
export async function runMount(
  context: Context,
  options: MountOptions,
  events: MountEvents = {},
): Promise<MountOutcome> {
  const id = options.id ?? (await createRecordDirectory(options.home));
  const log = await openMountLog(logFile(options.home, id));
  const signals = new StopSignals();
  let mount: Mount | undefined;
  try {
    mount = await openMount(context, options, id, signals, log);
    log.info(`mounted ${mount.record.directory}`);
    try {
      await events.onReady?.(mount.record);
    } catch (error) {
      log.error("nobody waits for this mount any more", error);
      signals.stop("SIGHUP");
    }
    await serveUntilGone(mount.channel, signals, log);
    log.info("unmounted");
    return await finish(context, options, mount, events, signals, log);
  } catch (error) {
    log.error("failed", error);
    if (mount === undefined && options.id === undefined) await removeRecord(options.home, id);
    throw error;
  } finally {
    signals.release();
    log.close();
  }
}

interface Mount {
  record: MountRecord;
  readonly directory: MountDirectory;
  readonly channel: Channel;
  readonly cache: DiskCache;
  readonly fetcher: Fetcher;
  readonly scratch: Scratch | undefined;
}

async function openMount(
  context: Context,
  options: MountOptions,
  id: string,
  signals: StopSignals,
  log: MountLog,
): Promise<Mount> {
  const bundle = await findBase(context, options);
  const writable = options.rw === true || options.empty === true;
  const kind = options.channel ?? (process.platform === "linux" ? "kernel" : "fuse-native");
  const cacheDirectory = resolve(options.cacheDirectory);
  await mkdir(cacheDirectory, { recursive: true });
  const catalog = bundle && (await fetchCatalog(context, bundle.catalog, join(cacheDirectory, "catalogs")));
  // Until here a signal may end the process as ever: there is nothing to be put back.
  signals.listen();
  const undo: Array<() => unknown> = [];
  try {
    const directory = await prepareDirectory(options.directory);
    undo.push(() => directory.restore());
    await removeSettled(options.home, directory.path);
    const scratch = writable
      ? await createScratch(join(options.home, "scratch"), {
          repo: options.repo,
          ...(bundle !== undefined && { base: { bundle: bundle.id, catalog: bundle.catalog } }),
          directory: directory.path,
          ...(options.message !== undefined && { message: options.message }),
          ...(options.label !== undefined && { label: options.label }),
        })
      : undefined;
    if (scratch !== undefined) undo.push(() => discardScratch(scratch));
    const cache = DiskCache.open(
      cacheDirectory,
      options.cacheSize === undefined ? {} : { sizeLimit: options.cacheSize },
    );
    undo.push(() => cache.close());
    const fetcher = new Fetcher(context.blobs, cache);
    undo.push(() => fetcher.close());
    const record: MountRecord = {
      id,
      repo: options.repo,
      ...(bundle !== undefined && { bundle: bundle.id, bundleTime: bundle.timestamp.toISOString() }),
      ...(options.ref?.label !== undefined && { label: options.ref.label }),
      mode: writable ? "rw" : "ro",
      directory: directory.path,
      channel: kind,
      daemon: await thisProcess(),
      since: new Date().toISOString(),
      ...(scratch !== undefined && { scratch: scratch.id }),
      cacheDirectory,
      state: "starting",
    };
    await writeRecord(options.home, record);
    const channel = await openChannel(kind, {
      directory: directory.path,
      spec: specOf(bundle, catalog, scratch),
      cacheDirectory,
      cacheSize: options.cacheSize,
      name: `datamon:${options.repo}@${bundle?.id ?? "new"}`,
      allowOther: options.allowOther,
      fetcher,
      onError: (request, subject, error) => log.error(`${request} ${subject}`, error),
    });
    undo.push(() => channel.unmount());
    const mount: Mount = { record, directory, channel, cache, fetcher, scratch };
    await setState(options.home, mount, { state: "mounted" }, log);
    return mount;
  } catch (error) {
    for (const step of undo.reverse()) {
      try {
        await step();
      } catch (failure) {
        log.error("cleaning up", failure);
      }
    }
    throw error;
  }
}

/** The bundle that is shown, or that the changes start from; undefined for an empty start. */
async function findBase(context: Context, options: MountOptions): Promise<Bundle | undefined> {
  const { repo, ref = {} } = options;
  if (options.empty === true) {
    await getRepo(context, repo);
    return undefined;
  }
  if (options.rw === true && ref.bundle === undefined && ref.label === undefined) {
    await getRepo(context, repo);
    return await newestBundle(context, repo);
  }
  return await resolveBundle(context, repo, ref);
}

function specOf(bundle: Bundle | undefined, catalog: string | undefined, scratch: Scratch | undefined): NamespaceSpec {
  if (scratch !== undefined) return { kind: "overlay", catalog, scratch: scratch.directory, bundle: bundle?.id };
  if (bundle === undefined || catalog === undefined)
    throw new DatamonError("usage", "a read-only mount needs a bundle");
  return { kind: "snapshot", catalog, bundle: bundle.id };
}

/** How long a signalled daemon waits for those who use the mount, in milliseconds, and how often it tries. */
const PATIENCE = 3000;
const TRY_INTERVAL = 250;

/** Waits until the mount is gone; a signal makes it go. */
async function serveUntilGone(channel: Channel, signals: StopSignals, log: MountLog): Promise<void> {
  const signal = await Promise.race([channel.closed, signals.received]);
  if (signal === undefined) return;
  log.info(`unmounting because of ${signal}`);
  for (const deadline = performance.now() + PATIENCE; performance.now() < deadline; ) {
    try {
      return await channel.unmount();
    } catch (error) {
      log.info(error instanceof Error ? error.message : String(error));
    }
    const gone = await Promise.race([channel.closed.then(() => true), setTimeout(TRY_INTERVAL, false)]);
    if (gone) return;
  }
  log.info("still in use: taking it away from those who use it");
  await channel.unmount({ lazy: true });
}

async function finish(
  context: Context,
  options: MountOptions,
  mount: Mount,
  events: MountEvents,
  signals: StopSignals,
  log: MountLog,
): Promise<MountOutcome> {
  await mount.fetcher.close();
  mount.cache.close();
  await mount.directory.restore();
  const { scratch } = mount;
  try {
    const outcome: MountOutcome =
      scratch === undefined
        ? { kind: "unmounted" }
        : await commit(context, options, mount, scratch, events, signals, log);
    log.info(outcome.kind === "committed" ? `committed bundle ${outcome.bundle}` : outcome.kind);
    await setState(options.home, mount, { state: "ended", outcome }, log);
    return outcome;
  } catch (error) {
    await setState(options.home, mount, { state: "ended", outcome: failureOf(error) }, log);
    throw error;
  }
}

async function commit(
  context: Context,
  options: MountOptions,
  mount: Mount,
  scratch: Scratch,
  events: MountEvents,
  signals: StopSignals,
  log: MountLog,
): Promise<MountOutcome> {
  await setState(options.home, mount, { state: "committing" }, log);
  events.onCommit?.();
  const bundle = await commitScratch(context, scratch, {
    cacheDirectory: mount.record.cacheDirectory,
    ...(options.cacheSize !== undefined && { cacheSize: options.cacheSize }),
    signal: signals.abortOnInterrupt(),
    onWarning: (text) => log.info(text),
  });
  await discardScratch(scratch);
  return bundle === undefined ? { kind: "unchanged" } : { kind: "committed", bundle: bundle.id };
}

/** Writes the record anew; one that cannot be written, for want of space, stops neither mount nor commit. */
async function setState(home: string, mount: Mount, change: Partial<MountRecord>, log: MountLog): Promise<void> {
  mount.record = { ...mount.record, ...change };
  await writeRecord(home, mount.record).catch((error) => log.error("the mount's record could not be written", error));
}

const STOP_SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** What the signals that ask a process to end do to a mount, from `listen` until `release`. */
class StopSignals {
  /** The first signal. */
  readonly received: Promise<NodeJS.Signals>;
  readonly #resolve: (signal: NodeJS.Signals) => void;
  readonly #abort = new AbortController();
  #aborts = false;

  constructor() {
    const { promise, resolve } = Promise.withResolvers<NodeJS.Signals>();
    this.received = promise;
    this.#resolve = resolve;
  }

  listen(): void {
    for (const name of STOP_SIGNALS) process.on(name, this.stop);
  }

  readonly stop = (signal: NodeJS.Signals): void => {
    this.#resolve(signal);
    if (this.#aborts && signal === "SIGINT") this.#abort.abort();
  };

  /** Aborted by a SIGINT that comes from now on; the others let the commit come to its end. */
  abortOnInterrupt(): AbortSignal {
    this.#aborts = true;
    return this.#abort.signal;
  }

  release(): void {
    for (const name of STOP_SIGNALS) process.off(name, this.stop);
  }
}
