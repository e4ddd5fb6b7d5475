/**
 * What lies below a prefix of a bucket, as a tree: `/` in a key parts directories, and a key that ends with
 * one is a directory. It is listed once, into a temporary database, because keys come in another order than
 * names in directories do, and may be more than memory holds.
 */
import Database from "better-sqlite3";
import {
  type ByteString,
  bytesFrom,
  bytesOf,
  DatamonError,
  display,
  isValidName,
  listAll,
  type ObjectInfo,
  type ObjectState,
  type ObjectStore,
  objectSource,
  objectStat,
  openBucket,
  type Source,
  type StoreMetrics,
  toBuffer,
} from "../../cas/index.ts";
import { type LocalStat, OWN_NAME, type SourceTree } from "./walk.ts";

const FILE_MODE = 0o100644;
const DIRECTORY_MODE = 0o040755;

/** How a bucket is listed. */
export interface BucketOptions {
  /** A file with the key of a Google service account. */
  credential?: string | undefined;
  /** Counts the requests. */
  metrics?: StoreMetrics | undefined;
  signal?: AbortSignal | undefined;
  /** Is told of each object that no file can be made of; throws where that ends the listing. */
  onRefused(error: DatamonError): void;
}

interface Row {
  /** NULL for a directory. */
  size: number | null;
  modified: number;
  version: string;
  checksum: string;
}

/** A listing of a bucket. */
export class BucketTree implements SourceTree {
  readonly root: ByteString;
  readonly totals = { totalFiles: 0, totalBytes: 0 };
  readonly #bucket: ObjectStore;
  readonly #onRefused: BucketOptions["onRefused"];
  /** On disk, and gone with this process. */
  readonly #database = new Database("");
  readonly #addFile: Database.Statement;
  readonly #addDirectory: Database.Statement;
  readonly #select: Database.Statement<[Buffer, Buffer], Row>;
  /** A directory is as old as the newest object below it. */
  #modified = 0;

  /** Lists everything below `url`, such as `gs://bucket/prefix`. Throws "not-found" where there is nothing. */
  static async open(url: string, options: BucketOptions): Promise<BucketTree> {
    const { credential, metrics, signal } = options;
    const bucket = await openBucket(url, { credential, ...(metrics && { metrics }) });
    const tree = new BucketTree(url, bucket, options.onRefused);
    try {
      await tree.#list(signal);
      return tree;
    } catch (error) {
      tree.close();
      throw error;
    }
  }

  private constructor(url: string, bucket: ObjectStore, onRefused: BucketOptions["onRefused"]) {
    this.root = bytesOf(url);
    this.#bucket = bucket;
    this.#onRefused = onRefused;
    this.#database.exec(`
      PRAGMA journal_mode = OFF;
      CREATE TABLE entry (directory BLOB, name BLOB, size INTEGER, modified INTEGER, version TEXT, checksum TEXT,
        PRIMARY KEY (directory, name)) WITHOUT ROWID;`);
    this.#addFile = this.#database.prepare("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING");
    this.#addDirectory = this.#database.prepare(
      `INSERT INTO entry VALUES (?, ?, NULL, ?, '', '')
       ON CONFLICT DO UPDATE SET modified = excluded.modified WHERE size IS NULL AND modified < excluded.modified`,
    );
    this.#select = this.#database.prepare(
      "SELECT size, modified, version, checksum FROM entry WHERE directory = ? AND name = ?",
    );
  }

  close(): void {
    this.#database.close();
  }

  names(path: ByteString): ByteString[] {
    const rows = this.#database
      .prepare<[Buffer], Buffer>("SELECT name FROM entry WHERE directory = ? ORDER BY name")
      .pluck()
      .all(toBuffer(path));
    const names = rows.map(bytesFrom);
    return path === "" ? names.filter((name) => name !== OWN_NAME) : names;
  }

  stat(path: ByteString): LocalStat | undefined {
    const row = path === "" ? undefined : this.#row(path);
    if (path !== "" && row === undefined) return undefined;
    const common = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, nlink: 1 };
    if (row === undefined || row.size === null) {
      const stat = objectStat({
        key: path,
        size: 0,
        state: { version: "", modified: row?.modified ?? this.#modified },
      });
      return { kind: "directory", mode: DIRECTORY_MODE, ...common, ...stat };
    }
    return { kind: "file", mode: FILE_MODE, ...common, ...objectStat(infoOf(path, row)) };
  }

  target(path: ByteString): ByteString {
    throw new Error(`${this.show(path)} is no link`);
  }

  xattrs(): undefined {
    return undefined;
  }

  source(path: ByteString): Source {
    return objectSource(this.#bucket, infoOf(path, this.#row(path)!));
  }

  show(path: ByteString): string {
    const [url = "", ...parameters] = display(this.root).split("?");
    return [path === "" ? url : `${url.replace(/\/+$/, "")}/${display(path)}`, ...parameters].join("?");
  }

  #row(path: ByteString): Row | undefined {
    const [directory, name] = split(path);
    return this.#select.get(toBuffer(directory), toBuffer(name));
  }

  async #list(signal: AbortSignal | undefined): Promise<void> {
    let found = false;
    this.#database.exec("BEGIN");
    for await (const info of listAll(this.#bucket, "", signal)) {
      found = true;
      this.#add(info);
    }
    this.#database.exec("COMMIT");
    if (found) return;
    throw new DatamonError("not-found", `there is nothing below ${display(this.root)}`, {
      hint: "Give the prefix below which the objects lie: what stands before a '/' in their keys.",
    });
  }

  #add({ key, size, state }: ObjectInfo): void {
    const path = bytesOf(key);
    // Buckets have no directories: some programs put an empty object for one. That of the root has no name here.
    const directory = path.endsWith("/") || path === "";
    const names = (path.endsWith("/") ? path.slice(0, -1) : path).split("/") as ByteString[];
    const { version = "", modified = 0, checksum } = state ?? {};
    if (path !== "" && !names.every(isValidName)) {
      this.#refuse(path, "a file or directory cannot have that name");
    } else if (directory && size > 0) {
      this.#refuse(path, `it is named as a directory is, but has ${size} bytes`);
    } else if (directory) {
      if (path !== "") this.#enter(path.slice(0, -1) as ByteString, modified);
      else this.#modified = Math.max(this.#modified, modified);
    } else {
      const [parent, name] = split(path);
      this.#enter(parent, modified);
      const sum = checksum === undefined ? "" : `${checksum.kind} ${checksum.value}`;
      const added = this.#addFile.run(toBuffer(parent), toBuffer(name), size, modified, version, sum);
      if (added.changes === 0) this.#refuseBoth(path);
      else this.#count(1, size);
    }
  }

  /** Enters a directory and those above it, and makes them as new as what is in them. */
  #enter(path: ByteString, modified: number): void {
    for (let at = path; at !== ""; at = split(at)[0]) {
      const [parent, name] = split(at);
      if (this.#addDirectory.run(toBuffer(parent), toBuffer(name), modified).changes > 0) continue;
      const { size } = this.#row(at)!;
      // The directory is as new as that already, and so are those above it.
      if (size === null) return;
      this.#refuseBoth(at);
      this.#count(-1, -size);
      this.#database
        .prepare("DELETE FROM entry WHERE directory = ? AND name = ?")
        .run(toBuffer(parent), toBuffer(name));
      this.#addDirectory.run(toBuffer(parent), toBuffer(name), modified);
    }
    this.#modified = Math.max(this.#modified, modified);
  }

  #count(files: number, bytes: number): void {
    this.totals.totalFiles += files;
    this.totals.totalBytes += bytes;
  }

  #refuseBoth(path: ByteString): void {
    this.#refuse(path, "other objects lie below it, so it would have to be a file and a directory");
  }

  #refuse(path: ByteString, why: string): void {
    this.#onRefused(
      new DatamonError("unsupported", `no file can be made of object ${this.show(path)}: ${why}`, {
        hint: "Rename the object, or leave such objects out with --skip-on-error.",
      }),
    );
  }
}

function split(path: ByteString): [ByteString, ByteString] {
  const at = path.lastIndexOf("/");
  return [path.slice(0, Math.max(at, 0)) as ByteString, path.slice(at + 1) as ByteString];
}

function infoOf(path: ByteString, { size, modified, version, checksum }: Row): ObjectInfo {
  const [kind, value = ""] = checksum.split(" ");
  const state: ObjectState = {
    version,
    modified,
    ...(kind === "" ? {} : { checksum: { kind: kind as "crc32c", value } }),
  };
  return { key: toBuffer(path).toString("utf8"), size: size ?? 0, state };
}
