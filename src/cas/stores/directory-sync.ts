import { open } from "node:fs/promises";
import { isErrno } from "../errors.ts";

/**
 * Makes directory entries durable for many callers at once. Requests that arrive while a round of
 * fsyncs is under way wait for the next round, which serves all of them: a hundred concurrent puts
 * need a few rounds rather than a hundred fsyncs. A round takes its directories one after the
 * other, because on a journaling file system the first fsync commits the others' entries too and
 * leaves the thread pool to the file data.
 */
export class DirectorySync {
  #wanted = new Set<string>();
  #running: Promise<void> = Promise.resolve();
  #next: Promise<void> | undefined;

  /** Resolves when everything that was in `directories` at the time of the call is durable. */
  sync(directories: Iterable<string>): Promise<void> {
    for (const directory of directories) this.#wanted.add(directory);
    this.#next ??= this.#startAfter(this.#running);
    return this.#next;
  }

  #startAfter(previous: Promise<void>): Promise<void> {
    const round = previous.then(async () => {
      const directories = this.#wanted;
      this.#wanted = new Set();
      this.#next = undefined;
      this.#running = round.catch(() => undefined);
      for (const directory of directories) await syncDirectory(directory);
    });
    return round;
  }
}

async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, "r");
  try {
    await handle.sync();
  } catch (error) {
    // Some network file systems have no fsync for directories; their entries are durable at once or never.
    if (!isErrno(error, "EINVAL", "ENOTSUP")) throw error;
  } finally {
    await handle.close();
  }
}
