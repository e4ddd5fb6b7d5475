import type { ObjectInfo } from "../store.ts";

/**
 * One page of what any of several stores has, of the pages that they gave for the same question. A page
 * may be shorter than what was asked for without being the last: nothing is known of a store beyond the end of
 * its page, so the merged page goes no further than the shortest reaches. Of sizes that differ the first counts.
 */
export function mergePages(pages: readonly (readonly ObjectInfo[])[], limit = Number.POSITIVE_INFINITY): ObjectInfo[] {
  const known = pages.filter((page) => page.length > 0);
  if (known.length <= 1) return [...(known[0] ?? [])];
  const end = known.map((page) => page.at(-1)!.key).sort()[0]!;
  const merged: ObjectInfo[] = [];
  const at = known.map(() => 0);
  while (merged.length < limit) {
    let least: ObjectInfo | undefined;
    for (const [index, page] of known.entries()) {
      const info = page[at[index]!];
      if (info !== undefined && info.key <= end && (least === undefined || info.key < least.key)) least = info;
    }
    if (least === undefined) break;
    merged.push(least);
    for (const [index, page] of known.entries()) if (page[at[index]!]?.key === least.key) at[index]!++;
  }
  return merged;
}
