import type Database from "better-sqlite3";
import { type Inode, isDirectoryMode, ROOT_INO } from "./model.ts";
import type { TreeReader } from "./reader.ts";

/** What a removed inode was. */
export type Removed = Pick<Inode, "mode" | "size">;

/**
 * What an edit of a catalog has touched, so that completing it costs in proportion to the changes:
 * only touched directories and those above them are hashed again.
 */
export class Changes {
  readonly #database: Database.Database;
  readonly #tree: TreeReader;
  readonly #onRemove: (removed: Removed) => void;
  /** Directories whose entries differ. */
  readonly #directories = new Set<number>();
  /** Inodes whose attributes or content differ: the directories that name them are to be found. */
  readonly #inodes = new Set<number>();
  /** Inodes that lost a name. */
  readonly #unlinked = new Set<number>();
  /** How many names a directory has while it is moved; 1 where it is not in here. */
  readonly #directoryNames = new Map<number, number>();
  /** Inodes that, where they have one name in the end, may not have its directory in their `parent` column. */
  readonly #unsure = new Set<number>();
  /** Blobs that an extent less refers to. */
  readonly #suspects = new Set<number>();
  readonly #statements: Record<
    "blobsOf" | "removeExtents" | "removeInode" | "removeDentries" | "unname" | "parent" | "setParent",
    Database.Statement
  >;

  /** @param onRemove called for every inode that goes */
  constructor(database: Database.Database, tree: TreeReader, onRemove: (removed: Removed) => void) {
    this.#database = database;
    this.#tree = tree;
    this.#onRemove = onRemove;
    this.#statements = {
      blobsOf: database.prepare("SELECT DISTINCT blob FROM extent WHERE ino = ?").pluck(),
      removeExtents: database.prepare("DELETE FROM extent WHERE ino = ?"),
      removeInode: database.prepare("DELETE FROM inode WHERE ino = ?"),
      removeDentries: database.prepare("DELETE FROM dentry WHERE parent = ?"),
      unname: database.prepare("UPDATE inode SET nlink = nlink - 1, parent = NULL WHERE ino = ?"),
      parent: database.prepare("SELECT parent FROM inode WHERE ino = ?").pluck(),
      setParent: database.prepare("UPDATE inode SET parent = ? WHERE ino = ?"),
    };
  }

  /** The entries of directory `ino` are others now. */
  directory(ino: number): void {
    if (this.#directories.has(ino)) return;
    const inode = this.#tree.inode(ino);
    if (inode === undefined || !isDirectoryMode(inode.mode)) throw new Error(`inode ${ino} is not a directory`);
    this.#directories.add(ino);
  }

  /** The attributes or the content of `ino` are others now. */
  inode(ino: number): void {
    this.#inodes.add(ino);
  }

  /** The directory `ino` got another name. */
  directoryLinked(ino: number): void {
    this.#directoryNames.set(ino, (this.#directoryNames.get(ino) ?? 1) + 1);
  }

  /** The directory `parent` lost a name of `inode`. */
  unlinked(parent: number, inode: Inode): void {
    this.#directories.add(parent);
    this.#dropName(inode);
  }

  /** Removes the extents of a file. */
  removeExtents(ino: number): void {
    for (const blob of this.#statements.blobsOf.all(ino) as number[]) this.#suspects.add(blob);
    this.#statements.removeExtents.run(ino);
  }

  /**
   * Removes what is left without names, and what is below it, and blobs without use; then yields
   * the directories to hash again, each after everything below it.
   */
  *apply(): Generator<number> {
    this.#removeNameless();
    for (const [ino, names] of this.#directoryNames) {
      if (names > 1) throw new Error(`directory ${ino} has several names`);
    }
    this.#findParents();
    this.#removeBlobs();
    yield* this.#deepestFirst();
  }

  #dropName(inode: Inode): void {
    const { ino } = inode;
    this.#unlinked.add(ino);
    if (isDirectoryMode(inode.mode)) {
      const names = (this.#directoryNames.get(ino) ?? 1) - 1;
      this.#directoryNames.set(ino, names);
      if (names > 0) this.#unsure.add(ino);
    } else {
      this.#statements.unname.run(ino);
      if (inode.nlink > 1) this.#unsure.add(ino);
    }
  }

  #removeNameless(): void {
    // A set that grows while it is gone through: what loses its last name below comes up later.
    for (const ino of this.#unlinked) {
      const inode = this.#tree.inode(ino);
      // Taken out, so that one which keeps a name now comes up again when it loses that too.
      this.#unlinked.delete(ino);
      if (inode !== undefined && this.#names(inode) === 0) this.#remove(inode);
    }
  }

  #remove(inode: Inode): void {
    const { ino } = inode;
    if (isDirectoryMode(inode.mode)) {
      for (const { inode: child } of this.#tree.entries(ino)) {
        if (!isDirectoryMode(child.mode) && child.nlink === 1) this.#remove(child);
        else this.#dropName(child);
      }
      this.#statements.removeDentries.run(ino);
    } else {
      this.removeExtents(ino);
    }
    this.#statements.removeInode.run(ino);
    this.#directories.delete(ino);
    this.#inodes.delete(ino);
    this.#unsure.delete(ino);
    this.#onRemove(inode);
  }

  #names(inode: Inode): number {
    if (!isDirectoryMode(inode.mode)) return inode.nlink;
    return inode.ino === ROOT_INO ? 1 : (this.#directoryNames.get(inode.ino) ?? 1);
  }

  /** Finds the directories of changed inodes: by their `parent` column, or by one pass over all names for those that have none. */
  #findParents(): void {
    const searched = new Set<number>();
    for (const ino of this.#unsure) {
      if (this.#names(this.#tree.inode(ino)!) === 1) searched.add(ino);
    }
    for (const ino of this.#inodes) {
      if (ino === ROOT_INO || searched.has(ino)) continue;
      const parent = this.#statements.parent.get(ino) as number | null;
      if (parent === null) searched.add(ino);
      else this.#directories.add(parent);
    }
    if (searched.size === 0) return;
    const found = this.#database
      .prepare<[string], [number, number]>(
        "SELECT ino, parent FROM dentry WHERE ino IN (SELECT value FROM json_each(?))",
      )
      .raw()
      .all(JSON.stringify([...searched]));
    for (const [ino, parent] of found) {
      if (this.#unsure.has(ino) && this.#names(this.#tree.inode(ino)!) === 1)
        this.#statements.setParent.run(parent, ino);
      if (this.#inodes.has(ino)) this.#directories.add(parent);
    }
  }

  #removeBlobs(): void {
    if (this.#suspects.size === 0) return;
    const used = this.#database
      .prepare<[string], number>("SELECT DISTINCT blob FROM extent WHERE blob IN (SELECT value FROM json_each(?))")
      .pluck()
      .all(JSON.stringify([...this.#suspects]));
    for (const blob of used) this.#suspects.delete(blob);
    const remove = this.#database.prepare("DELETE FROM blob WHERE id = ?");
    for (const blob of this.#suspects) remove.run(blob);
  }

  #deepestFirst(): number[] {
    const depths = new Map<number, number>([[ROOT_INO, 0]]);
    for (const directory of this.#directories) {
      const chain: number[] = [];
      let ino = directory;
      while (!depths.has(ino)) {
        chain.push(ino);
        // Marks the chain, so that one that leads back into itself ends.
        depths.set(ino, Number.NaN);
        const parent = this.#statements.parent.get(ino) as number | null | undefined;
        if (parent == null) throw new Error(`directory ${ino} has no parent`);
        ino = parent;
      }
      let depth = depths.get(ino)!;
      if (Number.isNaN(depth)) throw new Error(`directory ${ino} is inside itself`);
      for (const below of chain.reverse()) depths.set(below, ++depth);
    }
    return [...depths.keys()].sort((a, b) => depths.get(b)! - depths.get(a)!);
  }
}
