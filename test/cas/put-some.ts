/** Puts five objects one after the other into the store at the URL given; for a fault to stop it. */
import { openStore } from "../../src/cas/index.ts";

const store = await openStore(process.argv[2] ?? "");
for (const key of ["blobs/1", "blobs/2", "blobs/3", "blobs/4", "blobs/5"]) {
  await store.put(key, Buffer.from(`content of ${key}`), { ifAbsent: true });
}
