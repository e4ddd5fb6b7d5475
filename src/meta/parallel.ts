/** How many small objects are fetched or deleted at once: enough to hide a remote store's latency. */
const CONCURRENCY = 16;

/**
 * What `work` makes of each item, in the order of the items. Up to 16 items, or `concurrency`, are worked on at once,
 * and no more results than that are held. The first failure, in order, ends it.
 */
export async function* mapInOrder<T, R>(
  items: AsyncIterable<T> | Iterable<T>,
  work: (item: T) => Promise<R>,
  concurrency = CONCURRENCY,
): AsyncGenerator<R, void> {
  const pending: Promise<R>[] = [];
  for await (const item of items) {
    const result = work(item);
    // It is awaited below in its turn; until then its failure must not count as unhandled.
    result.catch(() => undefined);
    pending.push(result);
    if (pending.length >= concurrency) yield await pending.shift()!;
  }
  for (const result of pending) yield await result;
}
