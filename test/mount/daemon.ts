/** The process that serves a mount for the tests, so that they may use it like anybody else: without waiting for themselves. */

import { DiskCache, Fetcher } from "../../src/cache/index.ts";
import { BlobStore, blobKey, DatamonError, openStore } from "../../src/cas/index.ts";
import { openChannel } from "../../src/fs/channels/channel.ts";
import { prepareDirectory } from "../../src/fs/mount-directory.ts";
import { chooseOpenMode } from "../../src/fs/open-mode.ts";
import type { DaemonMessage, DaemonTask, TestMessage } from "./fixture.ts";
import { stalling } from "./stalling-store.ts";

const task = JSON.parse(process.argv[2]!) as DaemonTask;

function tell(message: DaemonMessage): void {
  process.send?.(message);
}

function describe(error: unknown): { code: string; message: string; hint: string | undefined } {
  if (error instanceof DatamonError) return { code: error.code, message: error.message, hint: error.hint };
  return { code: "none", message: String(error), hint: undefined };
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
    openMode: task.openMode === undefined ? chooseOpenMode(task.spec) : { mode: task.openMode, reason: "the test" },
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
