/** One pass over a local tree that fills a catalog: known content from the base, everything else through the placer. */
import {
  type ByteString,
  DatamonError,
  type FileContent,
  joinPath,
  type Placed,
  type Placer,
  type Source,
} from "../../cas/index.ts";
import { type Attributes, type Catalog, type CatalogSummary, type CatalogWriter, ROOT_INO } from "../../meta/index.ts";
import { DirectoryCursor, LinkComparison, linkKey } from "./base-tree.ts";
import type { Breath } from "./breath.ts";
import type { KnownContent } from "./known-content.ts";
import { PageNotes, readRoot } from "./page-notes.ts";
import { isCurrent, pagesOf } from "./pages.ts";
import type { Selection } from "./selection.ts";
import type { StatCache } from "./stat-cache.ts";
import { attributesOf, type LocalStat, type SourceTree } from "./walk.ts";

/** What a scan works with. */
export interface ScanParts {
  tree: SourceTree;
  writer: CatalogWriter;
  cache: StatCache;
  breath: Breath;
  selection: Selection;
  base: Catalog | undefined;
  known: KnownContent | undefined;
  /** Files and bytes done. */
  onFile(files: number, bytes: number): void;
  /** A socket, fifo or device was met. */
  onOther(path: ByteString): void;
  /** An entry could not be read; throws where that ends the scan. */
  onFailure(error: DatamonError): void;
}

/** A directory whose content is still to be scanned. */
interface Directory {
  path: ByteString;
  ino: number;
  baseIno: number | undefined;
  /** How to enter it in the catalog; undefined once that is done. A selection enters it with the first entry below it. */
  pending: { parent: Directory; name: ByteString; attributes: Attributes } | undefined;
}

/** A file on its way through the placer. */
interface Waiting {
  parent: number;
  name: ByteString;
  ino: number;
  path: ByteString;
  stat: LocalStat;
  xattrs: Map<ByteString, Buffer> | undefined;
  /** Where to note what was read; undefined where it is known already. */
  notes: PageNotes | undefined;
  link: LinkGroup | undefined;
}

/** The names of a file that has several: those met before it is in the catalog wait for it. */
interface LinkGroup {
  ino: number;
  state: "waiting" | "placed" | "failed";
  names: { parent: number; name: ByteString; path: ByteString }[];
}

/** A scan of a tree; `run` once. */
export class TreeScan {
  readonly #parts: ScanParts;
  readonly #links = new Map<string, LinkGroup>();
  readonly #comparison = new LinkComparison();
  /** Entries left out because they could not be read. */
  failed = 0;
  /** Sockets, fifos and devices. */
  skipped = 0;
  /** Files that needed no reading. */
  reusedFiles = 0;
  /** Files on their way through the placer. */
  #waiting = 0;
  #allFound = false;

  constructor(parts: ScanParts) {
    this.#parts = parts;
  }

  /**
   * Fills the catalog and completes it, the latter while the last blobs are on their way. When it resolves,
   * every blob that the catalog names is in the store.
   */
  async run(placer: Placer): Promise<CatalogSummary> {
    let summary: Promise<CatalogSummary> | undefined;
    const finish = (): void => {
      if (!this.#allFound || this.#waiting > 0) return;
      summary ??= this.#parts.writer.finish();
      // Where putting the last blobs fails, that is what is told.
      summary.catch(() => undefined);
    };
    try {
      for await (const result of placer.place(this.#sources(finish))) {
        this.#waiting--;
        if ("error" in result) this.#giveUp(result.tag, result.error);
        else this.#placed(result.tag, result.placed);
        finish();
      }
    } catch (error) {
      await summary?.catch(() => undefined);
      throw error;
    }
    return await summary!;
  }

  /** Whether the hard links are those of the base, for trees that are equal otherwise. */
  linksEqual(): boolean {
    return this.#comparison.equal();
  }

  async *#sources(ended: () => void): AsyncGenerator<{ tag: Waiting; source: Source }> {
    const { tree, writer, breath, selection } = this.#parts;
    this.#checkNamed();
    const root = readRoot(tree, this.#parts.cache);
    writer.setAttributes(ROOT_INO, attributesOf(root.stat, root.xattrs));
    const directories: Directory[] = [{ path: "" as ByteString, ino: ROOT_INO, baseIno: ROOT_INO, pending: undefined }];
    for (let directory = directories.pop(); directory !== undefined; directory = directories.pop()) {
      const below: Directory[] = [];
      const names = this.#names(directory);
      const cursor = this.#parts.base && new DirectoryCursor(this.#parts.base, directory.baseIno);
      let ino = writer.reserve(names.length);
      for (const page of pagesOf(names)) {
        const notes = new PageNotes(this.#parts.cache, directory.path, page.end);
        for (const name of page.names) {
          if (breath.due()) await breath.pause();
          const path = joinPath(directory.path, name);
          const wanted = selection.has(path);
          if (!wanted && !selection.mayHaveBelow(path)) continue;
          const stat = this.#stat(path);
          if (stat === undefined) continue;
          const base = cursor?.seek(name);
          if (stat.kind === "directory") {
            const child = this.#directory(directory, name, path, stat, ino++, notes, base?.ino);
            if (wanted) this.#enter(child);
            below.push(child);
          } else if (wanted) {
            const waiting = this.#entry(directory, name, path, stat, ino++, notes, base);
            if (waiting !== undefined) {
              this.#waiting++;
              yield { tag: waiting, source: tree.source(path, stat) };
            }
          }
        }
        notes.end(!selection.everything);
      }
      for (let child = below.pop(); child !== undefined; child = below.pop()) directories.push(child);
    }
    this.#allFound = true;
    ended();
  }

  #names(directory: Directory): ByteString[] {
    try {
      return this.#parts.tree.names(directory.path);
    } catch (error) {
      if (directory.path === "") throw error;
      this.#fail(error);
      return [];
    }
  }

  #xattrs(path: ByteString): Map<ByteString, Buffer> | undefined {
    try {
      return this.#parts.tree.xattrs(path);
    } catch (error) {
      this.#fail(error);
      return undefined;
    }
  }

  #stat(path: ByteString): LocalStat | undefined {
    const { tree } = this.#parts;
    try {
      const stat = tree.stat(path);
      if (stat === undefined) throw new DatamonError("not-found", `${tree.show(path)} is no longer there`);
      return stat;
    } catch (error) {
      this.#fail(error);
      return undefined;
    }
  }

  #directory(
    parent: Directory,
    name: ByteString,
    path: ByteString,
    stat: LocalStat,
    ino: number,
    notes: PageNotes,
    base: number | undefined,
  ): Directory {
    const found = notes.find(name, stat);
    let xattrs = found?.xattrs;
    if (found === undefined) {
      xattrs = this.#xattrs(path);
      notes.expect();
      notes.learn(name, stat, undefined, xattrs);
    }
    return { path, ino, baseIno: base, pending: { parent, name, attributes: attributesOf(stat, xattrs) } };
  }

  /** Enters what is no directory; answers a file that has to be read first. */
  #entry(
    directory: Directory,
    name: ByteString,
    path: ByteString,
    stat: LocalStat,
    ino: number,
    notes: PageNotes,
    base: ReturnType<DirectoryCursor["seek"]>,
  ): Waiting | undefined {
    const { writer, tree } = this.#parts;
    if (stat.kind === "other") {
      this.skipped++;
      this.#parts.onOther(path);
      return undefined;
    }
    this.#enter(directory);
    if (stat.kind === "symlink") {
      try {
        writer.addSymlink(directory.ino, name, ino, attributesOf(stat, undefined), tree.target(path));
      } catch (error) {
        this.#fail(error);
      }
      return undefined;
    }
    if (base !== undefined) this.#comparison.see(stat, base);
    let link: LinkGroup | undefined;
    if (stat.nlink > 1) {
      const group = this.#links.get(linkKey(stat));
      if (group !== undefined) {
        this.#addLink(group, { parent: directory.ino, name, path });
        return undefined;
      }
      link = { ino, state: "waiting", names: [] };
      this.#links.set(linkKey(stat), link);
    }
    const found = notes.find(name, stat);
    const content = found?.hash === undefined ? undefined : this.#parts.known?.find(found.hash, base);
    const xattrs = found === undefined ? this.#xattrs(path) : found.xattrs;
    if (content !== undefined) {
      this.reusedFiles++;
      this.#parts.onFile(0, stat.size);
      this.#addFile(directory.ino, name, ino, attributesOf(stat, xattrs), content, link);
      return undefined;
    }
    if (found === undefined) notes.expect();
    return {
      parent: directory.ino,
      name,
      ino,
      path,
      stat,
      xattrs,
      notes: found === undefined ? notes : undefined,
      link,
    };
  }

  #placed(file: Waiting, placed: Placed): void {
    const { stat, xattrs, notes } = file;
    const now = placed.stat;
    // Times and size belong to the content as it was read, which may be later than the scan.
    const { mode, uid, gid } = stat;
    const attributes = attributesOf({ mode, uid, gid, mtimeNs: (now ?? stat).mtimeNs }, xattrs);
    this.#addFile(file.parent, file.name, file.ino, attributes, placed.content, file.link);
    if (now !== undefined && isCurrent(now, stat)) {
      notes?.learn(file.name, now, placed.content.hash, xattrs);
    } else {
      notes?.giveUp();
    }
  }

  #giveUp(file: Waiting, error: DatamonError): void {
    file.notes?.giveUp();
    this.#fail(error);
    if (file.link === undefined) return;
    file.link.state = "failed";
    for (const { path } of file.link.names) this.#failLink(path);
  }

  #addFile(
    parent: number,
    name: ByteString,
    ino: number,
    attributes: Attributes,
    content: FileContent,
    link: LinkGroup | undefined,
  ): void {
    this.#parts.writer.addFile(parent, name, ino, attributes, content);
    this.#parts.onFile(1, 0);
    if (link === undefined) return;
    link.state = "placed";
    for (const other of link.names) this.#addLink(link, other);
    link.names = [];
  }

  #addLink(group: LinkGroup, other: LinkGroup["names"][number]): void {
    if (group.state === "waiting") {
      group.names.push(other);
    } else if (group.state === "failed") {
      this.#failLink(other.path);
    } else {
      this.#parts.writer.link(other.parent, other.name, group.ino);
      this.#parts.onFile(1, 0);
    }
  }

  #failLink(path: ByteString): void {
    this.#fail(
      new DatamonError("io", `${this.#parts.tree.show(path)} is a hard link to a file that could not be read`),
    );
  }

  /** Puts a directory, and those above it, into the catalog. */
  #enter(directory: Directory): void {
    const { pending } = directory;
    if (pending === undefined) return;
    this.#enter(pending.parent);
    directory.pending = undefined;
    this.#parts.writer.addDirectory(pending.parent.ino, pending.name, directory.ino, pending.attributes);
  }

  /** Looks for everything that was asked for by name before the work begins. */
  #checkNamed(): void {
    const { tree, selection } = this.#parts;
    const parents = new Map<ByteString, boolean>();
    for (const path of selection.named ?? []) {
      const at = path.lastIndexOf("/");
      const parent = path.slice(0, Math.max(at, 0)) as ByteString;
      let reached = parents.get(parent);
      if (reached === undefined) {
        reached = this.#isReached(parent);
        parents.set(parent, reached);
      }
      if (reached && tree.stat(path) !== undefined) continue;
      const why = tree.stat(path) === undefined ? "is not there" : "lies behind a symbolic link";
      this.#fail(new DatamonError("not-found", `${tree.show(path)}, which the file list names, ${why}`));
    }
  }

  #isReached(directory: ByteString): boolean {
    for (let at = directory.length; at > 0; at = directory.lastIndexOf("/", at - 1)) {
      if (this.#parts.tree.stat(directory.slice(0, at) as ByteString)?.kind !== "directory") return false;
    }
    return true;
  }

  #fail(error: unknown): void {
    if (!(error instanceof DatamonError)) throw error;
    this.failed++;
    this.#parts.onFailure(error);
  }
}
