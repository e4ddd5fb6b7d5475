import { randomBytes } from "node:crypto";
import { type FSWatcher, watch, writeFileSync } from "node:fs";
import { chmod, mkdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { DatamonError, ioError, isErrno } from "../cas/index.ts";
import { clockTime, type Log } from "./log.ts";

/** Seconds for which the other side may be silent, where nothing else is said. */
export const DEFAULT_TIMEOUT = 60;

/**
 * How much longer the other side may take to appear at all: its image may have to be fetched first. Ten
 * minutes by default.
 */
export const START_FACTOR = 10;

/** What a sidecar offers. */
export type SidecarKind = "fuse" | "postgres";

/** The files of one kind's steps, in the order in which they appear. */
export interface Steps {
  /** From the sidecar: the data can be used. */
  ready: string;
  /** From the application: the results can be taken. */
  upload: string;
  /** From the sidecar: the results are in their bundle. */
  done: string;
}

/** The protocol: each step is a file whose existence says that it was reached. */
export const STEPS: Readonly<Record<SidecarKind, Steps>> = {
  fuse: { ready: "mountdone", upload: "initupload", done: "uploaddone" },
  postgres: { ready: "dbstarted", upload: "initdbupload", done: "dbuploaddone" },
};

const BEAT_EVERY_MS = 2000;
const POLL_EVERY_MS = 200;
const SPEAK_EVERY_MS = 60_000;

export interface CoordinationOptions {
  /** The directory that sidecars and application share; made where it is missing. */
  directory: string;
  kind: SidecarKind;
  /**
   * Directories below it for which this sidecar speaks, one for each database; the shared directory itself
   * is always one.
   */
  places?: string[];
  /** Seconds for which the application may be silent, 0 for ever (default: `DEFAULT_TIMEOUT`). */
  timeout?: number;
  log: Log;
}

export interface WaitOptions {
  /** Ends the wait with the signal's reason. */
  signal?: AbortSignal;
  /** What is waited for, for the log (default: the names). */
  describe?: string;
  /** Seconds after which to give up; by default the wait is over only when the application is. */
  within?: number;
  /** Seconds for which the application may be silent, heard before or not (default: as said to `open`). */
  silence?: number;
}

/** The application ended without asking for an upload: there is nothing to upload. */
export class ApplicationFailedError extends DatamonError {
  constructor(reason: string) {
    super("io", `the application failed: ${reason}`);
  }
}

/** The application has not been heard of for too long. */
export class ApplicationSilentError extends DatamonError {
  constructor(message: string) {
    super("unavailable", message, {
      hint: "The wrapper was killed or is not there. A wrapper without a heartbeat of its own needs --timeout 0 here.",
    });
  }
}

/**
 * A sidecar's end of the coordination directory.
 *
 * Beside the files of the steps each side has two more: `<who>alive`, a heartbeat whose content changes
 * every two seconds, and `<who>failed` with the reason, where `<who>` is `fuse`, `postgres` or
 * `application`. Each side writes and removes only its own files. Silence is measured by the
 * listener's own clock, so the clocks of two containers need not agree.
 *
 * Names are paths below the directory: `dbstarted`, `db1/dbstarted`.
 */
export class Coordination {
  readonly directory: string;
  readonly #kind: SidecarKind;
  readonly #places: string[];
  readonly #timeoutMs: number;
  readonly #log: Log;
  #heart: NodeJS.Timeout | undefined;
  readonly #application: Listener;

  private constructor(options: CoordinationOptions) {
    this.directory = options.directory;
    this.#kind = options.kind;
    this.#places = ["", ...(options.places ?? [])];
    this.#timeoutMs = (options.timeout ?? DEFAULT_TIMEOUT) * 1000;
    this.#log = options.log;
    this.#application = new Listener(join(this.directory, "applicationalive"));
  }

  /** Takes part: forgets a failure of an earlier run of this sidecar and begins to beat. */
  static async open(options: CoordinationOptions): Promise<Coordination> {
    const coordination = new Coordination(options);
    try {
      await coordination.#prepare();
    } catch (error) {
      throw ioError(`use the coordination directory ${options.directory}`, error);
    }
    return coordination;
  }

  /** True where a step was reached. */
  async has(name: string): Promise<boolean> {
    const path = join(this.directory, name);
    try {
      await stat(path);
      return true;
    } catch (error) {
      if (isErrno(error, "ENOENT", "ENOTDIR")) return false;
      throw ioError(`look for ${path}`, error);
    }
  }

  /** Tells the other side that a step is reached. The text is for people; that the file is there is the message. */
  async signal(name: string, text = ""): Promise<void> {
    const path = join(this.directory, name);
    // A reader never sees a file without its text.
    const temporary = join(dirname(path), `.${randomBytes(8).toString("hex")}`);
    try {
      await writeFile(temporary, text === "" ? "" : `${text}\n`);
      await rename(temporary, path);
    } catch (error) {
      await rm(temporary, { force: true });
      throw ioError(`signal ${path}`, error);
    }
    this.#log(`signalled ${name}`);
  }

  /** Takes back a step that does not hold any more. */
  async withdraw(name: string): Promise<void> {
    await rm(join(this.directory, name), { force: true });
  }

  /**
   * Waits until one of these files is there.
   *
   * @returns the name that came, the first of the list where several did
   * @throws ApplicationFailedError where the application ended in failure and wants no upload
   * @throws ApplicationSilentError where it was not heard of for the timeout, or ten of them before it was
   *   heard of at all
   */
  async wait(names: string[], options: WaitOptions = {}): Promise<string> {
    const { signal, describe = names.join(" or "), within } = options;
    const began = new Date();
    const started = performance.now();
    let spoke = started;
    const waiting = `waiting for ${describe} since ${clockTime(began)}`;
    this.#log(waiting);
    const bell = new Bell([...new Set(names.map((name) => dirname(join(this.directory, name))))]);
    try {
      for (;;) {
        for (const name of names) {
          if (await this.has(name)) {
            this.#log(`${name} came after ${seconds(performance.now() - started)}`);
            return name;
          }
        }
        const reason = await readText(join(this.directory, "applicationfailed"));
        if (reason !== undefined) throw new ApplicationFailedError(reason.trim() || "it gave no reason");
        await this.#listen(describe, began, options.silence);
        signal?.throwIfAborted();
        const moment = performance.now();
        if (within !== undefined && moment - started >= within * 1000) {
          throw new DatamonError("unavailable", `${describe} did not come within ${within} s`);
        }
        if (moment - spoke >= SPEAK_EVERY_MS) {
          spoke = moment;
          this.#log(`still ${waiting}`);
        }
        await bell.rung(POLL_EVERY_MS, signal);
      }
    } finally {
      bell.close();
    }
  }

  /** Tells the application that this sidecar failed, and withdraws that its data can be used. */
  async fail(reason: string): Promise<void> {
    const ready = STEPS[this.#kind].ready;
    for (const place of this.#places) {
      await this.signal(join(place, `${this.#kind}failed`), reason);
      await this.withdraw(join(place, ready));
    }
  }

  /** Stops the heartbeat. */
  close(): void {
    clearInterval(this.#heart);
  }

  async #prepare(): Promise<void> {
    await mkdir(this.directory, { recursive: true });
    // The application's container may run as another user, and signals in the same directories.
    const mode = (await stat(this.directory)).mode & 0o777;
    for (const place of this.#places) {
      const directory = join(this.directory, place);
      if ((await mkdir(directory, { recursive: true })) !== undefined) await chmod(directory, mode);
      await this.withdraw(join(place, `${this.#kind}failed`));
    }
    this.#beat();
    this.#heart = setInterval(() => this.#beat(), BEAT_EVERY_MS).unref();
  }

  #beat(): void {
    for (const place of this.#places) {
      try {
        writeFileSync(join(this.directory, place, `${this.#kind}alive`), `${Date.now()}\n`);
      } catch {
        // The next beat may come through; until then this is silence, which the other side bears for its timeout.
      }
    }
  }

  async #listen(describe: string, began: Date, silence: number | undefined): Promise<void> {
    await this.#application.listen();
    const { heard, silentMs } = this.#application;
    const limit = silence === undefined ? this.#timeoutMs * (heard ? 1 : START_FACTOR) : silence * 1000;
    if (limit === 0 || silentMs < limit) return;
    const what = `was waiting for ${describe} since ${clockTime(began)}`;
    throw new ApplicationSilentError(
      heard
        ? `the application's wrapper has been silent for ${seconds(silentMs)}; ${what}`
        : `the application's wrapper has not appeared in ${seconds(silentMs)}; ${what}`,
    );
  }
}

/**
 * Follows a heartbeat. The time between two looks counts for a second at most: where this process, and so
 * perhaps the whole pod, stood still meanwhile, the other side gets its chance.
 */
class Listener {
  /** The other side has beaten at least once. */
  heard = false;
  silentMs = 0;
  readonly #path: string;
  #last: string | undefined;
  #looked: number | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  async listen(): Promise<void> {
    const beat = await readText(this.#path);
    const moment = performance.now();
    this.heard = beat !== undefined;
    if (beat !== this.#last) this.silentMs = 0;
    else if (this.#looked !== undefined) this.silentMs += Math.min(1000, moment - this.#looked);
    this.#last = beat;
    this.#looked = moment;
  }
}

/** Wakes a waiter when something happens in a directory, and after a while in any case: shared volumes may not tell. */
class Bell {
  readonly #watchers: FSWatcher[] = [];
  #ring: () => void = () => {};

  constructor(directories: string[]) {
    for (const directory of directories) {
      try {
        const watcher = watch(directory, { persistent: false }, () => this.#ring());
        watcher.on("error", () => watcher.close());
        this.#watchers.push(watcher);
      } catch {
        // No events here; the waiter looks by the clock.
      }
    }
  }

  rung(withinMs: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, withinMs);
      signal?.addEventListener("abort", done, { once: true });
      this.#ring = done;
    });
  }

  close(): void {
    this.#ring = () => {};
    for (const watcher of this.#watchers) watcher.close();
  }
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (isErrno(error, "ENOENT", "ENOTDIR")) return undefined;
    throw ioError(`read ${path}`, error);
  }
}

function seconds(ms: number): string {
  return `${Math.round(ms / 1000)} s`;
}
