import { listAll, type ObjectInfo, type ObjectStore } from "../../cas/index.ts";

/** One key and what each store has under it. */
export interface Entry {
  readonly key: string;
  /** In the order of the stores; undefined where it is not there. */
  readonly infos: (ObjectInfo | undefined)[];
  /** Something stored needs the object. */
  readonly needed: boolean;
}

/**
 * The keys below a prefix that any of the stores has or that are needed, in order, with what each store has.
 *
 * @param needed keys, in order
 * @param failed is told of a store that cannot be listed to its end; it must not be compared from there on
 */
export async function* mergeListings(
  stores: readonly ObjectStore[],
  prefix: string,
  needed: Iterable<string>,
  failed: (store: ObjectStore, error: unknown) => void,
): AsyncGenerator<Entry> {
  const listings = stores.map((store) => listAll(store, prefix));
  const next = async (index: number): Promise<ObjectInfo | undefined> => {
    try {
      return (await listings[index]!.next()).value ?? undefined;
    } catch (error) {
      failed(stores[index]!, error);
      return undefined;
    }
  };
  const heads = await Promise.all(listings.map((_, index) => next(index)));
  const keys = needed[Symbol.iterator]();
  let wanted = keys.next();
  for (;;) {
    let key = wanted.done === true ? undefined : wanted.value;
    for (const head of heads) if (head !== undefined && (key === undefined || head.key < key)) key = head.key;
    if (key === undefined) return;
    const infos = heads.map((head) => (head?.key === key ? head : undefined));
    const isNeeded = wanted.done !== true && wanted.value === key;
    yield { key, infos, needed: isNeeded };
    if (isNeeded) wanted = keys.next();
    for (const [index, info] of infos.entries()) if (info !== undefined) heads[index] = await next(index);
  }
}
