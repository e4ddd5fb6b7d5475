import { ioError } from "../cas/index.ts";
import type { ContainerFiles } from "./containers.ts";
import { IndexFile, isIndexDamage } from "./index-file.ts";
import type { ResidencyIndex } from "./residency.ts";

/** After a failed write nothing is written for this long. */
const DEGRADED_MS = 30_000;

/**
 * A cache directory's index as one thread uses it: opened again where another process replaced it,
 * built anew where it is damaged, and not written to for a while where the directory does not take it.
 */
export class GuardedIndex {
  readonly #files: ContainerFiles;
  readonly #onDegraded: ((reason: string) => void) | undefined;
  #index: IndexFile | undefined;
  #closed = false;
  #degraded: string | undefined;
  #degradedUntil = 0;

  /** @param onDegraded told once when the directory stops taking what is written */
  constructor(files: ContainerFiles, onDegraded: ((reason: string) => void) | undefined) {
    this.#files = files;
    this.#onDegraded = onDegraded;
    try {
      this.#index = IndexFile.open(files);
    } catch (error) {
      this.#degrade(error);
      this.#index = IndexFile.openReadOnly(files);
    }
  }

  /** Why nothing is written at present. */
  get degraded(): string | undefined {
    return this.#degraded;
  }

  get writable(): boolean {
    return this.#index?.writable === true;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Asks; undefined where there is no index that can answer. */
  ask<T>(question: (index: ResidencyIndex) => T): T | undefined {
    try {
      return this.#index === undefined ? undefined : question(this.#index.rows);
    } catch (error) {
      if (!isTrouble(error)) throw error;
      return isIndexDamage(error) ? this.attempt(() => this.write(question)) : undefined;
    }
  }

  /** Runs `work` on the current index, after opening or building it where necessary. */
  write<T>(work: (index: ResidencyIndex) => T): T {
    if (this.#index !== undefined && !(this.#index.writable && this.#index.isCurrent())) {
      const old = this.#index;
      this.#index = IndexFile.open(this.#files);
      old.close();
    }
    this.#index ??= IndexFile.open(this.#files);
    try {
      return work(this.#index.rows);
    } catch (error) {
      if (!isIndexDamage(error)) throw error;
      this.#index.close();
      this.#index = undefined;
      this.#index = IndexFile.build(this.#files);
      return work(this.#index.rows);
    }
  }

  /** Does, where there is an index to write to, what may as well be left. */
  tidy(work: (index: ResidencyIndex) => void): void {
    if (this.writable) this.attempt(() => this.write(work));
  }

  /** Takes something back in the index that is open; nothing is said where that fails. */
  undo(work: (index: ResidencyIndex) => void): void {
    try {
      if (this.#index !== undefined) work(this.#index.rows);
    } catch {
      // It counts for too much until it is evicted.
    }
  }

  /** Runs what writes to the directory; undefined where it failed, or where a recent failure makes it useless to try. */
  attempt<T>(work: () => T): T | undefined {
    if (this.#closed || Date.now() < this.#degradedUntil) return undefined;
    try {
      return work();
    } catch (error) {
      this.#degrade(error);
      return undefined;
    }
  }

  /** The same for what goes on without this thread. */
  async attemptAsync<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      this.#degrade(error);
      return undefined;
    }
  }

  /** Says that a write succeeded. */
  recovered(): void {
    this.#degraded = undefined;
  }

  /** Runs `last` where the index is still the directory's, and closes it. */
  close(last: () => void): void {
    this.attempt(() => {
      if (this.#index?.isCurrent()) last();
    });
    this.#closed = true;
    this.#index?.close();
    this.#index = undefined;
  }

  /** Notes that the directory does not take what was to be written; any other error is thrown again. */
  #degrade(error: unknown): void {
    if (!isTrouble(error)) throw error;
    const reason = ioError(`write to the cache directory ${this.#files.directory}`, error).message;
    this.#degradedUntil = Date.now() + DEGRADED_MS;
    const before = this.#degraded;
    this.#degraded = reason;
    if (before === undefined) this.#onDegraded?.(reason);
  }
}

/** True for failures of the operating system and of SQLite, as opposed to mistakes in the program. */
export function isTrouble(error: unknown): boolean {
  const code = (error as { code?: unknown } | undefined)?.code;
  return isIndexDamage(error) || (typeof code === "string" && /^(E[A-Z0-9]+|SQLITE_\w+)$/.test(code));
}
