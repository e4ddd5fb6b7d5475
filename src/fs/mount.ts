/** The life of one mount, from the bundle's catalog to the commit: what its daemon does. */

import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout } from "node:timers/promises";
import { DiskCache, Fetcher } from "../cache/index.ts";
import { DatamonError, replicaStatuses } from "../cas/index.ts";
import {
  type Bundle,
  type Context,
  fetchCatalog,
  getRepo,
  newestBundle,
  newestVersion,
  resolveBundle,
} from "../meta/index.ts";
import { type Channel, type ChannelKind, type ChannelOptions, openChannel } from "./channels/channel.ts";
import { commitScratch } from "./commit.ts";
import { LiveCommits } from "./live-commit.ts";
import { type ControlRequest, type ControlSocket, openControlSocket } from "./mount-control.ts";
import { type MountDirectory, prepareDirectory, restoreDirectory } from "./mount-directory.ts";
import { type MountLog, openMountLog } from "./mount-log.ts";
import {
  createRecordDirectory,
  failureOf,
  keepFile,
  logFile,
  type MountRecord,
  removeRecord,
  removeRecordsOf,
  removeSettled,
  writeRecord,
} from "./mount-record.ts";
import { statisticsOf } from "./mount-statistics.ts";
import type { NamespaceSpec } from "./namespace.ts";
import { chooseOpenMode, type OpenMode, type OpenModeChoice } from "./open-mode.ts";
import { processOf, thisProcess } from "./process-identity.ts";
import {
  claimScratch,
  countChanges,
  createScratch,
  discardScratch,
  getScratch,
  type OnConflict,
  type Scratch,
} from "./scratch.ts";
import { StopSignals } from "./stop-signals.ts";
import { type Handover, handOver, type Supervision } from "./supervision/supervision.ts";

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
  /** Id of a scratch whose changes are mounted again, over the bundle that they were made to, which `ref` names. */
  readonly resume?: string;
  /** Message of the new bundle. */
  readonly message?: string;
  /** Label to set to the new bundle. */
  readonly label?: string;
  /** What to do where somebody else moved the label since the mount began; it is moved where nothing is said. */
  readonly onConflict?: OnConflict | undefined;
  /** Where changes are kept until they are committed; below `home` where absent. */
  readonly scratchDirectory?: string | undefined;
  /** How many bytes of disk the changes may take. */
  readonly scratchSize?: number | undefined;
  /** Directory for what is this user's: records of mounts and scratches go below it. */
  readonly home: string;
  readonly cacheDirectory: string;
  /** Limit of the disk cache in bytes. */
  readonly cacheSize?: number;
  /** Memory for content that is fetched ahead of readers, in bytes; 0 for none. */
  readonly prefetch?: number | undefined;
  /** `kernel` on Linux where nothing is said, `fuse-native` elsewhere. */
  readonly channel?: ChannelKind;
  readonly allowOther?: boolean;
  /** Every user may do everything with all files; implies `allowOther`. */
  readonly allowAll?: boolean;
  /** How files are opened; chosen by what is mounted where nothing is said. */
  readonly openMode?: OpenMode;
  /** Id of a record directory that is there already; a new one is made otherwise. */
  readonly id?: string;
  /**
   * The supervisor that started this process. Where another daemon served the mount before, it is
   * taken over as that one left it, whatever the rest of the options says.
   */
  readonly supervision?: Supervision | undefined;
}

/** Told how a mount fares. */
export interface MountEvents {
  /** The mount answers, for the first time. Where this throws, the mount is taken away again. */
  onReady?(record: MountRecord): void | Promise<void>;
  /** A writable mount ended and its changes are being committed. */
  onCommit?(): void;
}

/**
 * How a mount ended: `committed` with the new bundle, `unchanged` where nothing was to be committed, `kept`
 * where the changes were to stay in the scratch.
 */
export type MountOutcome =
  | { readonly kind: "unmounted" }
  | { readonly kind: "unchanged" }
  | { readonly kind: "kept"; readonly scratch: string }
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
  const { supervision } = options;
  const inherited = supervision?.inherited;
  let mount: Mount | undefined;
  try {
    if (inherited === undefined) {
      mount = await openMount(context, options, id, signals, log);
      log.info(`mounted ${mount.record.directory}`);
      try {
        await events.onReady?.(mount.record);
      } catch (error) {
        log.error("nobody waits for this mount any more", error);
        signals.stop("SIGHUP");
      }
    } else {
      mount = await takeOver(context, options, inherited, signals, log);
      log.info(`took over ${mount.record.directory}`);
    }
    if (supervision !== undefined) void watch(supervision, options.home, mount, log);
    await serveUntilGone(mount.channel, signals, log);
    supervision?.ending();
    log.info("unmounted");
    return await finish(context, options, mount, events, signals, log);
  } catch (error) {
    log.error("failed", error);
    if (mount === undefined && inherited === undefined) await removeRecord(options.home, id);
    throw error;
  } finally {
    signals.release();
    log.close();
  }
}

/** Notes that the supervisor died: from then on the mount lives as long as this process does. */
async function watch({ lost }: Supervision, home: string, mount: Mount, log: MountLog): Promise<void> {
  await lost;
  log.info("the supervisor died: the mount is served as before, and ends with this process");
  const { supervisor: _, ...record } = mount.record;
  mount.record = record;
  await setState(home, mount, {}, log);
}

interface Mount {
  record: MountRecord;
  readonly directory: MountDirectory;
  readonly channel: Channel;
  readonly cache: DiskCache;
  readonly fetcher: Fetcher;
  readonly scratch: Scratch | undefined;
  /** Of a writable mount. */
  readonly commits: LiveCommits | undefined;
  readonly control: ControlSocket;
}

/** A mount that is served, before anybody can ask for it. */
type Served = Omit<Mount, "commits" | "control">;

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
    undo.push(() => restoreDirectory(directory));
    await removeSettled(options.home, directory.path);
    const supervisor = options.supervision && (await processOf(options.supervision.supervisor));
    const resumed =
      options.resume === undefined ? undefined : await getScratch(scratchRoot(options.home), options.resume);
    if (resumed !== undefined) await removeRecordsOf(options.home, resumed.id);
    const scratch = resumed
      ? await claimScratch(resumed, directory.path, supervisor)
      : writable
        ? await createScratch(scratchRoot(options.home), {
            repo: options.repo,
            ...(bundle !== undefined && { base: { bundle: bundle.id, catalog: bundle.catalog } }),
            directory: directory.path,
            ...(options.message !== undefined && { message: options.message }),
            ...(options.label !== undefined && { label: options.label }),
            ...(options.onConflict !== undefined && { onConflict: options.onConflict }),
            labels: await labelNumbers(context, options),
            ...(options.scratchDirectory !== undefined && { place: options.scratchDirectory }),
            ...(options.scratchSize !== undefined && { limit: options.scratchSize }),
            supervisor,
          })
        : undefined;
    if (scratch !== undefined && resumed === undefined) undo.push(() => discardScratch(scratch));
    const { cache, fetcher } = openContent(context, cacheDirectory, options, undo);
    const record: MountRecord = {
      id,
      repo: options.repo,
      ...(bundle !== undefined && { bundle: bundle.id, bundleTime: bundle.timestamp.toISOString() }),
      ...(options.ref?.label !== undefined && { label: options.ref.label }),
      mode: writable ? "rw" : "ro",
      directory: directory.path,
      channel: kind,
      daemon: await thisProcess(),
      ...(supervisor !== undefined && { supervisor }),
      since: new Date().toISOString(),
      ...(scratch !== undefined && { scratch: scratch.id }),
      cacheDirectory,
      state: "starting",
    };
    await writeRecord(options.home, record);
    const spec = specOf(bundle, catalog, scratch);
    const openMode = openModeOf(options, kind, spec);
    const channel = await openChannel(kind, channelOptions(options, record, spec, openMode, fetcher, log));
    undo.push(() => channel.unmount());
    const mount = openControl(context, options, { record, directory, channel, cache, fetcher, scratch }, log);
    undo.push(() => mount.control.close());
    const { mode, reason } = channel.openMode;
    await setState(options.home, mount, { state: "mounted", openMode: mode, openModeReason: reason }, log);
    const { supervision } = options;
    if (supervision !== undefined) {
      handOver("mount", "spec", spec);
      handOver("mount", "made", directory.made ?? "");
      handOver("mount", "config", context.config.file ?? "");
      handOver("mount", "record", mount.record);
      if (!supervision.serving()) log.info("this kernel does not send requests again: the mount ends with its daemon");
    }
    return mount;
  } catch (error) {
    await undoAll(undo, log);
    throw error;
  }
}

/** Serves on, as the daemon before left it, a mount that is there. What fails leaves everything to the next. */
async function takeOver(
  context: Context,
  options: MountOptions,
  inherited: Handover,
  signals: StopSignals,
  log: MountLog,
): Promise<Mount> {
  const { record: last, made, spec } = inherited.mount;
  const supervision = options.supervision!;
  signals.listen();
  const supervisor = await processOf(supervision.supervisor);
  const undo: Array<() => unknown> = [];
  try {
    const left = last.scratch === undefined ? undefined : await getScratch(scratchRoot(options.home), last.scratch);
    const scratch = left && (await claimScratch(left, last.directory, supervisor));
    const { cache, fetcher } = openContent(context, last.cacheDirectory, options, undo);
    const { restarts } = supervision;
    const record: MountRecord = { ...last, daemon: await thisProcess(), supervisor, restarts };
    const again: NamespaceSpec =
      spec.kind === "overlay" ? { ...spec, ...(await baseOf(context, last, spec, scratch)), adopted: true } : spec;
    const channel = await openChannel(
      last.channel,
      channelOptions(options, record, again, { mode: last.openMode!, reason: last.openModeReason! }, fetcher, log),
    );
    const directory: MountDirectory = { path: last.directory, made: made === "" ? undefined : made };
    const mount = openControl(context, options, { record, directory, channel, cache, fetcher, scratch }, log);
    await setState(options.home, mount, { state: "mounted" }, log);
    handOver("mount", "record", mount.record);
    supervision.serving();
    return mount;
  } catch (error) {
    await undoAll(undo, log);
    throw error;
  }
}

/** What the lowest layer of a scratch stands on now: commits of the mount may have put others in the place of the first base. */
async function baseOf(
  context: Context,
  { cacheDirectory }: MountRecord,
  { bundle, catalog: before }: NamespaceSpec,
  scratch: Scratch | undefined,
): Promise<{ bundle: string | undefined; catalog: string | undefined }> {
  const base = scratch?.record.base;
  if (base?.bundle === bundle) return { bundle, catalog: before };
  const catalog = base && (await fetchCatalog(context, base.catalog, join(cacheDirectory, "catalogs")));
  return { bundle: base?.bundle, catalog };
}

/** The numbers of the newest versions of the labels that a mount is told of. */
async function labelNumbers(context: Context, { repo, label, ref }: MountOptions): Promise<Record<string, number>> {
  const numbers: Record<string, number> = {};
  for (const name of new Set([label, ref?.label])) {
    if (name !== undefined) numbers[name] = (await newestVersion(context, repo, name))?.number ?? 0;
  }
  return numbers;
}

/** Lets a mount be asked. */
function openControl(context: Context, options: MountOptions, served: Served, log: MountLog): Mount {
  const { record, channel, fetcher, scratch } = served;
  const since = new Date().toISOString();
  const common = {
    cacheDirectory: record.cacheDirectory,
    cacheSize: options.cacheSize,
    onWarning: (text: string) => log.info(text),
  };
  const onBundle = async ({ id, timestamp }: Bundle): Promise<void> => {
    log.info(`committed bundle ${id}`);
    await setState(options.home, mount, { bundle: id, bundleTime: timestamp.toISOString() }, log);
    if (options.supervision !== undefined) handOver("mount", "record", mount.record);
  };
  const commits = scratch && new LiveCommits(context, channel, scratch, common, onBundle);
  const handle = async (request: ControlRequest, onProgress: (value: unknown) => void): Promise<unknown> => {
    if (request.request === "statistics") {
      const replicas = [context.metadata, context.blobs.store].flatMap(replicaStatuses);
      return statisticsOf(since, channel.counts(), fetcher.stats, replicas, context.requests);
    }
    if (commits === undefined) throw new DatamonError("usage", `${record.directory} is mounted read-only`);
    if (request.request === "on-conflict") return await commits.onConflict(request.onConflict);
    const { request: _, ...asked } = request;
    const bundle = await commits.commit({ ...asked, onProgress });
    return { bundle: bundle?.id ?? null };
  };
  const control = openControlSocket(options.home, record.id, handle, (error) =>
    log.error("nobody can ask this mount for anything", error),
  );
  const mount: Mount = { ...served, commits, control };
  return mount;
}

/** Takes back, last first, what was done. */
async function undoAll(undo: Array<() => unknown>, log: MountLog): Promise<void> {
  for (const step of undo.reverse()) {
    try {
      await step();
    } catch (failure) {
      log.error("cleaning up", failure);
    }
  }
}

function openContent(
  context: Context,
  directory: string,
  { cacheSize, prefetch }: MountOptions,
  undo: Array<() => unknown>,
): Pick<Mount, "cache" | "fetcher"> {
  const cache = DiskCache.open(directory, cacheSize === undefined ? {} : { sizeLimit: cacheSize });
  undo.push(() => cache.close());
  const fetcher = new Fetcher(context.blobs, cache, prefetch === undefined ? {} : { memoryLimit: prefetch });
  undo.push(() => fetcher.close());
  return { cache, fetcher };
}

function channelOptions(
  options: MountOptions,
  record: MountRecord,
  spec: NamespaceSpec,
  openMode: OpenModeChoice,
  fetcher: Fetcher,
  log: MountLog,
): ChannelOptions {
  return {
    directory: record.directory,
    spec,
    cacheDirectory: record.cacheDirectory,
    cacheSize: options.cacheSize,
    name: `datamon:${record.repo}@${record.bundle ?? "new"}`,
    allowOther: options.allowOther === true || options.allowAll === true,
    unchecked: options.allowAll,
    openMode,
    fetcher,
    supervision: options.supervision,
    onError: (request, subject, error) => log.error(`${request} ${subject}`, error),
  };
}

function scratchRoot(home: string): string {
  return join(home, "scratch");
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
  if (scratch !== undefined) {
    const { directory, record } = scratch;
    return { kind: "overlay", catalog, scratch: directory, bundle: bundle?.id, limit: record.limit };
  }
  if (bundle === undefined || catalog === undefined)
    throw new DatamonError("usage", "a read-only mount needs a bundle");
  return { kind: "snapshot", catalog, bundle: bundle.id };
}

function openModeOf(options: MountOptions, kind: ChannelKind, spec: NamespaceSpec): OpenModeChoice {
  const { openMode } = options;
  if (openMode === undefined)
    return kind === "kernel" ? chooseOpenMode(spec) : { mode: "plain", reason: `the ${kind} channel has no other` };
  if (openMode === "noopen" && spec.kind === "overlay") {
    throw new DatamonError("usage", "a writable mount cannot be of the open mode noopen: it has to know what is open");
  }
  if (openMode !== "plain" && kind === "fuse-native") {
    throw new DatamonError("usage", `the fuse-native channel has no open mode ${openMode}, only plain`);
  }
  return { mode: openMode, reason: "asked for" };
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
  mount.control.close();
  await mount.commits?.end();
  await mount.fetcher.close();
  mount.cache.close();
  await restoreDirectory(mount.directory);
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
  if (existsSync(keepFile(options.home, mount.record.id)) && countChanges(scratch) > 0) {
    return { kind: "kept", scratch: scratch.id };
  }
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
