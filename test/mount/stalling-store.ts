/** A store for tests of reads that wait. */

import type { ObjectStore } from "../../src/cas/index.ts";

/** A store that never answers for one key. */
export function stalling(store: ObjectStore, key: string): ObjectStore {
  return new Proxy(store, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== "function") return value;
      return (first: unknown, ...rest: unknown[]): unknown =>
        first === key ? new Promise(() => {}) : value.call(target, first, ...rest);
    },
  });
}
