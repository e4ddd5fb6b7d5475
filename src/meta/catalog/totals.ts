import type Database from "better-sqlite3";
import { isHash } from "../../cas/index.ts";
import type { CatalogTotals } from "./model.ts";
import { FORMAT_VERSION } from "./schema.ts";

const COUNTS = ["files", "directories", "symlinks", "bytes"] as const;

/** The totals in a catalog's meta table. Throws a RangeError where they are not all there. */
export function readTotals(database: Database.Database): CatalogTotals {
  const rows = database.prepare<[], [string, unknown]>("SELECT key, value FROM meta").raw().all();
  const meta = new Map(rows);
  if (meta.size !== COUNTS.length + 2 || meta.get("format") !== FORMAT_VERSION) {
    throw new RangeError("its meta table is not that of this format");
  }
  const [files, directories, symlinks, bytes] = COUNTS.map((key) => {
    const value = meta.get(key);
    if (!Number.isSafeInteger(value) || (value as number) < 0) throw new RangeError(`its number of ${key} is wrong`);
    return value as number;
  }) as [number, number, number, number];
  const hash = meta.get("tree");
  const tree = Buffer.isBuffer(hash) ? hash.toString("hex") : "";
  if (!isHash(tree)) throw new RangeError("its tree hash is wrong");
  return { tree, files, directories, symlinks, bytes };
}

/** Writes the meta table. */
export function writeTotals(database: Database.Database, totals: CatalogTotals): void {
  const write = database.prepare("INSERT OR REPLACE INTO meta(key, value) VALUES (?, ?)");
  write.run("format", BigInt(FORMAT_VERSION));
  write.run("tree", Buffer.from(totals.tree, "hex"));
  // An ANY column keeps a number as it is bound, and only bigints are bound as integers.
  for (const key of COUNTS) write.run(key, BigInt(totals[key]));
}
