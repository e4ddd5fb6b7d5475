/** Walking a catalog that nobody vouches for: names checked, no directory entered twice. */
import { type ByteString, DatamonError, display, isValidName, joinPath } from "../../cas/index.ts";
import { type Catalog, type Inode, type Kind, kindOf as kindOfMode, ROOT_INO } from "../../meta/index.ts";
import { DirectoryCursor } from "./base-tree.ts";

/** An entry of a catalog and the directory that it is in; the root has neither. */
export interface Node {
  path: ByteString;
  inode: Inode;
  parent: Node | undefined;
}

/** One step of a walk: an entry, in path order, or the end of a directory after everything below it. */
export interface Step {
  node: Node;
  leaves: boolean;
}

/** The kind of a catalog's entry. */
export function kindOf(inode: Inode): Kind {
  const kind = kindOfMode(inode.mode);
  if (kind !== undefined) return kind;
  throw new DatamonError("damaged", `the catalog has an entry of an unknown kind: inode ${inode.ino}`);
}

/** Every entry, a directory's own before those below it; each directory, the root too, is left at its end. */
export function* walkCatalog(catalog: Catalog): Generator<Step> {
  const inode = catalog.inode(ROOT_INO);
  if (inode === undefined) throw new DatamonError("damaged", "the catalog has no root directory");
  const entered = new Set<number>();
  const stack: Step[] = [{ node: { path: "" as ByteString, inode, parent: undefined }, leaves: false }];
  for (let step = stack.pop(); step !== undefined; step = stack.pop()) {
    if (step.leaves) {
      yield step;
      continue;
    }
    const { node } = step;
    if (entered.has(node.inode.ino)) {
      throw new DatamonError("damaged", `the catalog has the directory ${display(node.path)} in two places`);
    }
    entered.add(node.inode.ino);
    const below: Node[] = [];
    const cursor = new DirectoryCursor(catalog, node.inode.ino);
    let previous = "" as ByteString;
    for (let entry = cursor.take(); entry !== undefined; entry = cursor.take()) {
      if (!isValidName(entry.name)) {
        throw new DatamonError("damaged", `the catalog has a name that no file can have: ${display(entry.name)}`);
      }
      // Two entries of one name could be a directory and a link that leads out of the tree.
      if (entry.name <= previous) throw new DatamonError("damaged", `the catalog has ${display(entry.name)} twice`);
      previous = entry.name;
      const child: Node = { path: joinPath(node.path, entry.name), inode: entry.inode, parent: node };
      yield { node: child, leaves: false };
      if (kindOf(entry.inode) === "directory") below.push(child);
    }
    stack.push({ node, leaves: true });
    for (let child = below.pop(); child !== undefined; child = below.pop()) stack.push({ node: child, leaves: false });
  }
}
