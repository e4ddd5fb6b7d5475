/** Another process's share in the label tests: moves one label many times, once it is told to start. */
import { once } from "node:events";
import { openContext, setLabel } from "../../src/meta/index.ts";

const [metadata = "", blob = "", name = "", count = "", repo = "", label = "", bundle = ""] = process.argv.slice(2);
const context = await openContext({ metadata, blob, name, email: "", file: undefined });
process.stdout.write("ready\n");
await once(process.stdin, "data");
const numbers: number[] = [];
for (let at = 0; at < Number(count); at++) numbers.push((await setLabel(context, repo, label, bundle)).number);
process.stdout.write(`${JSON.stringify(numbers)}\n`);
process.exit(0);
