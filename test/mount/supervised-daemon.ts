/** A daemon for a supervisor to start. The first one of a mount has a store that never answers for one blob. */

import { DiskCache, Fetcher } from "../../src/cache/index.ts";
import { BlobStore, blobKey, openStore } from "../../src/cas/index.ts";
import { openChannel } from "../../src/fs/channels/channel.ts";
import { handOver, Supervision } from "../../src/fs/supervision/supervision.ts";
import type { DaemonTask } from "./fixture.ts";
import { stalling } from "./stalling-store.ts";

const task = JSON.parse(process.argv[2]!) as DaemonTask;
const supervision = await Supervision.connect();
const store = await openStore(task.store);
const stalls = supervision.restarts === 0 && task.stall !== undefined;
const cache = DiskCache.open(task.cacheDirectory);
const channel = await openChannel(task.kind, {
  directory: task.directory,
  spec: task.spec,
  cacheDirectory: task.cacheDirectory,
  name: task.name,
  openMode: { mode: "noopen", reason: "asked for" },
  fetcher: new Fetcher(new BlobStore(stalls ? stalling(store, blobKey(task.stall!)) : store), cache),
  supervision,
  onError: (request, subject, error) => console.log("failed", request, subject, error),
});
handOver("mount", "spec", task.spec);
supervision.serving();
console.log("serving", process.pid);
await channel.closed;
supervision.ending();
cache.close();
