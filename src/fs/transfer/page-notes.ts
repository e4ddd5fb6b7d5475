/** What an upload or a comparison learns of one page of a directory, on its way into the stat cache. */
import { type ByteString, DatamonError } from "../../cas/index.ts";
import { isCurrent, type KnownEntry, type PageReader } from "./pages.ts";
import { isSettled, nowNs, type StatCache } from "./stat-cache.ts";
import type { LocalStat, SourceTree } from "./walk.ts";

/** The root directory's own page: no directory below it has this path. */
const ROOT_PAGE = "/" as ByteString;

/** The root directory as it is now, its extended attributes read only where the cache does not know them. */
export function readRoot(tree: SourceTree, cache: StatCache): { stat: LocalStat; xattrs: KnownEntry["xattrs"] } {
  const stat = tree.stat("" as ByteString);
  if (stat === undefined) throw new DatamonError("not-found", `${tree.show("" as ByteString)} is no longer there`);
  const notes = new PageNotes(cache, ROOT_PAGE, "" as ByteString);
  const name = "." as ByteString;
  const found = notes.find(name, stat);
  let xattrs = found?.xattrs;
  if (found === undefined) {
    xattrs = tree.xattrs("" as ByteString);
    notes.expect();
    notes.learn(name, stat, undefined, xattrs);
  }
  notes.end(false);
  return { stat, xattrs };
}

/** Collects a page's entries; it is stored when the last one is known, and only where something changed. */
export class PageNotes {
  readonly #cache: StatCache;
  readonly #path: ByteString;
  readonly #end: ByteString;
  readonly #reader: PageReader | undefined;
  readonly #startedNs = nowNs();
  readonly #entries: KnownEntry[] = [];
  #open = 1;
  #changed = false;

  constructor(cache: StatCache, path: ByteString, end: ByteString) {
    this.#cache = cache;
    this.#path = path;
    this.#end = end;
    this.#reader = cache.page(path, end);
  }

  /** What the cache says of an entry that still has these times; names must be asked for in ascending order. */
  find(name: ByteString, stat: LocalStat): KnownEntry | undefined {
    const known = this.#reader?.seek(name);
    if (known === undefined) return undefined;
    if (!isCurrent(known, stat)) {
      this.#changed = true;
      return undefined;
    }
    this.#entries.push(known);
    return known;
  }

  /** Announces an entry that will be noted later. */
  expect(): void {
    this.#open++;
  }

  /** Ends what `expect` began without knowing the entry. */
  giveUp(): void {
    this.#closeOne();
  }

  /** Ends what `expect` began: the entry was read, at some time after this page was begun, when it had these times. */
  learn(
    name: ByteString,
    stat: Omit<KnownEntry, "name" | "hash" | "xattrs">,
    hash: string | undefined,
    xattrs: KnownEntry["xattrs"],
  ): void {
    if (isSettled(stat.ctimeNs, this.#startedNs)) {
      const { size, mtimeNs, ctimeNs, ino } = stat;
      this.#entries.push({ name, size, mtimeNs, ctimeNs, ino, hash, xattrs });
      this.#changed = true;
    }
    this.#closeOne();
  }

  /**
   * To be called when every name of the page was looked at.
   *
   * @param keepOthers whether what the cache knows of names that were not asked for is still of use
   */
  end(keepOthers: boolean): void {
    const others = this.#reader?.rest() ?? [];
    if (keepOthers) this.#entries.push(...others);
    else if (others.length > 0) this.#changed = true;
    this.#closeOne();
  }

  #closeOne(): void {
    if (--this.#open > 0 || !this.#changed) return;
    this.#entries.sort((a, b) => (a.name < b.name ? -1 : 1));
    this.#cache.store(this.#path, this.#end, this.#entries);
  }
}
