/**
 * Changes the files of a folder until its standard input ends, then prints what it left: an object of
 * names to contents, null for files that it removed.
 *
 * node churn.ts DIRECTORY FILES SEED
 */
import { renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [directory = "", files = "0", seed = "1"] = process.argv.slice(2);
const count = Number(files);
const left: Record<string, string | null> = {};
let random = Number(seed);
let turn = 0;
let stopped = false;

function next(limit: number): number {
  random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
  return random % limit;
}

function step(): void {
  for (let i = 0; i < 5; i++) {
    turn++;
    const name = `${next(10)}/${next(count)}`;
    const path = join(directory, name);
    const content = String(1e9 + turn);
    const kind = next(4);
    if (kind === 0) {
      rmSync(path, { force: true });
      left[name] = null;
    } else if (kind === 1) {
      writeFileSync(`${path}.part`, content);
      left[`${name}.part`] = null;
      renameSync(`${path}.part`, path);
      left[name] = content;
    } else {
      // Of the same length as before.
      writeFileSync(path, content);
      left[name] = content;
    }
  }
  if (!stopped) setImmediate(step);
  else process.stdout.write(JSON.stringify(left));
}

process.stdin.on("end", () => {
  stopped = true;
});
process.stdin.resume();
step();
