/** Tries a POSIX lock in a process of its own: `lock-child.ts FILE START LENGTH`; exit status 0 where it got it. */

import { openSync } from "node:fs";
import { lockRange } from "./calls.ts";

const [file, start, length] = process.argv.slice(2);
process.exit(lockRange(openSync(file!, "r+"), Number(start), Number(length)) ? 0 : 1);
