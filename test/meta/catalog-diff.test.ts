import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { bytesOf } from "../../src/cas/index.ts";
import { type Difference, diffCatalogs } from "../../src/meta/index.ts";
import {
  attributes,
  BEFORE_1970,
  build,
  type Directory,
  directory,
  file,
  sample,
  symlink,
  temporaryDirectory,
  withCatalog,
} from "./catalog-trees.ts";

const b = bytesOf;

test("two trees differ by path, and content is told from attributes", async () => {
  using temporary = temporaryDirectory();
  const [one, two] = ["one", "two"].map((name) => join(temporary.path, name)) as [string, string];
  const from = sample();
  await build(one, from);
  const to = sample();
  const into = (...path: string[]) => path.reduce<Directory>((at, name) => at.children.get(b(name)) as Directory, to);
  to.children.delete(b("empty"));
  to.children.set(b("a.txt"), file("changed", { mtimeNs: BEFORE_1970, uid: 0, gid: 4_294_967_294 }));
  to.children.set(
    b("x.bin"),
    file("x", {
      mode: 0o4755,
      xattrs: new Map([
        [b("user.b"), Buffer.from([0, 254])],
        [b("user.a"), Buffer.alloc(0)],
      ]),
    }),
  );
  into("sub", "deep").children.set(b("added"), directory({ f: file("f") }));
  into("sub").attributes = attributes("directory", { mode: 0o700 });
  into("sub").children.set(b("link"), directory({ "was.link": file("w") }));
  into("sub").children.set(b("c.txt"), symlink(b("t")));
  await build(two, to);
  const summarise = ({ kind, path, content }: Difference) => `${kind}${content ? "" : " attributes"} ${path}`;
  const forward = withCatalog(one, (a) => withCatalog(two, (c) => Array.from(diffCatalogs(a, c), summarise)));
  assert.deepEqual(forward, [
    "U a.txt",
    "D empty",
    "U attributes sub",
    "U sub/c.txt",
    "A sub/deep/added",
    "A sub/deep/added/f",
    "U sub/link",
    "A sub/link/was.link",
    "U attributes x.bin",
  ]);
  const backward = withCatalog(one, (a) => withCatalog(two, (c) => Array.from(diffCatalogs(c, a), summarise)));
  const swapped = forward.map((line) => line.replace(/^[AD]/, (kind) => (kind === "A" ? "D" : "A")));
  assert.deepEqual(backward, swapped);
  assert.deepEqual(
    withCatalog(one, (a) => [...diffCatalogs(a, a)]),
    [],
  );
});

test("directories of more than a page are compared entry by entry", async () => {
  using temporary = temporaryDirectory();
  const [one, two] = ["one", "two"].map((name) => join(temporary.path, name)) as [string, string];
  const from = directory();
  for (let index = 0; index < 1500; index++) from.children.set(b(String(index)), file("same"));
  const to = directory();
  to.children = new Map(from.children);
  to.children.delete(b("1499"));
  to.children.set(b("0"), file("other"));
  to.children.set(b("zz"), file("new"));
  await build(one, from);
  await build(two, to);
  const found = withCatalog(one, (a) =>
    withCatalog(two, (c) => Array.from(diffCatalogs(a, c), ({ kind, path }) => kind + path)),
  );
  assert.deepEqual(found, ["U0", "D1499", "Azz"]);
});
