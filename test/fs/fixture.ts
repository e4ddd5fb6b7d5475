/** Bundles in a store of their own, and trees of namespaces in a form that can be compared. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { DiskCache, Fetcher } from "../../src/cache/index.ts";
import {
  BlobStore,
  type ByteString,
  bytesOf,
  type FileContent,
  joinPath,
  openStore,
  Placer,
  type Source,
} from "../../src/cas/index.ts";
import { errnoName } from "../../src/fs/errno.ts";
import type { Attr, Caller, Namespace } from "../../src/fs/namespace.ts";
import {
  type Attributes,
  type Bundle,
  CatalogWriter,
  type Context,
  createBundle,
  createRepo,
  fetchCatalog,
  newBundleId,
  putCatalog,
} from "../../src/meta/index.ts";

export const ROOT_USER: Caller = { uid: 0, gid: 0, pid: 1 };
export const T0 = 1_500_000_000_123_456_789n;

/** An entry to make; parents come before what they hold. `path` has one character a byte. */
export type Spec = { path: string; mode?: number; uid?: number; gid?: number; mtimeNs?: bigint } & (
  | { kind: "file"; content: Buffer; xattrs?: Map<ByteString, Buffer> }
  | { kind: "directory" }
  | { kind: "symlink"; target: string }
  | { kind: "link"; to: string }
);

/** A store, a cache and a place for scratches, all in one temporary directory. */
export class World {
  readonly directory: string;
  readonly context: Context;
  readonly cacheDirectory: string;
  readonly scratchRoot: string;
  readonly cache: DiskCache;
  readonly fetcher: Fetcher;

  private constructor(directory: string, context: Context) {
    this.directory = directory;
    this.context = context;
    this.cacheDirectory = join(directory, "cache");
    this.scratchRoot = join(directory, "scratch");
    this.cache = DiskCache.open(this.cacheDirectory);
    this.fetcher = new Fetcher(context.blobs, this.cache);
  }

  static async open(): Promise<World> {
    const directory = await mkdtemp(join(tmpdir(), "datamon-fs-"));
    const url = (name: string): string => pathToFileURL(join(directory, name)).href;
    const context: Context = {
      metadata: await openStore(url("meta")),
      blobs: new BlobStore(await openStore(url("blob"))),
      contributor: { name: "Test", email: "test@example.org" },
      config: { metadata: url("meta"), blob: url("blob"), file: undefined },
    };
    await createRepo(context, { name: "repo", description: "for tests" });
    return new World(directory, context);
  }

  async close(): Promise<void> {
    await this.fetcher.close();
    this.cache.close();
    await rm(this.directory, { recursive: true, force: true });
  }

  /** Makes a bundle of `specs`. */
  async bundle(specs: Spec[]): Promise<Bundle> {
    const file = join(this.directory, `build-${Math.random().toString(16).slice(2)}.sqlite`);
    const writer = CatalogWriter.create(file);
    const contents = await this.#place(specs);
    const inos = new Map<string, number>([["", 1]]);
    for (const spec of specs) {
      const path = spec.path as ByteString;
      const slash = path.lastIndexOf("/");
      const parent = inos.get(slash < 0 ? "" : path.slice(0, slash))!;
      const name = path.slice(slash + 1) as ByteString;
      if (spec.kind === "link") {
        writer.link(parent, name, inos.get(bytesOf(spec.to))!);
        continue;
      }
      const ino = writer.reserve(1);
      inos.set(path, ino);
      const attributes = attributesOf(spec);
      if (spec.kind === "directory") writer.addDirectory(parent, name, ino, attributes);
      else if (spec.kind === "symlink") writer.addSymlink(parent, name, ino, attributes, bytesOf(spec.target));
      else writer.addFile(parent, name, ino, attributes, contents.get(spec)!);
    }
    const { hash, tree, files, bytes } = await writer.finish();
    await putCatalog(this.context, file, hash);
    await rm(file);
    const id = newBundleId([]);
    return await createBundle(this.context, {
      id,
      repo: "repo",
      message: "made",
      parents: [],
      catalog: hash,
      tree,
      files,
      bytes,
    });
  }

  /** The file of a bundle's catalog. */
  async catalog(bundle: Pick<Bundle, "catalog">): Promise<string> {
    return await fetchCatalog(this.context, bundle.catalog, join(this.cacheDirectory, "catalogs"));
  }

  /** Bytes of a file, as a reader of the namespace gets them. */
  async read(
    namespace: Namespace,
    ino: number,
    offset = 0,
    length = Number.MAX_SAFE_INTEGER - offset,
  ): Promise<Buffer> {
    const plan = namespace.planRead(ino, offset, length);
    const target = Buffer.alloc(
      plan.reduce((sum, segment) => sum + segment.length, 0),
      0xee,
    );
    await this.fetcher.read(plan, target);
    return target;
  }

  /** Every entry with what stat shows and what it holds, by path. */
  async tree(namespace: Namespace): Promise<Map<ByteString, TreeEntry>> {
    const found = new Map<ByteString, TreeEntry>();
    const directories: { ino: number; path: ByteString }[] = [{ ino: 1, path: "" as ByteString }];
    for (let at = directories.pop(); at !== undefined; at = directories.pop()) {
      for (const { name, attr } of listAll(namespace, at.ino, 7)) {
        const path = joinPath(at.path, name);
        const type = attr.mode & 0o170000;
        if (type === 0o040000) directories.push({ ino: attr.ino, path });
        found.set(path, {
          attr,
          content: type === 0o100000 ? await this.read(namespace, attr.ino) : undefined,
          target: type === 0o120000 ? namespace.readlink(attr.ino) : undefined,
        });
      }
    }
    return found;
  }

  async #place(specs: Spec[]): Promise<Map<Spec, FileContent>> {
    const placer = new Placer(this.context.blobs);
    try {
      const files = specs.filter((spec) => spec.kind === "file");
      async function* sources(): AsyncGenerator<{ tag: Spec; source: Source }> {
        for (const spec of files) yield { tag: spec, source: { kind: "bytes", bytes: spec.content } };
      }
      const contents = new Map<Spec, FileContent>();
      for await (const result of placer.place(sources())) {
        if ("error" in result) throw result.error;
        contents.set(result.tag, result.placed.content);
      }
      return contents;
    } finally {
      await placer.close();
    }
  }
}

export interface TreeEntry {
  readonly attr: Attr;
  readonly content: Buffer | undefined;
  readonly target: ByteString | undefined;
}

/** All entries of a directory, read in pages of `page`. */
export function listAll(namespace: Namespace, ino: number, page = 1000): { name: ByteString; attr: Attr }[] {
  const found: { name: ByteString; attr: Attr }[] = [];
  for (;;) {
    const entries = namespace.readdir(ino, found[found.length - 1]?.name, page);
    if (entries.length === 0) return found;
    found.push(...entries);
  }
}

/** What `path` names; no symbolic link is followed. */
export function resolve(namespace: Namespace, path: string): Attr {
  let attr = namespace.getattr(1);
  for (const name of path.split("/")) if (name !== "") attr = namespace.lookup(attr.ino, bytesOf(name));
  return attr;
}

/** The errno that `call` fails with; "ok" where it does not. */
export function outcome(call: () => unknown): string {
  try {
    call();
    return "ok";
  } catch (error) {
    return errnoName(error);
  }
}

/** Bytes that look random and are the same for the same seed. */
export function noise(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = (seed * 2654435761 + 1) >>> 0;
  for (let at = 0; at < length; at++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[at] = state & 0xff;
  }
  return bytes;
}

function attributesOf(spec: Spec): Attributes {
  const type = { file: 0o100000, directory: 0o040000, symlink: 0o120000, link: 0 }[spec.kind];
  const mode = type | (spec.mode ?? (spec.kind === "file" ? 0o644 : spec.kind === "symlink" ? 0o777 : 0o755));
  const xattrs = spec.kind === "file" ? spec.xattrs : undefined;
  return {
    mode,
    uid: spec.uid ?? 0,
    gid: spec.gid ?? 0,
    mtimeNs: spec.mtimeNs ?? T0,
    ...(xattrs !== undefined && { xattrs }),
  };
}
