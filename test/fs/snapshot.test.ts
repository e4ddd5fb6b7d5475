import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { bytesOf } from "../../src/cas/index.ts";
import { type Namespace, openNamespace } from "../../src/fs/namespace.ts";
import { namespaceSuite, SAMPLE } from "../conformance/namespace.ts";
import { outcome, ROOT_USER, World } from "./fixture.ts";

async function open(): Promise<{ world: World; namespace: Namespace; bundle: string }> {
  const world = await World.open();
  const bundle = await world.bundle(SAMPLE);
  const namespace = openNamespace({ kind: "snapshot", catalog: await world.catalog(bundle), bundle: bundle.id });
  return { world, namespace, bundle: bundle.id };
}

namespaceSuite("snapshot", { open });

let world: World;
let namespace: Namespace;
before(async () => {
  ({ world, namespace } = await open());
});
after(async () => {
  namespace.close();
  await world.close();
});

test("nothing can be changed", () => {
  const name = bytesOf("alpha.txt");
  const { ino } = namespace.lookup(1, name);
  assert.equal(namespace.writable, false);
  const changes: Record<string, () => unknown> = {
    create: () => namespace.create(1, bytesOf("x"), 0o644, ROOT_USER),
    mkdir: () => namespace.mkdir(1, bytesOf("x"), 0o755, ROOT_USER),
    symlink: () => namespace.symlink(1, bytesOf("x"), bytesOf("y"), ROOT_USER),
    mknod: () => namespace.mknod(1, bytesOf("x"), 0o100644, 0, ROOT_USER),
    link: () => namespace.link(ino, 1, bytesOf("x")),
    unlink: () => namespace.unlink(1, name),
    rmdir: () => namespace.rmdir(1, bytesOf("hollow")),
    rename: () => namespace.rename(1, name, 1, bytesOf("x"), 0),
    write: () => namespace.write(ino, 0, Buffer.from("x")),
    setattr: () => namespace.setattr(ino, { mode: 0 }, ROOT_USER),
    fallocate: () => namespace.fallocate(ino, 0, 0, 1),
    setxattr: () => namespace.setxattr(ino, bytesOf("user.x"), Buffer.from("x"), 0),
    removexattr: () => namespace.removexattr(ino, bytesOf("user.note")),
  };
  for (const [call, change] of Object.entries(changes)) assert.equal(outcome(change), "EROFS", call);
  assert.equal(namespace.changes(), 0);
});

test("a second one can be open on the same catalog", async () => {
  const other = await open();
  assert.equal(other.namespace.getattr(1).nlink, namespace.getattr(1).nlink);
  other.namespace.close();
  await other.world.close();
});
