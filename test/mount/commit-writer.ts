/** Writes a number into one file and then into another, the next number each time, until its input ends: A is B or one ahead. */

import { openSync, writeSync } from "node:fs";

const [a, b] = process.argv.slice(2).map((file) => openSync(file, "w+"));
process.stdin.on("end", () => process.exit(0)).resume();

let number = 0;
function burst(): void {
  for (let left = 200; left > 0; left--) {
    const text = String(++number).padStart(12, "0");
    writeSync(a!, text, 0);
    writeSync(b!, text, 0);
  }
  setImmediate(burst);
}
burst();
