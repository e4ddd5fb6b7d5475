import { execFileSync } from "node:child_process";
import { join } from "node:path";

let paths: Map<string, string> | undefined;

/** Where a program is that `scripts/test-tools` installs; undefined where it cannot. */
export function toolPath(name: string): string | undefined {
  if (paths === undefined) {
    const script = join(import.meta.dirname, "..", "..", "scripts", "test-tools");
    const lines = execFileSync(script, { encoding: "utf8" }).trim().split("\n");
    paths = new Map(lines.filter((line) => line !== "").map((line) => line.split(" ") as [string, string]));
  }
  return paths.get(name);
}
