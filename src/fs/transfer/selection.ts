/** Which entries of a tree are meant: all of them, those that a pattern matches, or those of a list. */
import { type ByteString, bytesFrom, DatamonError, display, isValidName, joinPath } from "../../cas/index.ts";

/** A choice among the entries of a tree, asked from the root downwards. */
export interface Selection {
  /** True where nothing is left out, so that directories need not wait for an entry below them. */
  readonly everything: boolean;
  /** Whether the entry itself is meant. Paths are relative to the root. */
  has(path: ByteString): boolean;
  /** Whether anything below this directory can be meant. */
  mayHaveBelow(path: ByteString): boolean;
  /** Paths that were asked for by name, in no order; undefined where none were. */
  readonly named: Iterable<ByteString> | undefined;
}

/** Builds the selection for a pattern over displayed paths and a list of paths; without either, everything. */
export function select(choice: { filter?: RegExp | undefined; files?: readonly ByteString[] | undefined }): Selection {
  const { filter, files } = choice;
  const matches = filter === undefined ? undefined : (path: ByteString) => search(filter, display(path));
  if (files === undefined) {
    return {
      everything: matches === undefined,
      has: matches ?? (() => true),
      mayHaveBelow: () => true,
      named: undefined,
    };
  }
  const wanted = new Set(files);
  const parents = new Set<ByteString>();
  for (const path of wanted) {
    for (let at = path.lastIndexOf("/"); at > 0; at = path.lastIndexOf("/", at - 1)) {
      const parent = path.slice(0, at) as ByteString;
      if (parents.has(parent)) break;
      parents.add(parent);
    }
  }
  return {
    everything: false,
    has: (path) => wanted.has(path) && (matches?.(path) ?? true),
    mayHaveBelow: (path) => parents.has(path),
    named: wanted,
  };
}

/**
 * The paths of a file list: one a line, relative to the root that they will be looked up in. A
 * leading `./`, doubled slashes and empty lines are passed over. Throws "usage" for absolute paths
 * and paths with `..`.
 */
export function parseFileList(content: Uint8Array): ByteString[] {
  const paths: ByteString[] = [];
  for (const line of bytesFrom(content).split("\n") as ByteString[]) {
    if (line === "") continue;
    if (line.startsWith("/")) throw new DatamonError("usage", `the file list holds an absolute path: ${display(line)}`);
    let path = "" as ByteString;
    for (const name of line.split("/") as ByteString[]) {
      if (name === "" || name === ".") continue;
      if (!isValidName(name)) {
        throw new DatamonError("usage", `the file list holds a path that cannot be used: ${display(line)}`);
      }
      path = joinPath(path, name);
    }
    if (path !== "") paths.push(path);
  }
  return paths;
}

/** A pattern with the flags g or y keeps a position between calls, which must not matter here. */
function search(pattern: RegExp, text: string): boolean {
  pattern.lastIndex = 0;
  return pattern.test(text);
}
