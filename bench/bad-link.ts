/**
 * A way to a server on which requests fail and answers are damaged: `node bad-link.ts ENDPOINT FAIL DAMAGE`
 * prints the endpoint that it serves. Of so many requests one fails, each time in another way, and of so
 * many one has a byte of its answer changed. SIGTERM ends it; it prints how many it did that to.
 */
import { type Fault, FaultProxy } from "../test/support/fault-proxy.ts";

const [endpoint, every, damage] = process.argv.slice(2) as [string, string, string];
const FAILURES: Fault[] = [{ status: 503 }, { cutAnswer: 0 }, { cutAnswer: 100_000 }, { status: 500 }];
const counts = { requests: 0, failed: 0, damaged: 0 };

const proxy = await FaultProxy.start(endpoint);
proxy.plan = () => {
  const number = counts.requests++;
  // In the middle of each run of so many, so that a short one has some, too.
  if (number % Number(damage) === Math.floor(Number(damage) / 16)) {
    counts.damaged++;
    return { corruptAnswer: 1000 };
  }
  if (number % Number(every) !== Math.floor(Number(every) / 2)) return undefined;
  return FAILURES[counts.failed++ % FAILURES.length];
};
console.log(proxy.endpoint);
process.on("SIGTERM", () => {
  console.log(JSON.stringify(counts));
  process.exit(0);
});
