/**
 * The supervisor of a mount: a process of its own that holds the descriptor of /dev/fuse, on which
 * the mount's life hangs, and starts the daemon that serves it, again where it dies. It is kept small,
 * and so imports nothing of Datamon but a few system calls.
 */

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { appendFileSync, closeSync, readFileSync, writeSync } from "node:fs";
import type { Socket } from "node:net";
import { constants } from "node:os";
import { setTimeout } from "node:timers/promises";
import { type Line, REPORT_FD, type Start, type State, type SupervisorTask } from "./messages.ts";

/** The time in which deaths are counted, in milliseconds. */
const WINDOW = 60_000;

/**
 * A daemon that lived so long after its start, in milliseconds, and served for so long of it, had
 * taken the mount over: what killed it was not there from the beginning, and counting begins with it.
 * Without this rule a mount could not be kept through, say, a machine that is short of memory.
 */
const LIVED = 800;
const SERVED = 200;

/** How long after a daemon that never came to serve the next one is started, in milliseconds. */
const PAUSE = 500;

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** pino's level of an error, for the log that daemons write, too. */
const ERROR = 50;

class Supervisor {
  readonly #task: SupervisorTask;
  readonly #state: State = {};
  /** When daemons died, each but the first having hardly lived, by the monotonic clock. */
  #deaths: number[] = [];
  #restarts = 0;
  /** The descriptor of /dev/fuse, once the first daemon has sent it and until the mount is gone. */
  #device: number | undefined;
  /** The memory that daemons leave to each other. */
  #memory: number | undefined;
  /** What this process was asked last. */
  #signal: NodeJS.Signals | undefined;
  #daemon: ChildProcess | undefined;
  /** The daemon takes signals: it serves, or has not begun to do anything that would have to be undone. */
  #reachable = false;
  #served = false;
  /** When the present daemon was started, and when it began to serve, by the monotonic clock. */
  #began = 0;
  #serving = Number.POSITIVE_INFINITY;
  #ending = false;

  constructor(task: SupervisorTask) {
    this.#task = task;
    for (const name of SIGNALS) process.on(name, () => this.#pass(name));
  }

  /** Runs until the mount is over; the exit status is that of its last daemon. */
  async run(): Promise<number> {
    for (;;) {
      const { code, signal } = await this.#life();
      // Whether the daemon ended well or badly: there is no mount to be served any more, or never was.
      if (this.#ending || this.#device === undefined || !this.#served) {
        return code ?? 128 + constants.signals[signal ?? "SIGKILL"];
      }
      const how = signal ?? `status ${code}`;
      const now = performance.now();
      const lived = now - this.#began >= LIVED && now - this.#serving >= SERVED;
      this.#deaths = [...(lived ? [] : this.#deaths.filter((at) => at > now - WINDOW)), now];
      if (this.#deaths.length >= this.#task.deaths) {
        this.#giveUp(how);
        return 1;
      }
      this.#restarts++;
      this.#log(`the daemon died (${how}); starting another, number ${this.#restarts + 1}`);
      if (!this.#reachable) await setTimeout(PAUSE);
    }
  }

  /** Starts a daemon and waits for its end. */
  async #life(): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
    const first = this.#device === undefined;
    this.#reachable = first;
    // Needed for the first daemon only.
    const libc = first ? await import("../channels/kernel/libc.ts") : undefined;
    this.#memory ??= libc?.memoryFile("datamon");
    const sockets = libc?.socketPair();
    const [program, ...args] = this.#task.command as [string, ...string[]];
    const report = first && !this.#task.foreground ? REPORT_FD : "ignore";
    this.#began = performance.now();
    this.#serving = Number.POSITIVE_INFINITY;
    const daemon = spawn(program, args, {
      // In a session of its own, so that the terminal's signals come to it through here, once.
      detached: true,
      stdio: ["ignore", "inherit", "inherit", report, "pipe", sockets?.[1] ?? this.#device, this.#memory],
    });
    this.#daemon = daemon;
    const end = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
      daemon.once("error", () => resolve({ code: 1, signal: null }));
      // All that the daemon said has been read when this comes.
      daemon.once("close", (code, signal) => resolve({ code, signal }));
    });
    if (sockets !== undefined) closeSync(sockets[1]);
    if (first) this.#leave();
    const socket = daemon.stdio[4] as Socket | undefined;
    if (socket !== undefined) {
      const start: Start = { ...(!first && { state: this.#state }), restarts: this.#restarts };
      // A daemon that is gone reads no more.
      socket.on("error", () => {});
      socket.write(`${JSON.stringify(start)}\n`);
      this.#listen(socket, () => (sockets === undefined ? undefined : libc?.receiveDescriptor(sockets[0])));
    }
    const ended = await end;
    this.#daemon = undefined;
    if (sockets !== undefined) closeSync(sockets[0]);
    return ended;
  }

  /** Keeps nothing in use that the mount does not need. */
  #leave(): void {
    if (!this.#task.foreground) closeSync(REPORT_FD);
    process.chdir("/");
  }

  #listen(socket: Socket, receive: () => number | undefined): void {
    let rest = "";
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        try {
          this.#take(JSON.parse(line) as Line, receive);
        } catch (error) {
          this.#log(`a line of the daemon was not understood: ${error}`);
        }
      }
    });
  }

  #take(line: Line, receive: () => number | undefined): void {
    if (line[0] === "set") this.#keep(line[1], line[2], line[3]);
    else if (line[0] === "descriptor") this.#device = receive();
    else if (line[0] === "serving") {
      this.#served = true;
      this.#serving = performance.now();
      this.#reachable = true;
      if (this.#signal !== undefined) this.#pass(this.#signal);
    } else {
      this.#ending = true;
      // The kernel takes a connection for dead only when nobody holds it.
      this.#close();
    }
  }

  #keep(section: string, key: string, value: unknown): void {
    this.#state[section] ??= {};
    if (value === null) delete this.#state[section][key];
    else this.#state[section][key] = value;
  }

  #pass(signal: NodeJS.Signals): void {
    // The next daemon is told, too, should this one be dead already.
    this.#signal = signal;
    if (this.#reachable) this.#daemon?.kill(signal);
  }

  #close(): void {
    if (this.#device !== undefined) closeSync(this.#device);
    this.#device = undefined;
  }

  /** Without its last descriptor the connection ends, and with it every call that waits; then the mount goes from the tree. */
  #giveUp(how: string): void {
    const { directory, device } = (this.#state.mount?.point ?? {}) as { directory?: string; device?: string };
    this.#log(
      `the daemon died (${how}), ${this.#deaths.length} times within a minute: giving up. ${directory} is unmounted; ` +
        "what was written to it is kept in its scratch",
    );
    this.#close();
    if (directory === undefined || !readFileSync("/proc/self/mountinfo", "utf8").includes(` ${device} `)) return;
    const lazily = [
      ["umount", "-l", "--", directory],
      ["fusermount3", "-uz", "--", directory],
    ];
    for (const [program, ...args] of process.getuid?.() === 0 ? lazily : lazily.slice(1)) {
      if (spawnSync(program as string, args, { stdio: "ignore" }).status === 0) return;
    }
    this.#log(`${directory} could not be unmounted: datamon unmount takes it away`);
  }

  #log(msg: string): void {
    const line = { level: ERROR, time: new Date().toISOString(), pid: process.pid, msg };
    try {
      appendFileSync(this.#task.log, `${JSON.stringify(line)}\n`);
      if (this.#task.foreground) writeSync(2, `datamon: ${msg}\n`);
    } catch {
      // A full disk costs the line and nothing else.
    }
  }
}

process.exitCode = await new Supervisor(JSON.parse(process.argv[2] as string) as SupervisorTask).run();
