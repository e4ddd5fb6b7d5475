import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import Database from "better-sqlite3";
import {
  type ByteString,
  blobKey,
  DamagedObjectError,
  type Hash,
  listAll,
  ObjectNotFoundError,
} from "../../cas/index.ts";
import { Catalog } from "../catalog/catalog.ts";
import { kindOf } from "../catalog/model.ts";
import { catalogKey, fetchCatalog } from "../catalogs.ts";
import type { Context } from "../context.ts";
import { bundleRecord, readRecord } from "../records.ts";

const PAGE = 1000;

interface BundleRow {
  readonly at: number;
  readonly repo: string;
  readonly id: string;
  readonly catalog: Hash;
  readonly lost: number;
}

/** A bundle that is not whole. */
export interface Harm {
  readonly repo: string;
  readonly bundle: string;
  /** The file whose content is lost; undefined where nothing of the bundle can be read. */
  readonly path: ByteString | undefined;
}

/**
 * What all bundles, or those of one repo, need: kept in a temporary database, so that memory does not grow
 * with it.
 */
export class References {
  /** For temporary files; removed by `close`. */
  readonly directory: string;
  readonly #context: Context;
  readonly #catalogs: string;
  readonly #database: Database.Database;

  private constructor(context: Context, cacheDirectory: string, directory: string) {
    this.#context = context;
    this.#catalogs = join(cacheDirectory, "catalogs");
    this.directory = directory;
    this.#database = new Database(join(directory, "references.sqlite"));
    this.#database.pragma("journal_mode = OFF");
    this.#database.pragma("synchronous = OFF");
    this.#database.exec(`
      CREATE TABLE bundle(repo TEXT NOT NULL, id TEXT NOT NULL, catalog TEXT NOT NULL) STRICT;
      CREATE TABLE catalog(hash TEXT PRIMARY KEY, lost INTEGER NOT NULL) STRICT, WITHOUT ROWID;
      CREATE TABLE blob(hash BLOB PRIMARY KEY, lost INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    `);
  }

  static async open(context: Context, cacheDirectory: string): Promise<References> {
    await mkdir(cacheDirectory, { recursive: true });
    return new References(context, cacheDirectory, await mkdtemp(join(cacheDirectory, "check-")));
  }

  /**
   * Reads the records and catalogs of all bundles, or of one repo's. Those that no store has right are left out:
   * who compares the stores meets them.
   */
  async load(repo: string | undefined): Promise<void> {
    const { metadata } = this.#context;
    for await (const { key } of listAll(metadata, repo === undefined ? "bundles/" : `bundles/${repo}/`)) {
      const bundle = await unlessBroken(readRecord(metadata, key, bundleRecord));
      if (bundle === undefined) continue;
      this.#database.prepare("INSERT INTO bundle VALUES (?, ?, ?)").run(bundle.repo, bundle.id, bundle.catalog);
      const added = this.#database.prepare("INSERT OR IGNORE INTO catalog VALUES (?, 0)").run(bundle.catalog).changes;
      if (added > 0) await this.#withCatalog(bundle.catalog, (catalog) => this.#addBlobs(catalog));
    }
  }

  /** Keys of the catalogs that are needed, in order. */
  *catalogKeys(): Generator<string> {
    yield* this.#pages("SELECT hash FROM catalog WHERE hash > ? ORDER BY hash", "", catalogKey);
  }

  /** Keys of the blobs that are needed, in order. */
  *blobKeys(): Generator<string> {
    const sql = "SELECT lower(hex(hash)) FROM blob WHERE hash > unhex(?) ORDER BY hash";
    yield* this.#pages(sql, "", blobKey);
  }

  /** Notes that no store has the blob right. */
  blobIsLost(hash: Hash): void {
    this.#database.prepare("UPDATE blob SET lost = 1 WHERE hash = unhex(?)").run(hash);
  }

  /** Notes that no store has the catalog right. */
  catalogIsLost(hash: Hash): void {
    this.#database.prepare("UPDATE catalog SET lost = 1 WHERE hash = ?").run(hash);
  }

  /** The files whose content is lost, and the bundles whose catalog is. */
  async *harm(): AsyncGenerator<Harm> {
    const anyLost = this.#database.prepare("SELECT 1 FROM blob WHERE lost = 1").get() !== undefined;
    const bundles = this.#database.prepare<[number], BundleRow>(
      `SELECT b.rowid AS at, b.repo, b.id, b.catalog, c.lost FROM bundle b JOIN catalog c ON c.hash = b.catalog
       WHERE b.rowid > ? ORDER BY b.rowid LIMIT ${PAGE}`,
    );
    for (let after = 0; ; ) {
      const page = bundles.all(after);
      for (const { repo, id: bundle, catalog, lost } of page) {
        if (lost === 1) yield { repo, bundle, path: undefined };
        else if (anyLost) for (const path of await this.#filesLost(catalog)) yield { repo, bundle, path };
      }
      if (page.length < PAGE) return;
      after = page.at(-1)!.at;
    }
  }

  async close(): Promise<void> {
    this.#database.close();
    await rm(this.directory, { recursive: true, force: true });
  }

  async #filesLost(hash: Hash): Promise<ByteString[]> {
    const paths = await this.#withCatalog(hash, (catalog) => {
      const lost = new Set<Hash>();
      const isLost = this.#database.prepare("SELECT 1 FROM blob WHERE hash = unhex(?) AND lost = 1");
      for (const { hash } of catalog.blobs()) if (isLost.get(hash) !== undefined) lost.add(hash);
      const found: ByteString[] = [];
      if (lost.size === 0) return found;
      for (const { path, inode } of catalog.walk()) {
        if (kindOf(inode.mode) !== "file") continue;
        if (catalog.extents(inode.ino).some(({ blob }) => lost.has(blob))) found.push(path);
      }
      return found;
    });
    return paths ?? [];
  }

  #addBlobs(catalog: Catalog): void {
    const add = this.#database.prepare("INSERT OR IGNORE INTO blob VALUES (unhex(?), 0)");
    this.#database.transaction(() => {
      for (const { hash } of catalog.blobs()) add.run(hash);
    })();
  }

  /** What `work` makes of a catalog; undefined where no store has it right. */
  async #withCatalog<T>(hash: Hash, work: (catalog: Catalog) => T): Promise<T | undefined> {
    const cached = existsSync(join(this.#catalogs, `${hash}.sqlite`));
    const file = await unlessBroken(fetchCatalog(this.#context, hash, cached ? this.#catalogs : this.directory));
    if (file === undefined) return undefined;
    const catalog = Catalog.open(file);
    try {
      return work(catalog);
    } finally {
      catalog.close();
      if (!cached) await rm(file, { force: true });
    }
  }

  *#pages(sql: string, start: string, key: (hash: Hash) => string): Generator<string> {
    const page = this.#database.prepare<[string], string>(`${sql} LIMIT ${PAGE}`).pluck();
    for (let after = start; ; ) {
      const hashes = page.all(after);
      for (const hash of hashes) yield key(hash);
      if (hashes.length < PAGE) return;
      after = hashes.at(-1)!;
    }
  }
}

async function unlessBroken<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch (error) {
    if (error instanceof ObjectNotFoundError || error instanceof DamagedObjectError) return undefined;
    throw error;
  }
}
