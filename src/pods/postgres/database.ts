import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { bytesOf, DatamonError, ioError } from "../../cas/index.ts";
import { DEATHS, downloadBundle, downloadFile, startMount, unmount, uploadTree } from "../../fs/index.ts";
import { type Bundle, type Context, resolveBundle } from "../../meta/index.ts";
import type { Log } from "../log.ts";
import { quoteWord } from "../words.ts";
import { adopt, majorOf, removeDirectory, strip, VERSION_FILE } from "./data-directory.ts";
import type { DatabaseParams } from "./params.ts";
import type { Programs } from "./programs.ts";
import { type Installation, initialise, Server, SUPERUSER } from "./server.ts";
import type { User } from "./user.ts";

/** What every database of a sidecar is run with. */
export interface Surroundings {
  context: Context;
  /** Directory for what is this user's. */
  home: string;
  /** Where blobs and catalogs are cached. */
  cacheDirectory: string;
  /** Below it the data directories are; there must be nothing of others in them. */
  dataRoot: string;
  /** Where changes of streamed databases are kept; the user's scratches by default. */
  scratchDirectory: string | undefined;
  /** Installed servers, the preferred one first. */
  programs: Programs[];
  user: User | undefined;
  /** A fresh database in the place of one of another major version. */
  ignoreVersion: boolean;
}

/** A bundle that a database was saved as. */
export interface SavedDatabase {
  id: string;
  repo: string;
  bundle: string;
  label?: string;
}

/** One database: its data directory, the server that runs on it, and what becomes of both. */
export class Database {
  readonly params: DatabaseParams;
  readonly directory: string;
  readonly #around: Surroundings;
  readonly #log: Log;
  /** What its server is run with; of the right version once the source is known. */
  #installation: Installation;
  #bundle: Bundle | undefined;
  #made = false;
  #mounted = false;
  #server: Server | undefined;

  constructor(params: DatabaseParams, around: Surroundings, log: Log) {
    this.params = params;
    this.directory = join(around.dataRoot, params.id);
    this.#around = around;
    this.#log = (line) => log(`${params.id}: ${line}`);
    this.#installation = { programs: around.programs[0] as Programs, user: around.user };
  }

  /** Rejects when the server ends by itself; to be asked for once it has started. */
  get lost(): Promise<never> {
    return (this.#server as Server).lost;
  }

  /** Brings the data directory here, or makes one, and starts the server; it answers when this returns. */
  async start(signal: AbortSignal): Promise<void> {
    const { source, stream, port, owner } = this.params;
    if (source !== undefined) {
      this.#bundle = await resolveBundle(this.#around.context, source.repo, source);
      if (!(await this.#suits(this.#bundle))) this.#bundle = undefined;
    }
    await this.#makeDirectory();
    const bundle = this.#bundle;
    if (bundle === undefined) await this.#initialise();
    else if (stream) await this.#mount(bundle);
    else await this.#download(bundle, signal);
    signal.throwIfAborted();
    const { programs } = this.#installation;
    this.#log(`starting PostgreSQL ${programs.version} on port ${port}, data in ${this.directory}`);
    const log: Log = (line) => this.#log(`postgres: ${line}`);
    this.#server = await Server.start(this.#installation, this.directory, port, log, signal);
    if (bundle === undefined && owner !== undefined) {
      await this.#server.query(`CREATE ROLE "${owner.replaceAll('"', '""')}" SUPERUSER LOGIN`);
    }
    this.#log(`answers on 127.0.0.1:${port}, superuser ${SUPERUSER}`);
  }

  /** Stops the server where it runs, with all that it holds in the files. */
  async stop(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    this.#log("stopping PostgreSQL");
    await server.stop();
    this.#server = undefined;
  }

  /** Vacuums, stops, and removes what is not to be stored. */
  async settle(): Promise<void> {
    if (this.params.destination === undefined) return;
    this.#log("VACUUM and CHECKPOINT");
    await this.#server?.settle();
    await this.stop();
    await strip(this.#installation, this.directory);
  }

  /** Makes a bundle of the data directory of a settled database; without a destination, discards it. */
  async save(): Promise<SavedDatabase | undefined> {
    const { id, destination } = this.params;
    if (destination === undefined) {
      await this.discard();
      return undefined;
    }
    const { repo, label } = destination;
    this.#log(`saving to ${repo}`);
    const began = performance.now();
    const bundle = this.#mounted ? await this.#commit() : await this.#upload(destination);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const labelled = label === undefined ? "" : `, label ${label}`;
    this.#log(`saved as bundle ${bundle} of ${repo}${labelled}, after ${seconds} s`);
    await this.#remove();
    return { id, repo, bundle, ...(label !== undefined && { label }) };
  }

  /** Stops the server and forgets what it held. */
  async discard(): Promise<void> {
    await this.stop();
    if (!this.#made) return;
    if (this.#mounted) await this.#takeAway(true);
    await this.#remove();
    this.#log("discarded");
  }

  /** Stops the server and leaves what it held, and says where; what has no destination is discarded. */
  async keep(): Promise<void> {
    const { destination } = this.params;
    if (destination === undefined || !this.#made) return await this.discard();
    const ran = this.#server !== undefined;
    await this.stop();
    if (ran) await strip(this.#installation, this.directory).catch((error) => this.#log((error as Error).message));
    if (this.#mounted) {
      const scratch = await this.#takeAway(false);
      if (scratch !== undefined) this.#log(`not saved; kept: to save it, run: datamon scratch commit ${scratch}`);
      return;
    }
    const { repo, message, label } = destination;
    const words = ["--repo", repo, "--path", this.directory, "--message", message];
    const command = [...words, ...(label === undefined ? [] : ["--label", label])].map(quoteWord).join(" ");
    this.#log(`not saved; kept in ${this.directory}: to save it, run: datamon bundle upload ${command}`);
  }

  /** Picks the server for a bundle; false where none is of its version and a fresh database is to take its place. */
  async #suits(bundle: Bundle): Promise<boolean> {
    const major = await this.#majorOf(bundle);
    const { programs, ignoreVersion, user } = this.#around;
    const suitable = programs.find((one) => one.major === major);
    if (suitable !== undefined) {
      this.#installation = { programs: suitable, user };
      return true;
    }
    const versions = programs.map(({ version }) => version).join(", ");
    const mismatch = `bundle ${bundle.id} of ${bundle.repo} is of PostgreSQL ${major}, and here is ${versions}`;
    if (ignoreVersion) {
      this.#log(`${mismatch}: starting a fresh database in its place, as version mismatches are to be ignored`);
      return false;
    }
    throw new DatamonError("unsupported", mismatch, {
      hint: `Run a sidecar with PostgreSQL ${major}, or dump the database there and restore it in a fresh one.`,
    });
  }

  /** Only this file is fetched, so that a large bundle of the wrong version costs nothing. */
  async #majorOf(bundle: Bundle): Promise<string> {
    const { context, cacheDirectory } = this.#around;
    const destination = await mkdtemp(join(tmpdir(), "datamon-version-"));
    try {
      await downloadFile(context, { bundle, file: bytesOf(VERSION_FILE), destination, cacheDirectory });
      return await majorOf(destination);
    } catch (error) {
      if (!(error instanceof DatamonError) || error.code !== "not-found") throw error;
      throw new DatamonError("usage", `bundle ${bundle.id} of ${bundle.repo} holds no PostgreSQL data directory`, {
        hint: `There is no ${VERSION_FILE} at its top.`,
        cause: error,
      });
    } finally {
      await rm(destination, { recursive: true, force: true });
    }
  }

  async #makeDirectory(): Promise<void> {
    try {
      await mkdir(this.directory, { recursive: true, mode: 0o700 });
      if ((await readdir(this.directory)).length > 0) {
        throw new DatamonError("exists", `the data directory ${this.directory} is not empty`, {
          hint: "It may hold a database that was not saved. Save it with 'datamon bundle upload', or remove it.",
        });
      }
      this.#made = true;
    } catch (error) {
      throw ioError(`make the data directory ${this.directory}`, error);
    }
  }

  async #initialise(): Promise<void> {
    this.#log("making a fresh database");
    await adopt(this.directory, this.#around.user);
    await initialise(this.#installation, this.directory);
  }

  async #download(bundle: Bundle, signal: AbortSignal): Promise<void> {
    const { context, cacheDirectory, user } = this.#around;
    this.#log(`downloading bundle ${bundle.id} of ${bundle.repo}`);
    const began = performance.now();
    const { files, bytes } = await downloadBundle(context, {
      bundle,
      destination: this.directory,
      cacheDirectory,
      signal,
      onWarning: this.#log,
    });
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    this.#log(`downloaded ${files} files, ${bytes} bytes, after ${seconds} s`);
    await adopt(this.directory, user);
  }

  async #mount(bundle: Bundle): Promise<void> {
    const { home, cacheDirectory, scratchDirectory, user } = this.#around;
    const { destination } = this.params;
    this.#log(`mounting bundle ${bundle.id} of ${bundle.repo}`);
    const args = ["mount", "--rw", `--message=${destination?.message ?? ""}`, `--cache-dir=${cacheDirectory}`];
    if (destination?.label !== undefined) args.push(`--label=${destination.label}`);
    if (scratchDirectory !== undefined) args.push(`--scratch-dir=${scratchDirectory}`);
    // Root may, and only root has another user's server to let in.
    if (user !== undefined) args.push("--allow-other");
    await startMount(home, [...args, `${bundle.repo}@${bundle.id}`, this.directory], { deaths: DEATHS });
    this.#mounted = true;
    await adopt(this.directory, user);
  }

  /** @returns the new bundle's id */
  async #commit(): Promise<string> {
    // Whatever comes of it, there is no mount then; where it fails, the error says where the changes are.
    this.#mounted = false;
    this.#made = false;
    const outcome = await unmount({ home: this.#around.home, directory: this.directory });
    if (outcome.kind === "committed") return outcome.bundle;
    // A server that ran has at least noted that it ended.
    throw new DatamonError("conflict", `the mount on ${this.directory} ended without changes`);
  }

  /** @returns the new bundle's id */
  async #upload({ repo, message, label }: NonNullable<DatabaseParams["destination"]>): Promise<string> {
    const { context, cacheDirectory, dataRoot } = this.#around;
    // What is known of these files is of use once.
    const stateFile = join(dataRoot, `.${this.params.id}-stat.sqlite`);
    const follows = this.#bundle?.repo === repo ? [this.#bundle.id] : undefined;
    try {
      const { bundle, stats } = await uploadTree(context, {
        repo,
        path: this.directory,
        message,
        label,
        parents: follows,
        cacheDirectory,
        stateFile,
        onWarning: this.#log,
      });
      this.#log(`uploaded ${bundle.files} files, ${bundle.bytes} bytes; ${stats.bytesPut} bytes new in the store`);
      return bundle.id;
    } finally {
      for (const suffix of ["", "-wal", "-shm"]) await rm(`${stateFile}${suffix}`, { force: true });
    }
  }

  /** Takes the mount away without a commit. @returns the id of the scratch that is left */
  async #takeAway(discard: boolean): Promise<string | undefined> {
    const { home } = this.#around;
    const outcome = await unmount({ home, directory: this.directory, commit: false });
    this.#mounted = false;
    if (outcome.kind !== "kept") return undefined;
    if (discard) {
      const { discardScratch, getScratch } = await import("../../fs/index.ts");
      await discardScratch(await getScratch(join(home, "scratch"), outcome.scratch));
    }
    return outcome.scratch;
  }

  async #remove(): Promise<void> {
    await removeDirectory(this.directory);
    this.#made = false;
  }
}
