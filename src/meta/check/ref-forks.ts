import { listAll, type ObjectStore } from "../../cas/index.ts";
import { getRecord, type RefRecord, refRecord } from "../records.ts";

/**
 * Brings entries of a ref back into its log that lost their number to another entry, because they were
 * made while not all stores answered: each is added at the end, unless it is there already. The ref then
 * stands for the latest of the entries from that number on; where that is not the last one, it is repeated.
 *
 * @param key of the entry that has the number
 * @param losers the other records that were found under that key
 */
export async function rejoinRef(metadata: ObjectStore, key: string, losers: readonly Buffer[]): Promise<void> {
  const prefix = key.slice(0, key.lastIndexOf("/") + 1);
  const log: Buffer[] = [await getRecord(metadata, key)];
  let last = key;
  for await (const { key: later } of listAll(metadata, prefix)) {
    if (later <= key) continue;
    log.push(await getRecord(metadata, later));
    last = later;
  }
  const append = async (record: Buffer): Promise<void> => {
    do last = followingKey(last);
    while (!(await metadata.put(last, record, { ifAbsent: true })));
    log.push(record);
  };
  for (const loser of [...losers].sort(byTime)) if (!log.some((entry) => entry.equals(loser))) await append(loser);
  const latest = [...log].sort(byTime).at(-1)!;
  if (!latest.equals(log.at(-1)!)) await append(latest);
}

/** The order of entries that do not know of each other: by time, then by bundle. */
function byTime(a: Buffer, b: Buffer): number {
  const [one, other] = [rank(refRecord.decode(a)), rank(refRecord.decode(b))];
  return one < other ? -1 : one > other ? 1 : 0;
}

function rank({ timestamp, bundle }: RefRecord): string {
  return `${timestamp.toISOString()} ${bundle ?? ""}`;
}

function followingKey(key: string): string {
  return key.replace(/\d+(?=\.yaml$)/, (digits) => String(Number(digits) + 1).padStart(digits.length, "0"));
}
