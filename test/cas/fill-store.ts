/** Puts objects into the store at the URL given until that fails; prints how, and what is in the store then. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { DatamonError, openStore } from "../../src/cas/index.ts";

const url = process.argv[2] ?? "";
const store = await openStore(url);
try {
  for (let number = 0; number < 100; number++) await store.put(`blobs/${number}`, Buffer.alloc(300_000, 1));
} catch (error) {
  if (!(error instanceof DatamonError)) throw error;
  const { code, message } = error;
  const sizes = (await store.list("")).map((info) => info.size);
  const temporary = await readdir(join(fileURLToPath(url), ".tmp"));
  process.stdout.write(JSON.stringify({ code, message, sizes, temporary }));
}
