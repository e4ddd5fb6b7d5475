/** The daemon's side of its supervisor. */

import { writeSync } from "node:fs";
import { Socket } from "node:net";
import { type ByteString, isErrno } from "../../cas/index.ts";
import type { Session } from "../channels/kernel/negotiate.ts";
import type { MountRecord } from "../mount-record.ts";
import type { MountPoint } from "../mount-table.ts";
import type { NamespaceSpec } from "../namespace.ts";
import { DEVICE_FD, type Line, type Start, SUPERVISOR_FD } from "./messages.ts";

/**
 * What a daemon that takes over a mount has to know, because nobody will tell it again: the values
 * that the daemons before it left with `handOver`, by section and key.
 */
export interface Handover {
  readonly mount: {
    /** What mount.json said last. */
    readonly record: MountRecord;
    /** What stands in the table of mounts. */
    readonly point: MountPoint;
    readonly spec: NamespaceSpec;
    /** The first of the directories that mounting made; empty where none. */
    readonly made: string;
    /** The configuration file; empty where there is none. */
    readonly config: string;
  };
  readonly kernel: {
    /** What was agreed with the kernel. */
    readonly session: Session;
  };
  /** Of writable mounts, by handle: the position of the entry that was listed last, and its name. */
  readonly listings?: Readonly<Record<string, readonly [position: number, name: ByteString]>>;
}

/** Waits between attempts to write to a supervisor that is slow to read, in milliseconds, and how many there are. */
const WAIT = 5;
const ATTEMPTS = 400;

/**
 * Leaves a value to the daemons to come; null forgets it. It is safe from the death of this process
 * once the call returns. Any thread may call it; where there is no supervisor any more, it does nothing.
 */
export function handOver(section: keyof Handover, key: string, value: unknown): void {
  tell(["set", section, key, value]);
}

/** What is in the socket stays there when its writer dies, until the supervisor has read it. */
function tell(line: Line): void {
  let rest = Buffer.from(`${JSON.stringify(line)}\n`);
  for (let attempts = 0; rest.length > 0; ) {
    try {
      rest = rest.subarray(writeSync(SUPERVISOR_FD, rest));
    } catch (error) {
      if (isErrno(error, "EAGAIN") && attempts++ < ATTEMPTS) {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, WAIT);
        continue;
      }
      if (isErrno(error, "EAGAIN", "EPIPE", "ECONNRESET", "EBADF")) return;
      throw error;
    }
  }
}

/** The supervisor of this process. */
export class Supervision {
  /** What the daemon before left; undefined for the first one of a mount. */
  readonly inherited: Handover | undefined;
  /** How many daemons the mount has had before this one. */
  readonly restarts: number;
  readonly supervisor = process.ppid;
  /** Resolves when the supervisor died: this daemon's end is the mount's end then. */
  readonly lost: Promise<void>;
  #present = true;
  #resends = false;
  #serving: boolean;
  #ending = false;

  private constructor(start: Start, lost: Promise<void>) {
    this.inherited = start.state as unknown as Handover | undefined;
    this.restarts = start.restarts;
    this.#serving = start.state !== undefined;
    this.lost = lost;
    void lost.then(() => {
      this.#present = false;
    });
  }

  /** To be called once, in a process that a supervisor started. */
  static async connect(): Promise<Supervision> {
    const socket = new Socket({ fd: SUPERVISOR_FD, readable: true, writable: false });
    socket.setEncoding("utf8");
    const lost = new Promise<void>((resolve) => {
      socket.on("error", () => {});
      socket.on("close", () => resolve());
    });
    const start = await new Promise<Start>((resolve, reject) => {
      let text = "";
      socket.on("data", (part: string) => {
        text += part;
        if (text.endsWith("\n")) resolve(JSON.parse(text) as Start);
      });
      void lost.then(() => reject(new Error("the supervisor died")));
    });
    // A mount that is over is not kept waiting.
    socket.unref();
    return new Supervision(start, lost);
  }

  /** True while another daemon would take over if this one ended. */
  get replaces(): boolean {
    return this.#present && this.#serving && !this.#ending;
  }

  /** The descriptor of /dev/fuse that was inherited. */
  get device(): number {
    return DEVICE_FD;
  }

  /** Gives the supervisor the connection of a new mount; this process keeps it, too. */
  async share(device: number, session: Session, point: MountPoint): Promise<void> {
    const { sendDescriptor } = await import("../channels/kernel/libc.ts");
    sendDescriptor(DEVICE_FD, device);
    tell(["descriptor"]);
    handOver("kernel", "session", session);
    handOver("mount", "point", point);
    this.#resends = session.resends;
  }

  /**
   * Everything has been handed over that another daemon needs; false where none could take over,
   * because this kernel would never ask it what was left without an answer.
   */
  serving(): boolean {
    if (this.inherited === undefined && !this.#resends) return false;
    this.#serving = true;
    tell(["serving"]);
    return true;
  }

  /** The mount is gone or about to go: this process is not to be replaced. */
  ending(): void {
    if (this.#ending) return;
    this.#ending = true;
    tell(["ending"]);
  }

  /** Ends this process at once and leaves the mount to the next. */
  abandon(): never {
    process.kill(process.pid, "SIGKILL");
    throw new Error("still alive");
  }
}
