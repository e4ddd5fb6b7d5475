/**
 * Named fault points: places where a test can make this process fail or die.
 *
 * `DATAMON_FAULT=<point>:<occurrence>:<action>` arms one. The occurrence counts from 1; with a `+`
 * after it, every later one fails too. Actions: `kill` (SIGKILL to this process), `error` (EIO),
 * `nospace` (ENOSPC). Example: `DATAMON_FAULT=put.blobs:3:kill`.
 *
 * Points about objects are named after the first segment of the key: `put.blobs`, `put.catalogs`,
 * `put.bundles`, `put.refs`, `put.repos` for the moment before an object appears, with `.done` for the
 * moment after, and `delete.blobs` and so on. `change` is the moment after a mount's daemon made, removed or
 * renamed something, before the kernel is told. In a commit of a mount that goes on, `freeze` and `freeze.done` are around the
 * step that freezes a layer, `commit.made` is when its bundle and label are there and it is not noted yet, and
 * `rebase` and `rebase.done` are around what makes the mount stand on that bundle.
 */

interface Fault {
  readonly point: string;
  readonly occurrence: number;
  readonly andLater: boolean;
  readonly action: string;
  seen: number;
}

let armed: Fault | undefined = process.env.DATAMON_FAULT === undefined ? undefined : parse(process.env.DATAMON_FAULT);

/** Arms the fault that `spec` describes (the form of `$DATAMON_FAULT`) in this thread, or none. For tests. */
export function setFault(spec: string | undefined): void {
  armed = spec === undefined ? undefined : parse(spec);
}

/**
 * A place that can be made to fail: the point `<verb>`, `<verb>.<first segment of key>` or
 * `<verb>.<first segment of key>.<stage>`. Throws an error with an errno code, as the operating
 * system would, when its turn has come; otherwise does nothing.
 */
export function faultPoint(verb: string, key?: string, stage?: string): void {
  if (armed === undefined) return;
  const name = [verb, key?.split("/", 1)[0], stage].filter((part) => part !== undefined).join(".");
  if (name !== armed.point) return;
  armed.seen++;
  if (armed.seen < armed.occurrence || (armed.seen > armed.occurrence && !armed.andLater)) return;
  if (armed.action === "kill") process.kill(process.pid, "SIGKILL");
  const code = armed.action === "nospace" ? "ENOSPC" : "EIO";
  throw Object.assign(new Error(`${code}: injected at ${name}`), { code });
}

function parse(spec: string): Fault {
  const match = /^([a-z.-]+):([1-9]\d*)(\+?):(kill|error|nospace)$/.exec(spec);
  if (match === null) throw new Error(`DATAMON_FAULT is not <point>:<occurrence>:<kill|error|nospace>: ${spec}`);
  const [, point = "", occurrence, later, action = ""] = match;
  return { point, occurrence: Number(occurrence), andLater: later === "+", action, seen: 0 };
}
