import type { SingleBar } from "cli-progress";
import { formatBytes, formatCount, plural, say } from "./output.ts";

/** How far a long operation has come. Totals are absent until they are known. */
export interface ProgressState {
  files: number;
  bytes: number;
  totalFiles?: number;
  totalBytes?: number;
}

/** A progress line on a terminal's stderr; elsewhere it prints nothing. */
export class Progress {
  readonly #verb: string;
  readonly #what: string;
  readonly #started = performance.now();
  #bar: SingleBar | undefined;
  #state: ProgressState = { files: 0, bytes: 0 };
  readonly #counting = new AbortController();
  #totals: { totalFiles?: number; totalBytes?: number } = {};

  private constructor(verb: string, what: string, bar: SingleBar | undefined) {
    this.#verb = verb;
    this.#what = what;
    this.#bar = bar;
    bar?.start(1, 0, { text: verb });
  }

  /**
   * @param verb what is going on, such as `Uploading`
   * @param what is counted
   */
  static async start(verb: string, what = "file"): Promise<Progress> {
    if (!process.stderr.isTTY) return new Progress(verb, what, undefined);
    const { SingleBar } = (await import("cli-progress")).default;
    return new Progress(
      verb,
      what,
      new SingleBar({
        format: "{text}",
        fps: 5,
        hideCursor: true,
        clearOnComplete: true,
        linewrap: false,
        stream: process.stderr,
      }),
    );
  }

  /** Has the totals counted while the work goes on; only where there is a line that shows them. */
  expect(count: (signal: AbortSignal) => Promise<{ files: number; bytes: number }>): void {
    if (this.#bar === undefined) return;
    count(this.#counting.signal).then(
      ({ files, bytes }) => {
        this.#totals = { totalFiles: files, totalBytes: bytes };
      },
      // Without totals the line shows less; what is wrong with the folder comes from the work itself.
      () => undefined,
    );
  }

  /** Shows a new state; cheap enough to call for every file, since the bar redraws a few times a second. */
  update(state: ProgressState): void {
    this.#state = state;
    this.#bar?.update(0, { text: this.#line() });
  }

  /** Says something on a line of its own, above the progress line. */
  warn(line: string): void {
    this.#bar?.stop();
    say(line);
    this.#bar?.start(1, 0, { text: this.#line() });
  }

  /** Takes the line away. */
  stop(): void {
    this.#counting.abort();
    this.#bar?.stop();
    this.#bar = undefined;
  }

  /** `12 files, 3.4 MiB in 1.2 s (2.8 MiB/s)`, for the line that stays. */
  summary(): string {
    const seconds = this.#seconds();
    const { files, bytes } = this.#state;
    return `${plural(files, this.#what)}, ${formatBytes(bytes)} in ${seconds.toFixed(1)} s (${formatBytes(Math.round(bytes / seconds))}/s)`;
  }

  #line(): string {
    const { files, bytes, totalFiles, totalBytes } = { ...this.#totals, ...this.#state };
    const seconds = this.#seconds();
    const rate = bytes / seconds;
    const of = (total: string | undefined) => (total === undefined ? "" : ` of ${total}`);
    const parts = [
      `${this.#verb}: ${formatCount(files)}${of(totalFiles === undefined ? undefined : formatCount(totalFiles))} ${this.#what}s`,
      `${formatBytes(bytes)}${of(totalBytes === undefined ? undefined : formatBytes(totalBytes))}`,
      `${formatBytes(Math.round(rate))}/s`,
    ];
    if (totalBytes !== undefined && rate > 0) parts.push(`${formatSeconds((totalBytes - bytes) / rate)} left`);
    return parts.join(", ");
  }

  #seconds(): number {
    return Math.max((performance.now() - this.#started) / 1000, 0.001);
  }
}

function formatSeconds(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
