/** Says one step to whoever reads a container's log: a line on stderr with the time and who speaks. */
export type Log = (line: string) => void;

/** A log of one speaker, such as `fuse sidecar`. */
export function logOf(speaker: string): Log {
  return (line) => void process.stderr.write(`${clockTime()} ${speaker}: ${line}\n`);
}

/** `2026-11-20T09:02:33Z`: seconds are enough for a person, and every container's log is in the same zone. */
export function clockTime(date = new Date()): string {
  return `${date.toISOString().slice(0, 19)}Z`;
}
