/** The log of a mount's daemon: a file of JSON lines. */

/** Where a daemon, which has no terminal, tells what it meets. */
export interface MountLog {
  info(message: string): void;
  error(message: string, error: unknown): void;
  close(): void;
}

/** Appends to `file`, each line at once, so that a daemon that is killed has told all. */
export async function openMountLog(file: string): Promise<MountLog> {
  const { pino } = await import("pino");
  const destination = pino.destination({ dest: file, append: true, sync: true, mode: 0o600 });
  // A full disk may cost lines of the log, and not the mount.
  destination.on("error", () => {});
  const logger = pino({ base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime }, destination);
  return {
    info: (message) => logger.info(message),
    error: (message, error) => logger.error({ err: error }, message),
    close: () => destination.end(),
  };
}
