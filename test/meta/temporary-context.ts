import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { type Context, openContext } from "../../src/meta/index.ts";

/** A context over new, empty local stores below `root`; to be removed after use. */
export async function temporaryContext(): Promise<{ context: Context; root: string; remove(): Promise<void> }> {
  const root = await mkdtemp(join(tmpdir(), "datamon-meta-"));
  const context = await openContext({
    metadata: pathToFileURL(join(root, "meta")).href,
    blob: pathToFileURL(join(root, "blob")).href,
    name: "Ada",
    email: "ada@example.org",
    file: undefined,
  });
  return { context, root, remove: () => rm(root, { recursive: true, force: true }) };
}

/** Everything that an async iterable yields. */
export async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}
