import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";
import { DatamonError } from "../../cas/index.ts";
import type { Log } from "../log.ts";
import type { Programs } from "./programs.ts";
import type { User } from "./user.ts";

/** The superuser of every fresh data directory, and the one whom the sidecar connects as. */
export const SUPERUSER = "postgres";

const ADDRESS = "127.0.0.1";
/** Lines of what a program said that an error shows. */
const LAST_LINES = 8;
const TRY_EVERY_MS = 50;
/** Of a running server; see miscadmin.h in PostgreSQL's sources for its lines. */
export const LOCK_FILE = "postmaster.pid";
const STATUS_LINE = 7;

/** How PostgreSQL's programs are run. */
export interface Installation {
  programs: Programs;
  /** Whom they run as; this process's user where absent. */
  user: User | undefined;
}

/** Makes a fresh data directory in an empty one: locale C, so that it means the same everywhere, and UTF-8. */
export async function initialise(installation: Installation, dataDirectory: string): Promise<void> {
  // Nothing here outlives a crash of the machine, so nothing is to be forced to its disk.
  const args = ["--no-locale", "--encoding=UTF8", "--auth=trust", `--username=${SUPERUSER}`, "--no-sync"];
  await runTool(installation, "initdb", [...args, `--pgdata=${dataDirectory}`]);
}

/** What `pg_controldata` says of a data directory, by its labels. */
export async function controlData(
  installation: Installation,
  dataDirectory: string,
): Promise<Map<string, string | undefined>> {
  const text = await runTool(installation, "pg_controldata", [dataDirectory]);
  return new Map(
    text.split("\n").map((line) => {
      const at = line.indexOf(":");
      return [line.slice(0, at), line.slice(at + 1).trim()];
    }),
  );
}

/** A running PostgreSQL server. Its log goes to ours, line by line. */
export class Server {
  readonly port: number;
  /** Rejects when the server ends without having been asked to; never resolves before that. */
  readonly lost: Promise<never>;
  readonly #installation: Installation;
  readonly #process: ChildProcess;
  readonly #guard: ChildProcess;
  readonly #ended: Promise<void>;
  readonly #lastLines: string[] = [];
  #stopping = false;

  private constructor(installation: Installation, dataDirectory: string, port: number, log: Log) {
    this.port = port;
    this.#installation = installation;
    const { programs, user } = installation;
    const settings = [
      // One address, so that a port in use is an error and not half a success.
      `listen_addresses=${ADDRESS}`,
      "unix_socket_directories=",
      "logging_collector=off",
      "log_line_prefix=",
      // Files that were written over with what they held before would be stored as if it meant something.
      "wal_recycle=off",
      "archive_mode=off",
    ];
    this.#process = spawn(
      join(programs.directory, "postgres"),
      ["-D", dataDirectory, "-p", String(port), ...settings.flatMap((setting) => ["-c", setting])],
      // In a session of its own: a terminal's Ctrl-C is for the sidecar, which stops its servers in its own time.
      { ...user, cwd: "/", env: environment(), stdio: ["ignore", "pipe", "pipe"], detached: true },
    );
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      if (stream !== null) createInterface({ input: stream }).on("line", (line) => this.#heard(line, log));
    }
    const end = once(this.#process, "close");
    this.#guard = guard(this.#process, user);
    this.lost = end.then(([code, signal]) => {
      if (this.#stopping) return new Promise<never>(() => {});
      const how = signal === null ? `status ${code}` : signal;
      throw new DatamonError("io", `PostgreSQL ended by itself, with ${how}${indented(this.#lastLines)}`);
    });
    this.lost.catch(() => {});
    this.#ended = end.then(
      () => dismiss(this.#guard),
      () => dismiss(this.#guard),
    );
  }

  /** Starts a server and waits until it answers. Throws with the last lines of its log where it ends instead. */
  static async start(
    installation: Installation,
    dataDirectory: string,
    port: number,
    log: Log,
    signal: AbortSignal,
  ): Promise<Server> {
    const server = new Server(installation, dataDirectory, port, log);
    try {
      await Promise.race([server.#answers(dataDirectory, signal), server.lost]);
      return server;
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  /** Runs one SQL command as superuser and returns what it prints, unaligned and without headings. */
  async query(sql: string, database = "postgres"): Promise<string> {
    const args = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", ...this.#connection(), "-d", database, "-c", sql];
    return (await runTool(this.#installation, "psql", args)).trimEnd();
  }

  /**
   * Leaves in the files what only memory holds, and pages as readers will leave them: sessions are ended,
   * every database is vacuumed, and a checkpoint is made.
   */
  async settle(): Promise<void> {
    await this.query(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    );
    await runTool(this.#installation, "vacuumdb", ["--all", "--quiet", ...this.#connection()]);
    await this.query("CHECKPOINT");
  }

  /** Stops the server in PostgreSQL's fast mode: open sessions are ended, and the files are those of a clean end. */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#process.kill("SIGINT");
    await this.#ended;
  }

  #connection(): string[] {
    return ["-w", "-h", ADDRESS, "-p", String(this.port), "-U", SUPERUSER];
  }

  /** Waits for an answer of this very server, not of another one on the same port. */
  async #answers(dataDirectory: string, signal: AbortSignal): Promise<void> {
    while (!(await isReady(dataDirectory))) {
      signal.throwIfAborted();
      await Promise.race([setTimeout(TRY_EVERY_MS), this.lost]);
    }
    const where = await this.query("SHOW data_directory");
    if (where === dataDirectory) return;
    throw new DatamonError("conflict", `on port ${this.port} another server answers, with its data in ${where}`);
  }

  #heard(line: string, log: Log): void {
    this.#lastLines.push(line);
    if (this.#lastLines.length > LAST_LINES) this.#lastLines.shift();
    log(line);
  }
}

/** True where a server has noted that it accepts connections. (To try one before would fill its log with refusals.) */
async function isReady(dataDirectory: string): Promise<boolean> {
  const notes = await readFile(join(dataDirectory, LOCK_FILE), "utf8").catch(() => "");
  return notes.split("\n")[STATUS_LINE]?.trim() === "ready";
}

/** Stops the server where this process is killed: it would go on for ever, with nobody to save what it holds. */
function guard(server: ChildProcess, user: User | undefined): ChildProcess {
  const script = 'read -r _ || kill -INT "$1"';
  return spawn("/bin/sh", ["-c", script, "sh", String(server.pid)], {
    ...user,
    cwd: "/",
    stdio: ["pipe", "ignore", "ignore"],
    detached: true,
  }).on("error", () => {});
}

function dismiss(process: ChildProcess): void {
  process.stdin?.on("error", () => {});
  process.stdin?.end("\n");
}

/** The variables that PostgreSQL's programs get: a connection is what our arguments say, except for passwords. */
function environment(): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !/^PG(?!PASS)/.test(name));
  return {
    ...Object.fromEntries(kept),
    LC_ALL: "C",
    PGCONNECT_TIMEOUT: "10",
    // What databases and roles set for their users would end a long VACUUM.
    PGOPTIONS: "-c statement_timeout=0 -c lock_timeout=0",
  };
}

/** Runs one of PostgreSQL's tools to its end and returns what it printed. Throws "io" with what it complained of. */
function runTool({ programs, user }: Installation, tool: string, args: string[]): Promise<string> {
  const settings = { ...user, cwd: "/", env: environment(), maxBuffer: 16 * 1024 * 1024 };
  return new Promise((resolve, reject) => {
    execFile(join(programs.directory, tool), args, settings, (error, stdout, stderr) => {
      if (error === null) return resolve(stdout);
      const why = stderr.trim() === "" ? [error.message] : stderr.trim().split("\n");
      reject(new DatamonError("io", `${tool} failed${indented(why.slice(-LAST_LINES))}`, { cause: error }));
    });
  });
}

function indented(lines: string[]): string {
  return lines.length === 0 ? "" : `:\n${lines.map((line) => `  ${line}`).join("\n")}`;
}
