/** What a supervisor and the daemon of its mount tell each other. */

/** How a supervisor is started: its only argument, as JSON. */
export interface SupervisorTask {
  /** Program and arguments of the daemon. */
  readonly command: readonly string[];
  /** The mount's log. */
  readonly log: string;
  /** Deaths of the daemon within a minute at which the mount is given up. */
  readonly deaths: number;
  /** Somebody watches stderr, and nobody waits for a report. */
  readonly foreground: boolean;
}

/** The daemon's descriptor of the pipe to whoever made the mount in the background, who waits on its other end. */
export const REPORT_FD = 3;
/** The daemon's end of the socket to its supervisor. */
export const SUPERVISOR_FD = 4;
/** The first daemon of a mount has a socket here, to send the descriptor of /dev/fuse; every later one has that descriptor. */
export const DEVICE_FD = 5;
/** A file in memory, empty for the first daemon, for what changes too often to be told: what a daemon writes there the next finds. */
export const MEMORY_FD = 6;

/**
 * What daemons of one mount leave to those that come after them: values by section and key. The
 * supervisor keeps them and knows nothing of what they mean; `Handover` does.
 */
export type State = Record<string, Record<string, unknown>>;

/** To the daemon, the first line. */
export interface Start {
  /** What the daemon before left; absent for the first. */
  readonly state?: State;
  /** How many daemons the mount has had before. */
  readonly restarts: number;
}

/** From the daemon: JSON, one message a line. */
export type Line =
  /** Keep this value; null forgets the key. */
  | readonly ["set", section: string, key: string, value: unknown]
  /** The descriptor of /dev/fuse was sent. */
  | readonly ["descriptor"]
  /** The mount is served: from now on a daemon that ends is replaced. */
  | readonly ["serving"]
  /** The mount is gone: let the daemon end. */
  | readonly ["ending"];
