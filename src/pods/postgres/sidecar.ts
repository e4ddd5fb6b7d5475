/** The life of a PostgreSQL sidecar: databases are brought up, used by the application, saved, and acknowledged. */

import { chmod, mkdir, mkdtemp, rmdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { DatamonError, ioError } from "../../cas/index.ts";
import type { Context } from "../../meta/index.ts";
import { ApplicationFailedError, Coordination, STEPS } from "../coordination.ts";
import { type Log, logOf } from "../log.ts";
import {
  DEFAULT_GRACE,
  ENDED_SILENCE,
  listenForTermination,
  sleepInsteadOfEnding,
  TerminatedError,
} from "../termination.ts";
import { Database, type SavedDatabase } from "./database.ts";
import type { PostgresParams } from "./params.ts";
import { findPrograms } from "./programs.ts";
import { serverUser } from "./user.ts";

/** What a PostgreSQL sidecar runs with. */
export interface PostgresSidecarOptions {
  params: PostgresParams;
  /** Opens the stores; what is wrong with them is told to the application, too. */
  openContext(): Promise<Context>;
  /** Directory for what is this user's. */
  home: string;
  /** Where changes of streamed databases are kept; the user's scratches where undefined. */
  scratchDirectory: string | undefined;
  /** Directory of PostgreSQL's programs; found where undefined. */
  binDirectory: string | undefined;
  /** Whom PostgreSQL runs as where this process is root. */
  user: string;
  /** Seconds for which the application's wrapper may be silent, 0 for ever. */
  timeout: number | undefined;
  /** Seconds to wait for the application's word once this process was asked to end (default: `DEFAULT_GRACE`). */
  grace: number | undefined;
  /** Where blobs and catalogs are cached. */
  cacheDirectory(context: Context): string;
  /** Told of each bundle when it is there. */
  onSaved(saved: SavedDatabase): void;
}

const STEP = STEPS.postgres;

/**
 * Runs the databases until they are saved and acknowledged.
 *
 * Where the application fails, its databases are discarded. Where anything else fails, the application is told,
 * and databases that it may have written to are kept on disk; the log says where, and how to save them.
 *
 * @returns the exit status; everything was said and signalled already
 */
export async function runPostgresSidecar(options: PostgresSidecarOptions): Promise<number> {
  const { params, timeout } = options;
  const log = logOf("postgres sidecar");
  const termination = listenForTermination(log);
  const coordination = await Coordination.open({
    directory: params.coordination,
    kind: "postgres",
    places: params.databases.map(({ id }) => id),
    ...(timeout !== undefined && { timeout }),
    log,
  });
  const status = await new Sidecar(options, coordination, termination, log).run();
  coordination.close();
  if (params.sleep) await sleepInsteadOfEnding(status, termination, log);
  return status;
}

class Sidecar {
  readonly #options: PostgresSidecarOptions;
  readonly #coordination: Coordination;
  readonly #termination: AbortSignal;
  readonly #log: Log;
  /** Aborted by what fails first, which ends the waiting of all databases. */
  readonly #failed = new AbortController();
  #saving: Promise<unknown> = Promise.resolve();

  constructor(options: PostgresSidecarOptions, coordination: Coordination, termination: AbortSignal, log: Log) {
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
      // Databases that are brought up anew would be saved as if they were what the application made of them.
      for (const step of [STEP.ready, STEP.upload]) await this.#checkUnused(step);
      await this.#serve();
      this.#log("done");
      return 0;
    } catch (error) {
      return await this.#giveUp(error);
    }
  }

  async #checkUnused(step: string): Promise<void> {
    for (const place of this.#places()) {
      if (!(await this.#coordination.has(join(place, step)))) continue;
      throw new DatamonError(
        "conflict",
        `${join(place, step)} is there already: the servers of an earlier run are gone`,
        {
          hint: "Run the pod again, with an empty coordination directory.",
        },
      );
    }
  }

  /** Directories below the coordination directory in which steps are signalled. */
  #places(): string[] {
    return ["", ...this.#options.params.databases.map(({ id }) => id)];
  }

  async #serve(): Promise<void> {
    const { params, home, scratchDirectory, binDirectory, user } = this.#options;
    const context = await this.#options.openContext();
    const around = {
      context,
      home,
      cacheDirectory: this.#options.cacheDirectory(context),
      scratchDirectory,
      programs: await findPrograms(binDirectory),
      user: await serverUser(user),
      ignoreVersion: params.ignoreVersion,
      dataRoot: await makeRoot(params.dataRoot),
    };
    const databases = params.databases.map((one) => new Database(one, around, this.#log));
    try {
      await this.#bringUp(databases);
      await this.#finish(databases);
    } finally {
      // Ours alone, and empty unless something was kept.
      if (params.dataRoot === undefined) await rmdir(around.dataRoot).catch(() => undefined);
    }
  }

  async #bringUp(databases: Database[]): Promise<void> {
    const signal = AbortSignal.any([this.#failed.signal, this.#termination]);
    try {
      await this.#all(databases, async (database) => {
        await database.start(signal);
        database.lost.catch((error) => this.#failed.abort(named(database, error)));
      });
      for (const { params } of databases) await this.#coordination.signal(join(params.id, STEP.ready));
      await this.#coordination.signal(STEP.ready);
    } catch (error) {
      // Nobody has used them yet.
      await this.#afterFailure(databases, (database) => database.discard());
      throw error;
    }
  }

  async #finish(databases: Database[]): Promise<void> {
    const unsaved = new Set(databases);
    try {
      await this.#all(databases, async (database) => {
        const { id } = database.params;
        await this.#waitForUpload(id);
        await database.settle();
        const saved = await this.#alone(() => database.save());
        unsaved.delete(database);
        if (saved !== undefined) this.#options.onSaved(saved);
        await this.#coordination.signal(join(id, STEP.done), saved?.bundle);
      });
    } catch (error) {
      const failed = error instanceof ApplicationFailedError;
      await this.#afterFailure([...unsaved], (database) => (failed ? database.discard() : database.keep()));
      throw error;
    }
    await this.#coordination.signal(STEP.done);
  }

  /** The application asks for all databases at once, or for this one. */
  async #waitForUpload(id: string): Promise<void> {
    const names = [STEP.upload, join(id, STEP.upload)];
    const describe = `${STEP.upload} of the application for ${id}`;
    try {
      const signal = AbortSignal.any([this.#failed.signal, this.#termination]);
      await this.#coordination.wait(names, { signal, describe });
    } catch (error) {
      if (!(error instanceof TerminatedError)) throw error;
      await this.#lastWord(error, names, describe);
    }
  }

  /** The pod ends: its application was told, too, or has ended already, and may have a last word. */
  async #lastWord(terminated: TerminatedError, names: string[], describe: string): Promise<void> {
    const within = this.#options.grace ?? DEFAULT_GRACE;
    this.#log(`the pod ends; the application has ${within} s to ask for the upload`);
    try {
      const { signal } = this.#failed;
      await this.#coordination.wait(names, { signal, describe, within, silence: ENDED_SILENCE });
    } catch (error) {
      if (error instanceof ApplicationFailedError || this.#failed.signal.aborted) throw error;
      throw terminated;
    }
  }

  /** Does the work for all at the same time, lets all come to their end, and throws what failed first. */
  async #all(databases: Database[], work: (database: Database) => Promise<void>): Promise<void> {
    const fail = (database: Database, error: unknown) => {
      // An abort is a consequence of the first failure, and its reason that failure itself.
      if (this.#failed.signal.aborted) return;
      const interrupted = error instanceof DatamonError && error.code === "interrupted" && this.#termination.aborted;
      this.#failed.abort(interrupted ? this.#termination.reason : named(database, error));
    };
    await Promise.all(databases.map((database) => work(database).catch((error) => fail(database, error))));
    this.#failed.signal.throwIfAborted();
  }

  /** Saves one database after the other: each takes all the threads and memory that there is use for. */
  async #alone<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#saving.then(work);
    this.#saving = mine.catch(() => undefined);
    return await mine;
  }

  /** What fails here comes after what failed before, and is only said. */
  async #afterFailure(databases: Database[], work: (database: Database) => Promise<void>): Promise<void> {
    await Promise.all(
      databases.map(async (database) => {
        try {
          await work(database);
        } catch (error) {
          this.#say(error, `${database.params.id}: `);
        }
      }),
    );
  }

  /** Tells the other side and the log what happened. */
  async #giveUp(error: unknown): Promise<number> {
    this.#say(error, "failed: ");
    try {
      // A failed application knows already; one that is started again waits for databases to come.
      if (error instanceof ApplicationFailedError) await this.#withdraw();
      else await this.#coordination.fail(ioError("go on", error).message.replaceAll(/\n\s*/g, "; "));
    } catch (failure) {
      this.#log(`the application could not be told: ${(failure as Error).message}`);
    }
    return error instanceof TerminatedError ? error.status : 1;
  }

  async #withdraw(): Promise<void> {
    for (const place of this.#places()) await this.#coordination.withdraw(join(place, STEP.ready));
  }

  #say(error: unknown, before: string): void {
    const { message, hint } = ioError("go on", error);
    for (const line of `${before}${message}`.split("\n")) this.#log(line);
    if (hint !== undefined) this.#log(`  ${hint}`);
  }
}

/** The directory of data directories; one that the server's user can pass through. */
async function makeRoot(given: string | undefined): Promise<string> {
  try {
    if (given === undefined) {
      const own = await mkdtemp(join(tmpdir(), "datamon-postgres-"));
      await chmod(own, 0o711);
      return own;
    }
    await mkdir(given, { recursive: true });
    return resolve(given);
  } catch (error) {
    throw ioError(`make the directory ${given ?? tmpdir()} for data directories`, error);
  }
}

function named(database: Database, error: unknown): unknown {
  if (!(error instanceof DatamonError) || error instanceof ApplicationFailedError || error instanceof TerminatedError) {
    return error;
  }
  const { code, message, hint } = error;
  return new DatamonError(code, `database ${database.params.id}: ${message}`, {
    ...(hint !== undefined && { hint }),
    cause: error,
  });
}
