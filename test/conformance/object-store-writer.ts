/** Another process's share in the object store suite: puts the keys it is told, once it is told to start. */
import { once } from "node:events";
import { openStore } from "../../src/cas/index.ts";

const [urls = "", name = "", ...keys] = process.argv.slice(2);
const store = await openStore(JSON.parse(urls));
process.stdout.write("ready\n");
await once(process.stdin, "data");
const won = await Promise.all(
  keys.map(async (key) => ((await store.put(key, Buffer.from(`${key} of ${name}`), { ifAbsent: true })) ? key : "")),
);
process.stdout.write(`${JSON.stringify(won.filter((key) => key !== ""))}\n`);
process.exit(0);
