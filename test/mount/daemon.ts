/** The process that serves a mount for the tests, so that they may use it like anybody else: without waiting for themselves. */

import { DiskCache, Fetcher } from "../../src/cache/index.ts";
import { BlobStore, blobKey, DatamonError, type ObjectStore, openStore } from "../../src/cas/index.ts";
import { openChannel } from "../../src/fs/channels/channel.ts";
import { prepareDirectory } from "../../src/fs/mount-directory.ts";
import type { DaemonMessage, DaemonTask, TestMessage } from "./fixture.ts";

const task = JSON.parse(process.argv[2]!) as DaemonTask;

function tell(message: DaemonMessage): void {
  process.send?.(message);
}

function describe(error: unknown): { code: string; message: string; hint: string | undefined } {
  if (error instanceof DatamonError) return { code: error.code, message: error.message, hint: error.hint };
  return { code: "none", message: String(error), hint: undefined };
}

/** A store that never answers for one key. */
function stalling(store: ObjectStore, key: string): ObjectStore {
  return new Proxy(store, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== "function") return value;
      return (first: unknown, ...rest: unknown[]): unknown =>
        first === key ? new Promise(() => {}) : value.call(target, first, ...rest);
    },
  });
}

const store = await openStore(task.store);
const blobs = new BlobStore(task.stall === undefined ? store : stalling(store, blobKey(task.stall)));
const cache = DiskCache.open(task.cacheDirectory);
try {
  const { path } = await prepareDirectory(task.directory);
  const channel = await openChannel(task.kind, {
    directory: path,
    spec: task.spec,
    cacheDirectory: task.cacheDirectory,
    name: task.name,
    allowOther: task.allowOther,
    fetcher: new Fetcher(blobs, cache),
    onError: (request, subject, error) => tell({ kind: "failure", request, subject, message: String(error) }),
  });
  const answers: Promise<void>[] = [];
  process.on("message", (message: TestMessage) => {
    const answer = channel.unmount({ lazy: message.lazy }).then(
      () => tell({ kind: "unmounted" }),
      (error: unknown) => tell({ kind: "error", ...describe(error) }),
    );
    answers.push(answer);
  });
  process.on("SIGTERM", () => process.exit(0));
  tell({ kind: "mounted" });
  await channel.closed;
  await Promise.all(answers);
} catch (error) {
  tell({ kind: "error", ...describe(error) });
}
cache.close();
process.disconnect?.();
