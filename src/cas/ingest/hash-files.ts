import type { ByteString } from "../bytes.ts";
import type { DatamonError } from "../errors.ts";
import type { Hash } from "../hash.ts";
import { Flow, type Pending, type Stages } from "./flow.ts";
import { ReaderPool } from "./pool.ts";
import { expectedSizeOf, type FileHandlers, type QueuedFile, ReadQueue } from "./read-queue.ts";
import type { FileStat } from "./source.ts";

/** Results that may wait for those before them. */
const WINDOW = 8192;

/** One file's content hash, and what it was like when it was read. */
export type HashResult<T> =
  | { readonly tag: T; readonly hash: Hash; readonly stat: FileStat }
  | { readonly tag: T; readonly error: DatamonError };

export interface HashFilesOptions {
  /** Stops it: the iteration throws a `DatamonError` of code `interrupted`. */
  readonly signal?: AbortSignal;
  /** Progress: content bytes that were read since the last call. */
  onBytes?(bytes: number): void;
}

class HashedFile<T> implements Pending<HashResult<T>>, QueuedFile {
  readonly tag: T;
  readonly span: number;
  readonly path: ByteString;
  readonly expectedSize: number;
  outcome: HashResult<T> | undefined;

  constructor(tag: T, span: number, path: ByteString, expectedSize: number) {
    this.tag = tag;
    this.span = span;
    this.path = path;
    this.expectedSize = expectedSize;
  }

  result(): HashResult<T> | undefined {
    return this.outcome;
  }
}

/**
 * Hashes the contents of files on disk in several threads and stores nothing. Results come in the
 * order of the files; one that cannot be read comes as an error. `size` is what the caller has seen.
 */
export async function* hashFiles<T>(
  files: AsyncIterable<{ tag: T; path: ByteString; size?: number }>,
  options: HashFilesOptions = {},
): AsyncGenerator<HashResult<T>, void, undefined> {
  type File = HashedFile<T>;
  const pool = new ReaderPool(false);
  const flow = new Flow<HashResult<T>>(WINDOW);
  const handlers: FileHandlers<File> = {
    small: (file, hash, stat) => settle(file, { tag: file.tag, hash, stat }),
    chunk() {},
    large: (file, hash, stat) => settle(file, { tag: file.tag, hash, stat }),
    failed: (file, error) => settle(file, { tag: file.tag, error }),
    progress: (bytes) => options.onBytes?.(bytes),
    changed: () => flow.changed(),
    broken: (error) => flow.fail(error),
  };
  const queue = new ReadQueue<File>(pool, handlers);
  const settle = (file: File, outcome: HashResult<T>): void => {
    file.outcome = outcome;
    queue.release(file);
  };
  let count = 0;
  const stages: Stages<{ tag: T; path: ByteString; size?: number }, HashResult<T>> = {
    accept({ tag, path, size }) {
      const expected = expectedSizeOf({ kind: "path", path, ...(size === undefined ? {} : { size }) });
      const file = new HashedFile(tag, count++, path, expected);
      queue.add(file);
      return file;
    },
    pause: () => queue.flush(),
    end: () => queue.flush(),
    idle: () => true,
    async stop() {
      queue.stop();
      await pool.stop();
    },
  };
  yield* flow.run(files, stages, options.signal);
}
