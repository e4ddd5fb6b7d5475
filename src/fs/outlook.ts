/** What a bundle's catalog says about the order in which its content is read. */

import { type FileLayout, type Outlook, type Upcoming, WHOLE_FILE } from "../cache/index.ts";
import { type Hash, LARGE_FILE } from "../cas/index.ts";
import { Catalog } from "../meta/index.ts";
import { homeOf, layoutOf } from "./base.ts";
import type { NamespaceSpec } from "./namespace.ts";

/** An outlook over a catalog of its own, in any thread. */
export class CatalogOutlook implements Outlook {
  readonly #catalog: Catalog;

  private constructor(catalog: Catalog) {
    this.#catalog = catalog;
  }

  /** Undefined for a tree that has no bundle below it. */
  static open(spec: NamespaceSpec): CatalogOutlook | undefined {
    return spec.catalog === undefined ? undefined : new CatalogOutlook(Catalog.open(spec.catalog));
  }

  *from(ino: number, offset: number): Generator<Upcoming> {
    const start = this.#catalog.extents(ino, offset, offset + 1)[0]?.start ?? offset;
    let last: Hash | undefined;
    for (const found of this.#catalog.following(ino, start)) {
      const { blob } = found.extent;
      const inode = this.#catalog.inode(found.ino);
      if (blob === last || inode === undefined) continue;
      last = blob;
      yield { blob, home: homeOf(inode, found.extent), ino: found.ino, large: inode.size >= LARGE_FILE };
    }
  }

  /** What a large file that is assembled in the disk cache is made of. */
  layout(ino: number): FileLayout | undefined {
    const inode = this.#catalog.inode(ino);
    return inode === undefined || inode.size < WHOLE_FILE ? undefined : layoutOf(this.#catalog, inode);
  }

  close(): void {
    this.#catalog.close();
  }
}
