/** Content that is in the store already, found by its hash: the files of the base bundle. */
import { type Extent, type FileContent, type Hash, HashIndex } from "../../cas/index.ts";
import type { Catalog, Inode } from "../../meta/index.ts";

/** Answers from a catalog; the index over all its files is made at the first question that needs it. */
export class KnownContent {
  readonly #catalog: Catalog;
  #index: HashIndex | undefined;

  constructor(catalog: Catalog) {
    this.#catalog = catalog;
  }

  /** The content of that hash: at `first`, a file where it is likely to be, or anywhere in the catalog. */
  find(hash: Hash, first: Inode | undefined): FileContent | undefined {
    if (first?.hash === hash) return this.#catalog.content(first.ino);
    this.#index ??= this.#build();
    for (const ino of this.#index.candidates(hash)) {
      if (this.#catalog.inode(ino)?.hash === hash) return this.#catalog.content(ino);
    }
    return undefined;
  }

  /** The extents of that content. */
  extents(hash: Hash): readonly Extent[] | undefined {
    return this.find(hash, undefined)?.extents;
  }

  #build(): HashIndex {
    const index = new HashIndex(this.#catalog.summary().files);
    for (const { hash, ino } of this.#catalog.contentHashes()) index.add(hash, ino);
    return index;
  }
}
