import { randomBytes } from "node:crypto";
import { readFile, realpath, rename, writeFile } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";
import { DatamonError, ioError } from "../../cas/index.ts";
import { listMounts, listScratches, type MountOutcome, unmount } from "../../fs/index.ts";
import { ApplicationFailedError, Coordination, STEPS } from "../coordination.ts";
import { type Log, logOf } from "../log.ts";
import {
  DEFAULT_GRACE,
  ENDED_SILENCE,
  listenForTermination,
  sleepInsteadOfEnding,
  TerminatedError,
} from "../termination.ts";
import { runDatamon } from "./datamon.ts";
import type { FusePlan, WritableMount } from "./plan.ts";

export interface FuseSidecarOptions {
  /** The coordination directory. */
  directory: string;
  plan: FusePlan;
  /** When all is done, sleep until a signal comes instead of ending. */
  sleep: boolean;
  /** Seconds for which the application's wrapper may be silent, 0 for ever. */
  timeout: number | undefined;
  /** Seconds to wait for the application's word once this process was asked to end (default: `DEFAULT_GRACE`). */
  grace: number | undefined;
  /** Directory for what is this user's. */
  home: string;
}

const STEP = STEPS.fuse;

/**
 * Mounts for the application, waits for it, and makes bundles of its results.
 *
 * @returns the exit status; everything was said and signalled already
 */
export async function runFuseSidecar(options: FuseSidecarOptions): Promise<number> {
  const log = logOf("fuse sidecar");
  const termination = listenForTermination(log);
  const { directory, timeout } = options;
  const coordination = await Coordination.open({
    directory,
    kind: "fuse",
    log,
    ...(timeout !== undefined && { timeout }),
  });
  const sidecar = new FuseSidecar(options, coordination, termination, log);
  const status = await sidecar.run();
  coordination.close();
  if (options.sleep) await sleepInsteadOfEnding(status, termination, log);
  return status;
}

class FuseSidecar {
  readonly #options: FuseSidecarOptions;
  readonly #coordination: Coordination;
  readonly #termination: AbortSignal;
  readonly #log: Log;
  /** Directories that are mounted and not yet taken away, each with the bundle it began with. */
  readonly #mounted = new Map<string, string | null>();

  constructor(options: FuseSidecarOptions, coordination: Coordination, termination: AbortSignal, log: Log) {
    this.#options = options;
    this.#coordination = coordination;
    this.#termination = termination;
    this.#log = log;
  }

  async run(): Promise<number> {
    try {
      if (await this.#coordination.has(STEP.done)) {
        this.#log(`${STEP.done} is there already: an earlier run of this sidecar has done its work`);
        return 0;
      }
      if (!(await this.#resumesUpload())) {
        await this.#offer();
        await this.#waitForUpload();
      }
      await this.#save();
      await this.#coordination.signal(STEP.done);
      this.#log("done");
      return 0;
    } catch (error) {
      return await this.#giveUp(error);
    }
  }

  /**
   * True where the application had asked for the upload before this run began, as an earlier run may have
   * failed at it: that can be done again, without mounts. Throws where an earlier run took away what was needed.
   */
  async #resumesUpload(): Promise<boolean> {
    const asked = await this.#coordination.has(STEP.upload);
    if (asked && this.#options.plan.writable.length === 0) {
      this.#log(`${STEP.upload} is there already: an earlier run ended before the upload, which begins again`);
      return true;
    }
    if (!asked && !(await this.#coordination.has(STEP.ready))) return false;
    throw new DatamonError("conflict", "an earlier run of this sidecar ended and took its mounts with it", {
      hint: "Run the pod again, with an empty coordination directory. Changes to writable mounts are in their scratch.",
    });
  }

  async #offer(): Promise<void> {
    const { config, sources, writable } = this.#options.plan;
    if (config !== undefined) await runDatamon(config, this.#log);
    const mounts = await Promise.allSettled([...sources, ...writable].map((mount) => this.#mount(mount)));
    const failed = mounts.find((mount) => mount.status === "rejected");
    if (failed !== undefined) throw failed.reason;
    // Where nobody has begun, nobody need be waited for.
    this.#termination.throwIfAborted();
    await this.#coordination.signal(STEP.ready);
  }

  async #mount({ words, directory }: { words: readonly string[]; directory: string }): Promise<void> {
    await runDatamon(words, this.#log);
    const path = await realpath(directory);
    const found = (await listMounts(this.#options.home)).find((mount) => mount.directory === path);
    this.#mounted.set(directory, found?.bundle ?? null);
    this.#log(`mounted ${directory}`);
  }

  async #waitForUpload(): Promise<void> {
    const describe = `${STEP.upload} of the application`;
    const watch = new AbortController();
    const watching = this.#watchMounts(watch);
    try {
      const signal = AbortSignal.any([watch.signal, this.#termination]);
      await this.#coordination.wait([STEP.upload], { signal, describe });
    } catch (error) {
      if (!(error instanceof TerminatedError)) throw error;
      await this.#lastWord(error, describe);
    } finally {
      watch.abort();
      await watching;
    }
  }

  /** The pod ends: its application was told, too, or has ended already, and may have a last word. */
  async #lastWord(terminated: TerminatedError, describe: string): Promise<void> {
    const within = this.#options.grace ?? DEFAULT_GRACE;
    this.#log(`the pod ends; the application has ${within} s to ask for the upload`);
    try {
      await this.#coordination.wait([STEP.upload], { describe, within, silence: ENDED_SILENCE });
    } catch (error) {
      if (error instanceof ApplicationFailedError) throw error;
      throw terminated;
    }
  }

  /** Aborts when a mount ends that the application is using. */
  async #watchMounts(watch: AbortController): Promise<void> {
    const paths = await Promise.all(
      [...this.#mounted.keys()].map((directory) => realpath(directory).catch(() => directory)),
    );
    while (!watch.signal.aborted) {
      const table = await readFile("/proc/self/mountinfo", "latin1").catch(() => undefined);
      if (table === undefined) return;
      const points = new Set(table.split("\n").map((line) => unescapeOctal(line.split(" ")[4] ?? "")));
      const lost = paths.find((path) => !points.has(Buffer.from(path).toString("latin1")));
      if (lost !== undefined) watch.abort(new DatamonError("io", `the mount on ${lost} ended while it was needed`));
      else await setTimeout(2000, undefined, { signal: watch.signal }).catch(() => undefined);
    }
  }

  /** Takes the mounts away and makes the bundles. From here on a signal does not stop it. */
  async #save(): Promise<void> {
    const { sources, writable, uploads } = this.#options.plan;
    for (const { directory } of sources) if (this.#mounted.has(directory)) await this.#unmount(directory, true);
    for (const mount of writable) await this.#commit(mount);
    for (const { words, directory, bundleIdFile } of uploads) {
      this.#log(`uploading ${directory}`);
      const lines = await runDatamon(words, this.#log);
      const bundle = /^Uploaded bundle id:(\w+)$/.exec(lines.at(-1) ?? "")?.[1];
      if (bundle === undefined) throw new DatamonError("io", `bundle upload of ${directory} named no bundle`);
      this.#log(`${directory} is committed as bundle ${bundle}`);
      if (bundleIdFile !== undefined) await this.#writeId(bundleIdFile, bundle);
    }
  }

  async #commit({ directory, repo, label, bundleIdFile }: WritableMount): Promise<void> {
    const base = this.#mounted.get(directory);
    this.#log(`committing the changes of ${directory}`);
    const outcome = await this.#unmount(directory, true);
    if (outcome?.kind === "committed") {
      this.#log(`${directory} is committed as bundle ${outcome.bundle}`);
      if (bundleIdFile !== undefined) await this.#writeId(bundleIdFile, outcome.bundle);
      return;
    }
    if (base === undefined || base === null) {
      this.#log(`nothing was written to ${directory}, so there is no bundle`);
      if (bundleIdFile === undefined) return;
      throw new DatamonError("io", `nothing was written to ${directory}, so there is no bundle id for ${bundleIdFile}`);
    }
    this.#log(`nothing was changed in ${directory}: it is bundle ${base} still`);
    // Who asks for the result by its label or id finds it all the same.
    if (label !== undefined) {
      await runDatamon(["label", "set", "--repo", repo, "--label", label, "--bundle", base], this.#log);
    }
    if (bundleIdFile !== undefined) await this.#writeId(bundleIdFile, base);
  }

  async #writeId(file: string, bundle: string): Promise<void> {
    const draft = `${file}.${randomBytes(4).toString("hex")}`;
    try {
      await writeFile(draft, `${bundle}\n`);
      await rename(draft, file);
    } catch (error) {
      throw ioError(`write the bundle's id ${bundle} to ${file}`, error);
    }
    this.#log(`wrote ${bundle} to ${file}`);
  }

  async #unmount(directory: string, commit: boolean): Promise<MountOutcome | undefined> {
    const { home } = this.#options;
    const end = (force: boolean) => unmount({ home, directory, commit, force });
    let outcome: MountOutcome;
    try {
      outcome = await end(false);
    } catch (error) {
      if (!(error instanceof DatamonError) || error.code !== "conflict") {
        this.#mounted.delete(directory);
        throw error;
      }
      this.#log(`${error.message}; taking it away from those who use it in 3 s`);
      await setTimeout(3000);
      this.#mounted.delete(directory);
      outcome = await end(true);
    }
    this.#mounted.delete(directory);
    this.#log(`unmounted ${directory}`);
    return outcome;
  }

  /** Tells the other side and the log what happened, and keeps what was not saved. */
  async #giveUp(error: unknown): Promise<number> {
    const { message, hint } = ioError("go on", error);
    this.#log(error instanceof ApplicationFailedError ? `${message}; nothing is uploaded` : `failed: ${message}`);
    if (hint !== undefined) this.#log(`  ${hint}`);
    try {
      // A failed application knows already; one that is started again waits for mounts to come.
      if (error instanceof ApplicationFailedError) await this.#coordination.withdraw(STEP.ready);
      else await this.#coordination.fail(message.replaceAll("\n", "; "));
    } catch (failure) {
      this.#log(`the application could not be told: ${(failure as Error).message}`);
    }
    for (const directory of [...this.#mounted.keys()]) await this.#keep(directory);
    for (const { directory } of this.#options.plan.uploads) this.#log(`nothing of ${directory} was removed`);
    return error instanceof TerminatedError ? error.status : 1;
  }

  async #keep(directory: string): Promise<void> {
    try {
      const outcome = await this.#unmount(directory, false);
      if (outcome?.kind !== "kept") return;
      const { scratch } = outcome;
      const known = (await listScratches(`${this.#options.home}/scratch`)).find(({ id }) => id === scratch);
      const place = known === undefined ? scratch : await realpath(known.directory);
      this.#log(`the changes of ${directory} are kept in ${place}; commit them with: datamon scratch commit ${place}`);
    } catch (error) {
      const { message, hint } = ioError(`unmount ${directory}`, error);
      this.#log(hint === undefined ? message : `${message}. ${hint}`);
    }
  }
}

/** Blanks in mountinfo are octal; see proc_pid_mountinfo(5). */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits) => String.fromCharCode(Number.parseInt(digits, 8)));
}
