/** The newest bundle of a repo as something that a local tree is compared with. */
import { mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import type { ByteString } from "../../cas/index.ts";
import { type Bundle, Catalog, type Context, type Dentry, fetchCatalog, type Inode } from "../../meta/index.ts";
import type { LocalStat } from "./walk.ts";

/** Entries read from a catalog at once. */
const READ_AHEAD = 1024;
/** Catalogs under construction that are older than this were left by a process that died. */
const LEFT_BEHIND_MS = 24 * 3600 * 1000;

/** Opens a bundle's catalog, from the cache directory where it is there already. */
export async function openBundleCatalog(context: Context, bundle: Bundle, cacheDirectory: string): Promise<Catalog> {
  return Catalog.open(await fetchCatalog(context, bundle.catalog, catalogDirectory(cacheDirectory)));
}

/** Where catalogs are kept and built, made where it is missing. */
export function catalogDirectory(cacheDirectory: string): string {
  const directory = join(cacheDirectory, "catalogs");
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  return directory;
}

/** The name of a catalog under construction starts so. */
export const BUILDING = "building-";

/** Removes catalogs whose construction ended with the process. */
export function removeLeftBehind(directory: string): void {
  for (const name of readdirSync(directory)) {
    if (!name.startsWith(BUILDING)) continue;
    const file = join(directory, name);
    const stat = statSync(file, { throwIfNoEntry: false });
    if (stat !== undefined && Date.now() - stat.mtimeMs > LEFT_BEHIND_MS) rmSync(file, { force: true });
  }
}

/** A catalog's directory, read in step with ascending names. */
export class DirectoryCursor {
  readonly #catalog: Catalog;
  readonly #ino: number | undefined;
  #entries: Dentry[] = [];
  #at = 0;
  #ended: boolean;

  /** @param ino undefined for a directory that the catalog does not have: it is empty */
  constructor(catalog: Catalog, ino: number | undefined) {
    this.#catalog = catalog;
    this.#ino = ino;
    this.#ended = ino === undefined;
  }

  /** The next entry, which stays the next one until `take` or `seek` pass over it. */
  peek(): Dentry | undefined {
    if (this.#at === this.#entries.length && !this.#ended) {
      const last = this.#entries[this.#at - 1]?.name;
      this.#entries = this.#catalog.readdir(this.#ino as number, last, READ_AHEAD);
      this.#at = 0;
      this.#ended = this.#entries.length < READ_AHEAD;
    }
    return this.#entries[this.#at];
  }

  take(): Dentry | undefined {
    const entry = this.peek();
    if (entry !== undefined) this.#at++;
    return entry;
  }

  /** The entry of that name, if any; entries before it are passed over. */
  seek(name: ByteString): Inode | undefined {
    for (let entry = this.peek(); entry !== undefined && entry.name <= name; entry = this.peek()) {
      this.#at++;
      if (entry.name === name) return entry.inode;
    }
    return undefined;
  }
}

/** Whether the hard links of a local tree are those of a catalog; names and contents are compared elsewhere. */
export class LinkComparison {
  readonly #groups = new Map<string, { base: Inode; names: number }>();
  readonly #owners = new Map<number, string>();
  #equal = true;

  /**
   * Notes a file and the inode that stands at the same path in the catalog; true where the two stood
   * together before, at another path.
   */
  see(stat: LocalStat, base: Inode): boolean {
    if (stat.nlink === 1) {
      if (base.nlink !== 1) this.#equal = false;
      return false;
    }
    const key = linkKey(stat);
    const group = this.#groups.get(key) ?? { base, names: 0 };
    group.names++;
    this.#groups.set(key, group);
    const owner = this.#owners.get(base.ino) ?? key;
    this.#owners.set(base.ino, owner);
    if (group.base.ino !== base.ino || owner !== key) this.#equal = false;
    return this.#equal && group.names > 1;
  }

  /** To be asked when every file was seen. */
  equal(): boolean {
    if (!this.#equal) return false;
    // A file may have names outside the tree; what counts is how many the tree has.
    for (const { base, names } of this.#groups.values()) if (base.nlink !== names) return false;
    return true;
  }
}

/** What all names of one local file have in common. */
export function linkKey(stat: LocalStat): string {
  return `${stat.dev}:${stat.ino}`;
}
