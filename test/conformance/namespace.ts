/** What every namespace promises its readers, whatever it is made of. */

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { type ByteString, bytesOf, ContentHasher } from "../../src/cas/index.ts";
import type { Namespace } from "../../src/fs/namespace.ts";
import { SEEK_DATA, SEEK_HOLE } from "../../src/fs/seek.ts";
import { listAll, noise, outcome, resolve, type Spec, T0, type World } from "../fs/fixture.ts";

const BIG = noise(3 * 1024 * 1024 + 17, 1);
const SPARSE = Buffer.concat([noise(1000, 2), Buffer.alloc(20 * 1024 * 1024), noise(1000, 3)]);
const INVALID = "\xff\xfe.bin" as ByteString;
const NEWLINE = "line\nbreak";
const LONG = "n".repeat(255);
const MANY = 300;

/** The tree that the suite reads: every namespace shows it before `namespaceSuite` runs. */
export const SAMPLE: Spec[] = [
  {
    path: "alpha.txt",
    kind: "file",
    content: Buffer.from("alpha\n"),
    uid: 12,
    gid: 34,
    xattrs: new Map([[bytesOf("user.note"), Buffer.from([0, 255, 7])]]),
  },
  { path: "big", kind: "file", content: BIG, mode: 0o600 },
  { path: "dir", kind: "directory", mode: 0o2750, mtimeNs: T0 + 5n },
  { path: "empty", kind: "file", content: Buffer.alloc(0), mode: 0o4711 },
  { path: "hollow", kind: "directory" },
  { path: "link", kind: "symlink", target: "alpha.txt" },
  { path: "many", kind: "directory" },
  { path: "sparse", kind: "file", content: SPARSE },
  { path: INVALID, kind: "file", content: Buffer.from("invalid") },
  { path: NEWLINE, kind: "file", content: Buffer.from("newline"), mtimeNs: -1n },
  { path: LONG, kind: "file", content: Buffer.from("long") },
  { path: "dir/other", kind: "link", to: "alpha.txt" },
  { path: "dir/sub", kind: "directory" },
  { path: "dir/sub/deep", kind: "file", content: Buffer.from("deep") },
  ...Array.from(
    { length: MANY },
    (_, at): Spec => ({ path: `many/${at}`, kind: "file", content: Buffer.from(`${at}`) }),
  ),
];

/** How a namespace with the sample tree comes about. */
export interface NamespaceCase {
  open(): Promise<{ world: World; namespace: Namespace; bundle: string | undefined }>;
}

/** Runs the suite. `name` is what the tests are listed under. */
export function namespaceSuite(name: string, subject: NamespaceCase): void {
  describe(name, () => {
    let world: World;
    let namespace: Namespace;
    let bundle: string | undefined;
    before(async () => {
      ({ world, namespace, bundle } = await subject.open());
    });
    after(async () => {
      namespace?.close();
      await world?.close();
    });

    test("the root is a directory with number 1 and is its own parent", () => {
      const root = namespace.getattr(1);
      assert.equal(root.ino, 1);
      assert.equal(root.mode & 0o170000, 0o040000);
      assert.equal(root.nlink, 5);
      assert.equal(namespace.parent(1), 1);
    });

    test("stat shows what was stored", () => {
      const file = resolve(namespace, "alpha.txt");
      assert.deepEqual(
        [file.mode, file.uid, file.gid, file.size, file.nlink, file.mtimeNs],
        [0o100644, 12, 34, 6, 2, T0],
      );
      assert.equal(resolve(namespace, "dir/other").ino, file.ino);
      const directory = resolve(namespace, "dir");
      assert.deepEqual([directory.mode, directory.nlink, directory.mtimeNs], [0o042750, 3, T0 + 5n]);
      assert.equal(resolve(namespace, "empty").mode, 0o104711);
      const link = resolve(namespace, "link");
      assert.deepEqual([link.mode & 0o170000, link.size], [0o120000, 9]);
      assert.equal(resolve(namespace, NEWLINE).mtimeNs, -1n);
      assert.deepEqual(namespace.getattr(file.ino), file);
    });

    test("lookups fail as POSIX says", () => {
      const file = resolve(namespace, "alpha.txt").ino;
      assert.equal(
        outcome(() => namespace.lookup(1, bytesOf("absent"))),
        "ENOENT",
      );
      assert.equal(
        outcome(() => namespace.lookup(file, bytesOf("x"))),
        "ENOTDIR",
      );
      assert.equal(
        outcome(() => namespace.lookup(1, bytesOf("x".repeat(256)))),
        "ENAMETOOLONG",
      );
      assert.equal(
        outcome(() => namespace.getattr(1_000_000)),
        "ENOENT",
      );
      assert.equal(
        outcome(() => namespace.readdir(file, undefined, 10)),
        "ENOTDIR",
      );
      assert.equal(
        outcome(() => namespace.readlink(file)),
        "EINVAL",
      );
      assert.equal(
        outcome(() => namespace.planRead(1, 0, 1)),
        "EISDIR",
      );
      assert.equal(
        outcome(() => namespace.parent(file)),
        "ENOTDIR",
      );
    });

    test("names are bytes, and directories list them in byte order, page by page", () => {
      const names = listAll(namespace, 1).map(({ name }) => name);
      const expected = ["alpha.txt", "big", "dir", "empty", "hollow", NEWLINE, "link", "many", LONG, "sparse", INVALID];
      assert.deepEqual(
        names,
        expected.toSorted((a, b) => (a < b ? -1 : 1)),
      );
      assert.equal(namespace.lookup(1, INVALID).size, 7);
      const many = resolve(namespace, "many").ino;
      for (const page of [1, 7, 128, 300, 1000]) {
        const found = listAll(namespace, many, page);
        assert.equal(found.length, MANY, `pages of ${page}`);
        assert.deepEqual(
          found.map(({ name }) => name),
          found.map(({ name }) => name).toSorted(),
        );
      }
      assert.deepEqual(namespace.readdir(resolve(namespace, "hollow").ino, undefined, 10), []);
      for (const { name, attr } of namespace.readdir(many, bytesOf("250"), 20)) {
        assert.deepEqual(namespace.lookup(many, name), attr);
      }
    });

    test("a directory's parent", () => {
      const directory = resolve(namespace, "dir");
      assert.equal(namespace.parent(directory.ino), 1);
      assert.equal(namespace.parent(resolve(namespace, "dir/sub").ino), directory.ino);
    });

    test("links tell their target", () => {
      assert.equal(namespace.readlink(resolve(namespace, "link").ino), "alpha.txt");
    });

    test("files hold their bytes", async () => {
      for (const [path, content] of [
        ["alpha.txt", "alpha\n"],
        ["dir/sub/deep", "deep"],
        [NEWLINE, "newline"],
        ["empty", ""],
      ]) {
        assert.equal((await world.read(namespace, resolve(namespace, path!).ino)).toString(), content);
      }
      assert.ok((await world.read(namespace, resolve(namespace, "big").ino)).equals(BIG));
      assert.ok((await world.read(namespace, resolve(namespace, "sparse").ino)).equals(SPARSE));
    });

    test("reads are clipped to the file's end", async () => {
      const { ino } = resolve(namespace, "big");
      for (const [offset, length] of [
        [0, 1],
        [BIG.length - 5, 100],
        [BIG.length, 10],
        [BIG.length + 9, 10],
        [1_048_570, 2_000_000],
        [0, 0],
      ]) {
        const bytes = await world.read(namespace, ino, offset!, length!);
        assert.ok(bytes.equals(BIG.subarray(offset!, offset! + length!)), `${length} at ${offset}`);
      }
      const sparse = resolve(namespace, "sparse").ino;
      assert.ok((await world.read(namespace, sparse, 990, 20)).equals(SPARSE.subarray(990, 1010)));
    });

    test("data and holes", () => {
      const { ino, size } = resolve(namespace, "sparse");
      const seek = (offset: number, whence: number): number | string => {
        let found: number | undefined;
        const end = outcome(() => {
          found = namespace.seek(ino, offset, whence);
        });
        return found ?? end;
      };
      assert.equal(seek(0, SEEK_DATA), 0);
      const hole = seek(0, SEEK_HOLE) as number;
      assert.ok(hole >= 1000 && hole <= size, `hole at ${hole}`);
      // Zeros that were written are not a hole everywhere.
      if (hole < size) {
        assert.equal(seek(hole, SEEK_HOLE), hole);
        const data = seek(hole, SEEK_DATA) as number;
        assert.ok(data > hole && data <= size - 1000, `data at ${data}`);
        assert.equal(seek(data, SEEK_DATA), data);
      } else assert.ok(namespace.writable);
      assert.equal(seek(size - 1, SEEK_HOLE), size);
      assert.equal(seek(size, SEEK_DATA), "ENXIO");
      assert.equal(seek(size, SEEK_HOLE), "ENXIO");
      assert.equal(seek(0, 0), "EINVAL");
    });

    test("extended attributes: stored ones, the hash, the bundle", () => {
      const { ino } = resolve(namespace, "alpha.txt");
      assert.deepEqual([...namespace.getxattr(ino, bytesOf("user.note"))], [0, 255, 7]);
      assert.equal(
        outcome(() => namespace.getxattr(ino, bytesOf("user.other"))),
        "ENODATA",
      );
      const names = namespace.listxattr(ino);
      assert.ok(names.includes(bytesOf("user.note")));
      assert.equal(
        outcome(() => namespace.getxattr(resolve(namespace, "dir").ino, bytesOf("user.datamon.hash"))),
        "ENODATA",
      );
      if (bundle === undefined) return;
      // What can be copied to where nobody may set it is no attribute to tell of.
      for (const name of ["user.datamon.hash", "user.datamon.bundle"]) {
        assert.equal(names.includes(bytesOf(name)), !namespace.writable, name);
      }
      const hash = new ContentHasher().update(Buffer.from("alpha\n")).digest();
      assert.equal(namespace.getxattr(ino, bytesOf("user.datamon.hash")).toString(), hash);
      assert.equal(
        namespace.getxattr(resolve(namespace, "dir").ino, bytesOf("user.datamon.bundle")).toString(),
        bundle,
      );
      assert.equal(
        outcome(() => namespace.getxattr(resolve(namespace, "link").ino, bytesOf("user.datamon.bundle"))),
        "ENODATA",
      );
    });

    test("handles, syncs and statfs work", () => {
      const { ino } = resolve(namespace, "big");
      namespace.open(ino, 0);
      namespace.open(ino, 0);
      namespace.flush(ino);
      namespace.fsync(ino);
      namespace.release(ino);
      namespace.release(ino);
      namespace.syncAll();
      assert.equal(
        outcome(() => namespace.open(1_000_000, 0)),
        "ENOENT",
      );
      const { bsize, blocks, bfree, namemax } = namespace.statfs();
      assert.ok(bsize > 0 && blocks > 0 && bfree >= 0);
      assert.equal(namemax, 255);
    });
  });
}
