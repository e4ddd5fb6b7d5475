/** Trees in memory, to write into catalogs and to compare with what is read back. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ByteString, bytesOf, type FileContent, hashOf, joinPath } from "../../src/cas/index.ts";
import { type Attributes, Catalog, type CatalogSummary, CatalogWriter, ROOT_INO } from "../../src/meta/index.ts";

/** An entry of a tree. The same object under two names is a hard link. */
export type Node =
  | { kind: "file"; attributes: Attributes; content: FileContent }
  | { kind: "symlink"; attributes: Attributes; target: ByteString }
  | Directory;

export interface Directory {
  kind: "directory";
  attributes: Attributes;
  children: Map<ByteString, Node>;
}

const TYPES = { file: 0o100000, directory: 0o040000, symlink: 0o120000 };

/** Attributes of an entry: permission bits of `mode` suffice. */
export function attributes(kind: Node["kind"], given: Partial<Attributes> = {}): Attributes {
  const { mode = 0o644, ...rest } = given;
  return { uid: 1000, gid: 100, mtimeNs: 1_700_000_000_123_456_789n, ...rest, mode: TYPES[kind] | (mode & 0o7777) };
}

/** Content of a small file in one extent of a blob. */
export function content(text: string, blob = `blob of ${text}`, offset = 0): FileContent {
  const length = Buffer.byteLength(text);
  const hash = hashOf(Buffer.from(text));
  const extents = length === 0 ? [] : [{ start: 0, blob: hashOf(Buffer.from(blob)), offset, length }];
  return { hash, size: length, extents };
}

export function file(text: string, given?: Partial<Attributes>): Node {
  return { kind: "file", attributes: attributes("file", given), content: content(text) };
}

export function symlink(target: ByteString, given?: Partial<Attributes>): Node {
  return { kind: "symlink", attributes: attributes("symlink", given), target };
}

export function directory(children: Record<string, Node> = {}, given?: Partial<Attributes>): Directory {
  const entries = Object.entries(children).map(([name, node]): [ByteString, Node] => [bytesOf(name), node]);
  return {
    kind: "directory",
    attributes: attributes("directory", { mode: 0o755, ...given }),
    children: new Map(entries),
  };
}

/** Names of a directory in byte order. */
export function sorted(tree: Directory): [ByteString, Node][] {
  return [...tree.children].sort(([a], [b]) => (a < b ? -1 : 1));
}

/** Writes `node` under `name`, with everything below it, in path order; `inos` tells the numbers. */
export function add(
  writer: CatalogWriter,
  inos: Map<Node, number>,
  parent: number,
  entries: [ByteString, Node][],
): void {
  const first = writer.reserve(entries.length);
  for (const [index, [name, node]] of entries.entries()) {
    const known = inos.get(node);
    const ino = known ?? first + index;
    inos.set(node, ino);
    if (known !== undefined) writer.link(parent, name, known);
    else if (node.kind === "file") writer.addFile(parent, name, ino, node.attributes, node.content);
    else if (node.kind === "symlink") writer.addSymlink(parent, name, ino, node.attributes, node.target);
    else writer.addDirectory(parent, name, ino, node.attributes);
  }
  for (const [, node] of entries) if (node.kind === "directory") add(writer, inos, inos.get(node)!, sorted(node));
}

/** A new catalog of `tree` in `path`. */
export async function build(path: string, tree: Directory, inos = new Map<Node, number>()): Promise<CatalogSummary> {
  const writer = CatalogWriter.create(path);
  inos.set(tree, ROOT_INO);
  writer.setAttributes(ROOT_INO, tree.attributes);
  add(writer, inos, ROOT_INO, sorted(tree));
  return await writer.finish();
}

/** What is comparable of a tree: one line of facts an entry, in path order; `first` is the first path of the same inode. */
export type Facts = Record<string, unknown>[];

export function factsOfTree(tree: Directory): Facts {
  const names = new Map<Node, number>();
  const firsts = new Map<Node, ByteString>();
  const facts: { fact: Record<string, unknown>; node: Node }[] = [];
  const visit = (node: Directory, path: ByteString): void => {
    for (const [name, child] of sorted(node)) {
      const at = joinPath(path, name);
      if (!firsts.has(child)) firsts.set(child, at);
      names.set(child, (names.get(child) ?? 0) + 1);
      const fact = {
        path: at,
        first: firsts.get(child),
        ...child.attributes,
        xattrs: xattrsOf(child.attributes),
        size: child.kind === "file" ? child.content.size : child.kind === "symlink" ? child.target.length : 0,
        hash: child.kind === "file" ? child.content.hash : undefined,
        extents: child.kind === "file" ? child.content.extents : [],
        target: child.kind === "symlink" ? child.target : undefined,
      };
      facts.push({ fact, node: child });
    }
    for (const [name, child] of sorted(node)) if (child.kind === "directory") visit(child, joinPath(path, name));
  };
  visit(tree, "" as ByteString);
  return facts.map(({ fact, node }) => ({
    ...fact,
    nlink: node.kind === "directory" ? linksOf(node) : names.get(node),
  }));
}

export function factsOfCatalog(catalog: Catalog): Facts {
  const firsts = new Map<number, ByteString>();
  return Array.from(catalog.walk(), ({ path, inode }) => {
    const { ino, xattrs, hash, ...rest } = inode;
    if (!firsts.has(ino)) firsts.set(ino, path);
    const isFile = (inode.mode & 0o170000) === TYPES.file;
    return {
      path,
      first: firsts.get(ino),
      ...rest,
      xattrs: xattrsOf(inode),
      hash: isFile ? hash : undefined,
      extents: isFile ? catalog.extents(ino) : [],
    };
  });
}

/** Opens the catalog in `path`, validates it, and closes it after `use`. */
export function withCatalog<T>(path: string, use: (catalog: Catalog) => T): T {
  const catalog = Catalog.open(path);
  try {
    catalog.validate();
    return use(catalog);
  } finally {
    catalog.close();
  }
}

/** A fresh directory that is removed when it goes out of scope. */
export function temporaryDirectory(): { path: string; [Symbol.dispose](): void } {
  const path = mkdtempSync(join(tmpdir(), "datamon-catalog-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

function linksOf(tree: Directory): number {
  return 2 + sorted(tree).filter(([, child]) => child.kind === "directory").length;
}

function xattrsOf({ xattrs }: Attributes): [string, string][] {
  return [...(xattrs ?? [])].map(([name, value]): [string, string] => [name, value.toString("hex")]).sort();
}

/** A time before 1970, not on a full second. */
export const BEFORE_1970 = -259_200_000_000_001n;

/** A small tree with something of everything. */
export function sample(): Directory {
  const linked = file("two names");
  return directory({
    "a.txt": file("a", { mtimeNs: BEFORE_1970, uid: 0, gid: 4_294_967_294 }),
    "b.txt": linked,
    empty: directory(),
    sub: directory({
      "c.txt": file(""),
      deep: directory({ deeper: directory({ "d.txt": file("d", { mtimeNs: 2n ** 62n + 12_345n }) }) }),
      link: symlink(bytesOf("../a.txt")),
      second: linked,
    }),
    "x.bin": file("x", {
      mode: 0o4755,
      xattrs: new Map([
        [bytesOf("user.b"), Buffer.from([0, 255])],
        [bytesOf("user.a"), Buffer.alloc(0)],
      ]),
    }),
  });
}
