import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, cpSync, mkdirSync, readdirSync, rmSync, statSync, truncateSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { bytesOf } from "../../src/cas/index.ts";
import { type Caller, type Namespace, RENAME_EXCHANGE, RENAME_NOREPLACE } from "../../src/fs/namespace.ts";
import { OverlayNamespace } from "../../src/fs/overlay/overlay.ts";
import { SEEK_DATA, SEEK_HOLE } from "../../src/fs/seek.ts";
import { namespaceSuite, SAMPLE } from "../conformance/namespace.ts";
import { listAll, noise, outcome, ROOT_USER, resolve, type Spec, T0, World } from "./fixture.ts";

const USER: Caller = { uid: 1000, gid: 1000, pid: 2 };
const b = bytesOf;

async function openOverlay(
  world: World,
  specs: Spec[] | undefined,
  name = "scratch",
): Promise<{
  namespace: OverlayNamespace;
  bundle: string | undefined;
  reopen(at?: string): OverlayNamespace;
  directory: string;
}> {
  const bundle = specs && (await world.bundle(specs));
  const catalog = bundle && (await world.catalog(bundle));
  const directory = join(world.directory, name);
  mkdirSync(directory, { recursive: true });
  const reopen = (at = directory): OverlayNamespace => OverlayNamespace.open(at, catalog, bundle?.id);
  return { namespace: reopen(), bundle: bundle?.id, reopen, directory };
}

/** Makes the entries of `specs` through the namespace. */
function build(namespace: Namespace, specs: Spec[]): void {
  for (const spec of specs) {
    const slash = spec.path.lastIndexOf("/");
    const parent = resolve(namespace, slash < 0 ? "" : spec.path.slice(0, slash)).ino;
    const name = spec.path.slice(slash + 1) as ReturnType<typeof b>;
    if (spec.kind === "link") {
      namespace.link(resolve(namespace, spec.to).ino, parent, name);
      continue;
    }
    if (spec.kind === "symlink") {
      namespace.symlink(parent, name, b(spec.target), ROOT_USER);
      continue;
    }
    const made =
      spec.kind === "file"
        ? namespace.create(parent, name, 0o644, ROOT_USER)
        : namespace.mkdir(parent, name, 0o755, ROOT_USER);
    if (spec.kind === "file") {
      for (let at = 0; at < spec.content.length; at += 1 << 20)
        namespace.write(made.ino, at, spec.content.subarray(at, at + (1 << 20)));
      for (const [key, value] of spec.xattrs ?? []) namespace.setxattr(made.ino, key, value, 0);
    }
    namespace.setattr(made.ino, { uid: spec.uid ?? 0, gid: spec.gid ?? 0 }, ROOT_USER);
    if (spec.mode !== undefined) namespace.setattr(made.ino, { mode: spec.mode }, ROOT_USER);
  }
  for (const spec of specs) {
    if (spec.kind === "link") continue;
    const slash = spec.path.lastIndexOf("/");
    const parent = resolve(namespace, slash < 0 ? "" : spec.path.slice(0, slash)).ino;
    const { ino } = namespace.lookup(parent, spec.path.slice(slash + 1) as ReturnType<typeof b>);
    namespace.setattr(ino, { mtimeNs: spec.mtimeNs ?? T0 }, ROOT_USER);
  }
}

namespaceSuite("overlay without changes", {
  async open() {
    const world = await World.open();
    return { world, ...(await openOverlay(world, SAMPLE)) };
  },
});

namespaceSuite("overlay that starts empty", {
  async open() {
    const world = await World.open();
    const { namespace, reopen } = await openOverlay(world, undefined);
    build(namespace, SAMPLE);
    namespace.close();
    return { world, namespace: reopen(), bundle: undefined };
  },
});

namespaceSuite("overlay in which half of the tree is new", {
  async open() {
    const world = await World.open();
    const isBase = ({ path }: Spec, at: number): boolean => at % 2 === 0 && !["dir/other"].includes(path);
    const inBase = SAMPLE.filter((spec, at) => spec.kind === "directory" || isBase(spec, at));
    const { namespace } = await openOverlay(world, inBase);
    build(
      namespace,
      SAMPLE.filter((spec) => !inBase.includes(spec)),
    );
    for (const path of ["dir", "many", "dir/sub"]) {
      const spec = SAMPLE.find((other) => other.path === path)! as Spec & { mtimeNs?: bigint };
      namespace.setattr(resolve(namespace, path).ino, { mtimeNs: spec.mtimeNs ?? T0 }, ROOT_USER);
    }
    return { world, namespace, bundle: undefined };
  },
});

describe("overlay", () => {
  const LARGE = noise(2_500_000, 9);
  const BASE: Spec[] = [
    { path: "dir", kind: "directory" },
    { path: "dir/a", kind: "file", content: Buffer.from("aaaa") },
    { path: "dir/b", kind: "file", content: Buffer.from("bbbb") },
    { path: "dir/sub", kind: "directory" },
    { path: "dir/sub/c", kind: "file", content: Buffer.from("cccc") },
    { path: "large", kind: "file", content: LARGE },
    {
      path: "small",
      kind: "file",
      content: Buffer.from("0123456789"),
      xattrs: new Map([[b("user.k"), Buffer.from("v")]]),
    },
    { path: "two", kind: "link", to: "small" },
    { path: "zero", kind: "directory" },
    { path: "zero/size", kind: "file", content: Buffer.alloc(0) },
  ];
  let world: World;
  let namespace: OverlayNamespace;
  let reopen: (at?: string) => OverlayNamespace;
  let directory: string;
  let round = 0;
  before(async () => {
    world = await World.open();
  });
  after(() => world.close());
  beforeEach(async () => {
    ({ namespace, reopen, directory } = await openOverlay(world, BASE, `scratch-${round++}`));
  });
  afterEach(() => {
    namespace.close();
    rmSync(directory, { recursive: true });
  });
  const again = (): void => {
    namespace.close();
    namespace = reopen();
  };
  const at = (path: string) => resolve(namespace, path);
  const text = async (path: string): Promise<string> => (await world.read(namespace, at(path).ino)).toString("latin1");

  test("nothing changed is no change", () => {
    namespace.open(at("small").ino, 0);
    namespace.release(at("small").ino);
    assert.equal(namespace.changes(), 0);
    again();
    assert.equal(namespace.changes(), 0);
  });

  test("a file made and removed again is no change", () => {
    namespace.create(at("dir").ino, b("x"), 0o644, ROOT_USER);
    assert.ok(namespace.changes() > 0);
    namespace.unlink(at("dir").ino, b("x"));
    assert.equal(namespace.changes(), 0);
    namespace.unlink(at("dir").ino, b("a"));
    assert.equal(namespace.changes(), 1);
  });

  test("create, write, read, and the same after reopening", async () => {
    const { ino } = namespace.create(1, b("new"), 0o640, USER);
    assert.equal(namespace.write(ino, 0, Buffer.from("hello")), 5);
    namespace.write(ino, 10, Buffer.from("there"));
    const attr = namespace.getattr(ino);
    assert.deepEqual([attr.size, attr.mode, attr.uid, attr.gid, attr.nlink], [15, 0o100640, 1000, 1000, 1]);
    again();
    assert.deepEqual(namespace.getattr(ino), attr);
    assert.equal(await text("new"), "hello\0\0\0\0\0there");
    assert.equal(
      outcome(() => namespace.create(1, b("new"), 0o640, USER)),
      "EEXIST",
    );
    assert.equal(
      outcome(() => namespace.create(1, b("small"), 0o640, USER)),
      "EEXIST",
    );
    assert.equal(
      outcome(() => namespace.create(ino, b("x"), 0o640, USER)),
      "ENOTDIR",
    );
    assert.equal(
      outcome(() => namespace.create(1, b("x".repeat(256)), 0o640, USER)),
      "ENAMETOOLONG",
    );
  });

  test("a write into a file of the base keeps the rest of it, and no copy is made", async () => {
    const { ino } = at("large");
    namespace.write(ino, 1_000_000, Buffer.from("XYZ"));
    namespace.write(ino, 2_499_999, Buffer.from("end and more"));
    const expected = Buffer.concat([LARGE, Buffer.alloc(11)]);
    expected.write("XYZ", 1_000_000);
    expected.write("end and more", 2_499_999);
    assert.ok((await world.read(namespace, ino)).equals(expected));
    assert.ok((await world.read(namespace, ino, 999_990, 20)).equals(expected.subarray(999_990, 1_000_010)));
    again();
    assert.ok((await world.read(namespace, ino)).equals(expected));
    assert.ok(namespace.planRead(ino, 0, 10)[0]?.kind === "blob");
    assert.equal(
      outcome(() => namespace.getxattr(ino, b("user.datamon.hash"))),
      "ENODATA",
    );
  });

  test("truncating down and up again reads zeros, also where ranges were written", async () => {
    const { ino } = at("small");
    namespace.write(ino, 6, Buffer.from("ab"));
    namespace.setattr(ino, { size: 7 }, ROOT_USER);
    namespace.setattr(ino, { size: 12 }, ROOT_USER);
    assert.equal(await text("small"), "012345a\0\0\0\0\0");
    again();
    assert.equal(await text("two"), "012345a\0\0\0\0\0");
    namespace.setattr(ino, { size: 3 }, ROOT_USER);
    namespace.write(ino, 5, Buffer.from("z"));
    assert.equal(await text("small"), "012\0\0z");
    namespace.setattr(ino, { size: 0 }, ROOT_USER);
    assert.equal(await text("small"), "");
    namespace.setattr(ino, { size: 4 }, ROOT_USER);
    assert.equal(await text("small"), "\0\0\0\0");
    again();
    assert.equal(await text("small"), "\0\0\0\0");
  });

  test("a file of the base that is rewritten whole needs it no more", async () => {
    const { ino } = at("small");
    namespace.write(ino, 5, Buffer.from("fghij"));
    namespace.write(ino, 12, Buffer.from("m"));
    namespace.write(ino, 0, Buffer.from("abcde"));
    assert.equal(await text("small"), "abcdefghij\0\0m");
    assert.deepEqual(
      namespace.planRead(ino, 0, 100).map(({ kind }) => kind),
      ["file"],
    );
    again();
    assert.equal(await text("small"), "abcdefghij\0\0m");
  });

  test("an open file that is unlinked keeps its content until it is released", async () => {
    for (const path of ["large", "fresh"]) {
      if (path === "fresh")
        namespace.write(namespace.create(1, b(path), 0o600, ROOT_USER).ino, 0, Buffer.from("fresh"));
      const { ino } = at(path);
      namespace.open(ino, 2);
      namespace.open(ino, 0);
      namespace.unlink(1, b(path));
      assert.equal(
        outcome(() => at(path)),
        "ENOENT",
      );
      assert.equal(namespace.getattr(ino).nlink, 0);
      namespace.write(ino, 1, Buffer.from("!"));
      assert.equal((await world.read(namespace, ino, 1, 1)).toString(), "!");
      assert.equal(
        outcome(() => namespace.link(ino, 1, b("back"))),
        "ENOENT",
      );
      namespace.release(ino);
      assert.equal(namespace.getattr(ino).nlink, 0);
      namespace.release(ino);
      assert.equal(
        outcome(() => namespace.getattr(ino)),
        "ENOENT",
      );
    }
    assert.deepEqual(readdirSync(join(directory, "data")), []);
  });

  test("what was unlinked while open is gone after a restart", () => {
    const { ino } = namespace.create(1, b("temporary"), 0o600, ROOT_USER);
    namespace.write(ino, 0, Buffer.from("x"));
    namespace.open(ino, 2);
    namespace.unlink(1, b("temporary"));
    again();
    assert.equal(
      outcome(() => namespace.getattr(ino)),
      "ENOENT",
    );
    assert.deepEqual(readdirSync(join(directory, "data")), []);
    assert.notEqual(namespace.create(1, b("other"), 0o600, ROOT_USER).ino, ino);
  });

  test("hard links share everything, also those of the base", async () => {
    const { ino } = at("small");
    assert.equal(namespace.link(ino, at("dir").ino, b("third")).nlink, 3);
    namespace.write(at("dir/third").ino, 0, Buffer.from("#"));
    assert.equal(await text("two"), "#123456789");
    namespace.unlink(1, b("small"));
    namespace.unlink(1, b("two"));
    assert.equal(at("dir/third").nlink, 1);
    again();
    assert.equal(await text("dir/third"), "#123456789");
    assert.equal(
      outcome(() => namespace.link(at("dir").ino, 1, b("d"))),
      "EPERM",
    );
    assert.equal(
      outcome(() => namespace.link(at("large").ino, 1, b("dir"))),
      "EEXIST",
    );
  });

  test("rename: files, directories of the base, over what is there", async () => {
    namespace.rename(1, b("dir"), at("zero").ino, b("moved"), 0);
    assert.equal(await text("zero/moved/sub/c"), "cccc");
    assert.equal(namespace.parent(at("zero/moved").ino), at("zero").ino);
    assert.equal(namespace.parent(at("zero/moved/sub").ino), at("zero/moved").ino);
    assert.deepEqual([namespace.getattr(1).nlink, at("zero").nlink], [3, 3]);
    assert.equal(
      outcome(() => at("dir")),
      "ENOENT",
    );
    namespace.rename(1, b("small"), at("zero/moved").ino, b("a"), 0);
    assert.equal(await text("zero/moved/a"), "0123456789");
    again();
    assert.equal(await text("zero/moved/a"), "0123456789");
    assert.deepEqual(
      listAll(namespace, at("zero/moved").ino, 1).map(({ name }) => name),
      ["a", "b", "sub"],
    );
    namespace.rename(at("zero").ino, b("moved"), 1, b("dir"), 0);
    namespace.rename(at("dir").ino, b("a"), 1, b("small"), 0);
    assert.equal(namespace.parent(at("dir").ino), 1);
  });

  test("rename refuses what POSIX refuses", () => {
    const { ino: dir } = at("dir");
    namespace.mkdir(1, b("empty"), 0o755, ROOT_USER);
    const rename = (from: [number, string], to: [number, string], flags = 0): string =>
      outcome(() => namespace.rename(from[0], b(from[1]), to[0], b(to[1]), flags));
    assert.equal(rename([1, "dir"], [at("dir/sub").ino, "x"]), "EINVAL");
    assert.equal(rename([1, "dir"], [dir, "x"]), "EINVAL");
    assert.equal(rename([1, "empty"], [1, "dir"]), "ENOTEMPTY");
    assert.equal(rename([1, "empty"], [1, "small"]), "ENOTDIR");
    assert.equal(rename([1, "small"], [1, "empty"]), "EISDIR");
    assert.equal(rename([1, "absent"], [1, "x"]), "ENOENT");
    assert.equal(rename([1, "small"], [at("large").ino, "x"]), "ENOTDIR");
    assert.equal(rename([1, "small"], [1, "large"], RENAME_NOREPLACE), "EEXIST");
    assert.equal(rename([1, "small"], [1, "absent"], RENAME_EXCHANGE), "ENOENT");
    assert.equal(rename([1, "small"], [1, "large"], RENAME_EXCHANGE | RENAME_NOREPLACE), "EINVAL");
    assert.equal(rename([dir, "a"], [1, "dir"], RENAME_EXCHANGE), "EINVAL");
    assert.equal(rename([1, "small"], [1, "two"]), "ok", "names of one inode both stay");
    assert.equal(at("small").nlink, 2);
    assert.equal(rename([1, "dir"], [1, "empty"]), "ok");
  });

  test("rename with exchange, also of a file and a directory", async () => {
    namespace.rename(1, b("large"), at("dir").ino, b("sub"), RENAME_EXCHANGE);
    assert.equal(at("dir/sub").size, LARGE.length);
    assert.equal(await text("large/c"), "cccc");
    assert.equal(namespace.parent(at("large").ino), 1);
    assert.deepEqual([namespace.getattr(1).nlink, at("dir").nlink], [5, 2]);
    again();
    assert.equal(await text("large/c"), "cccc");
  });

  test("directories: emptiness, link counts, removal, and names used again", () => {
    assert.equal(
      outcome(() => namespace.rmdir(1, b("dir"))),
      "ENOTEMPTY",
    );
    assert.equal(
      outcome(() => namespace.rmdir(1, b("small"))),
      "ENOTDIR",
    );
    assert.equal(
      outcome(() => namespace.unlink(1, b("dir"))),
      "EISDIR",
    );
    namespace.unlink(at("dir/sub").ino, b("c"));
    namespace.rmdir(at("dir").ino, b("sub"));
    assert.equal(at("dir").nlink, 2);
    const made = namespace.mkdir(at("dir").ino, b("sub"), 0o700, USER);
    assert.deepEqual(listAll(namespace, made.ino), [], "nothing of the old directory shows");
    assert.equal(at("dir").nlink, 3);
    again();
    assert.deepEqual(listAll(namespace, at("dir/sub").ino), []);
    namespace.open(made.ino, 0);
    namespace.rmdir(at("dir").ino, b("sub"));
    assert.equal(
      outcome(() => namespace.create(made.ino, b("x"), 0o644, USER)),
      "ENOENT",
    );
    namespace.release(made.ino);
  });

  test("what changes a directory changes its times", () => {
    const { ino } = at("dir");
    assert.equal(namespace.getattr(ino).mtimeNs, T0);
    for (const change of [
      () => namespace.create(ino, b("x"), 0o644, USER),
      () => namespace.link(at("small").ino, ino, b("y")),
      () => namespace.rename(ino, b("x"), ino, b("z"), 0),
      () => namespace.unlink(ino, b("z")),
      () => namespace.mkdir(ino, b("d"), 0o755, USER),
      () => namespace.rmdir(ino, b("d")),
    ]) {
      namespace.setattr(ino, { mtimeNs: T0 }, ROOT_USER);
      change();
      const { mtimeNs, ctimeNs } = namespace.getattr(ino);
      assert.ok(mtimeNs > T0 && ctimeNs >= mtimeNs);
    }
  });

  test("times: set ones hold until the next write, whatever comes between", () => {
    const { ino } = namespace.create(1, b("new"), 0o644, USER);
    namespace.write(ino, 0, Buffer.from("x"));
    const set = { mtimeNs: 1_000_000_001n, atimeNs: 2_000_000_002n };
    namespace.setattr(ino, set, USER);
    namespace.setattr(ino, { mode: 0o600 }, USER);
    again();
    const { mtimeNs, atimeNs, ctimeNs } = namespace.getattr(ino);
    assert.deepEqual({ mtimeNs, atimeNs }, set);
    assert.ok(ctimeNs > mtimeNs);
    namespace.write(ino, 0, Buffer.from("y"));
    const written = namespace.getattr(ino);
    assert.ok(written.mtimeNs > set.mtimeNs && written.ctimeNs >= ctimeNs);
    again();
    assert.deepEqual(namespace.getattr(ino), written);
    namespace.setattr(at("large").ino, { size: 5 }, USER);
    assert.ok(at("large").mtimeNs > T0);
  });

  test("setgid directories hand down their group", () => {
    namespace.setattr(at("dir").ino, { gid: 77, mode: 0o2775 }, ROOT_USER);
    const file = namespace.create(at("dir").ino, b("f"), 0o644, USER);
    const sub = namespace.mkdir(at("dir").ino, b("d"), 0o755, USER);
    assert.deepEqual([file.gid, file.mode], [77, 0o100644]);
    assert.deepEqual([sub.gid, sub.mode], [77, 0o042755]);
  });

  test("writes and new owners take setuid and setgid away", () => {
    const { ino } = namespace.create(1, b("suid"), 0o6755, USER);
    namespace.write(ino, 0, Buffer.from("x"), ROOT_USER);
    assert.equal(namespace.getattr(ino).mode, 0o106755);
    namespace.write(ino, 0, Buffer.from("x"), USER);
    assert.equal(namespace.getattr(ino).mode, 0o100755);
    namespace.setattr(ino, { mode: 0o6755 }, ROOT_USER);
    namespace.setattr(ino, { uid: 5 }, ROOT_USER);
    assert.equal(namespace.getattr(ino).mode, 0o100755);
    namespace.setattr(ino, { mode: 0o2644 }, ROOT_USER);
    namespace.setattr(ino, { gid: 5 }, ROOT_USER);
    assert.equal(namespace.getattr(ino).mode, 0o102644, "without group execution setgid is no privilege");
  });

  test("extended attributes: those of the base, changes, limits", () => {
    const { ino } = at("small");
    const set = (name: string, value: Buffer | string, flags = 0): string =>
      outcome(() => namespace.setxattr(ino, b(name), Buffer.from(value), flags));
    assert.equal(set("user.k", "w", 1), "EEXIST");
    assert.equal(set("user.new", "n", 2), "ENODATA");
    assert.equal(set("user.new", "", 1), "ok");
    assert.equal(set("user.max", Buffer.alloc(65536, 7)), "ok");
    assert.equal(set("user.over", Buffer.alloc(65537)), "E2BIG");
    assert.equal(set(`user.${"n".repeat(251)}`, "x"), "ERANGE");
    assert.equal(set("user.datamon.hash", "x"), "EPERM");
    assert.equal(set("trusted.x", "x"), "ENOTSUP");
    again();
    assert.equal(namespace.getxattr(ino, b("user.k")).toString(), "v");
    assert.equal(namespace.getxattr(ino, b("user.new")).length, 0);
    assert.equal(namespace.getxattr(ino, b("user.max")).length, 65536);
    namespace.removexattr(ino, b("user.k"));
    assert.equal(
      outcome(() => namespace.getxattr(ino, b("user.k"))),
      "ENODATA",
    );
    assert.equal(
      outcome(() => namespace.removexattr(ino, b("user.k"))),
      "ENODATA",
    );
    assert.equal(
      outcome(() => namespace.removexattr(ino, b("user.datamon.bundle"))),
      "EPERM",
    );
    assert.ok(!namespace.listxattr(ino).includes(b("user.k")));
    assert.equal(namespace.getxattr(ino, b("user.datamon.hash")).length, 64, "the content is the base's still");
  });

  test("fallocate: room, kept size, holes, in files of the base and in new ones", async () => {
    const { ino } = namespace.create(1, b("new"), 0o644, USER);
    namespace.write(ino, 0, Buffer.alloc(10_000, 1));
    for (const file of [ino, at("large").ino]) {
      const before = await world.read(namespace, file);
      namespace.fallocate(file, 0, before.length, 4096);
      assert.equal(namespace.getattr(file).size, before.length + 4096);
      namespace.fallocate(file, 1, 0, before.length * 2);
      assert.equal(namespace.getattr(file).size, before.length + 4096);
      namespace.fallocate(file, 3, 4000, 3000);
      const expected = Buffer.concat([before, Buffer.alloc(4096)]).fill(0, 4000, 7000);
      assert.ok((await world.read(namespace, file)).equals(expected));
      namespace.fallocate(file, 16, expected.length - 10, 20);
      assert.ok((await world.read(namespace, file)).equals(Buffer.concat([expected, Buffer.alloc(10)])));
      assert.equal(
        outcome(() => namespace.fallocate(file, 8, 0, 4096)),
        "ENOTSUP",
      );
      assert.equal(
        outcome(() => namespace.fallocate(file, 0, 0, 0)),
        "EINVAL",
      );
    }
    again();
    const large = await world.read(namespace, at("large").ino);
    assert.ok(
      large.subarray(0, 4000).equals(LARGE.subarray(0, 4000)) && large.subarray(4000, 7000).every((byte) => byte === 0),
    );
  });

  test("a write right after the times were told changes them", () => {
    const { ino } = namespace.create(1, b("watched"), 0o644, USER);
    namespace.write(ino, 0, Buffer.from("one"));
    for (let round = 0; round < 200; round++) {
      const before = namespace.getattr(ino).mtimeNs;
      namespace.write(ino, 0, Buffer.from("two"));
      assert.ok(namespace.getattr(ino).mtimeNs > before);
    }
  });

  test("holes: of the base, cut, punched and written over", () => {
    const { ino, size } = at("large");
    const seek = (offset: number, whence: number): number => namespace.seek(ino, offset, whence);
    assert.equal(seek(0, SEEK_HOLE), size);
    namespace.setattr(ino, { size: 100_000 }, ROOT_USER);
    namespace.setattr(ino, { size: 100_000_000 }, ROOT_USER);
    assert.equal(seek(0, SEEK_HOLE), 100_000);
    assert.equal(
      outcome(() => seek(100_000, SEEK_DATA)),
      "ENXIO",
    );
    namespace.write(ino, 81_920_000, Buffer.alloc(4096, 1));
    assert.equal(seek(100_000, SEEK_DATA), 81_920_000);
    assert.equal(seek(81_920_000, SEEK_HOLE), 81_924_096);
    namespace.fallocate(ino, 3, 8192, 8192);
    assert.deepEqual([seek(0, SEEK_HOLE), seek(8192, SEEK_DATA)], [8192, 16_384]);
    again();
    assert.deepEqual([seek(0, SEEK_HOLE), seek(8192, SEEK_DATA)], [8192, 16_384]);
  });

  test("special files live while the scratch does", () => {
    const fifo = namespace.mknod(1, b("fifo"), 0o010644, 0, USER);
    const device = namespace.mknod(1, b("null"), 0o020666, 0x103, ROOT_USER);
    const file = namespace.mknod(1, b("file"), 0o100644, 0, USER);
    assert.deepEqual([fifo.mode, device.rdev, file.mode], [0o010644, 0x103, 0o100644]);
    again();
    assert.equal(at("null").rdev, 0x103);
    namespace.write(file.ino, 0, Buffer.from("x"));
    assert.equal(
      outcome(() => namespace.write(fifo.ino, 0, Buffer.from("x"))),
      "EINVAL",
    );
    assert.equal(
      outcome(() => namespace.write(1, 0, Buffer.from("x"))),
      "EISDIR",
    );
    assert.equal(
      outcome(() => namespace.mknod(1, b("d"), 0o040755, 0, USER)),
      "EINVAL",
    );
  });

  test("symbolic links", () => {
    const target = "t".repeat(4095);
    const { ino, size } = namespace.symlink(1, b("l"), b(target), USER);
    assert.equal(size, 4095);
    again();
    assert.equal(namespace.readlink(ino), target);
    assert.equal(
      outcome(() => namespace.symlink(1, b("m"), b(`${target}x`), USER)),
      "ENAMETOOLONG",
    );
    assert.equal(
      outcome(() => namespace.symlink(1, b("m"), b(""), USER)),
      "ENOENT",
    );
  });

  test("listings merge the base and the changes", () => {
    const { ino } = at("dir");
    namespace.unlink(ino, b("a"));
    namespace.create(ino, b("a0"), 0o644, USER);
    namespace.create(ino, b("zz"), 0o644, USER);
    namespace.setattr(at("dir/b").ino, { mode: 0o600 }, ROOT_USER);
    for (const page of [1, 2, 3, 100]) {
      const entries = listAll(namespace, ino, page);
      assert.deepEqual(
        entries.map(({ name }) => name),
        ["a0", "b", "sub", "zz"],
      );
      assert.deepEqual(
        entries.map(({ attr }) => attr.mode),
        [0o100644, 0o100600, 0o040755, 0o100644],
      );
    }
    assert.deepEqual(
      namespace.readdir(ino, b("b"), 1).map(({ name }) => name),
      ["sub"],
    );
  });

  test("a journal that was copied in the middle of things is what was acknowledged", async () => {
    const { ino } = namespace.create(1, b("new"), 0o644, USER);
    namespace.write(ino, 0, Buffer.from("acknowledged"));
    namespace.write(at("large").ino, 100, Buffer.from("too"));
    const copy = `${directory}-copy`;
    cpSync(directory, copy, { recursive: true, filter: (file) => !file.endsWith("-shm") });
    namespace.create(1, b("later"), 0o644, USER);
    const copied = reopen(copy);
    assert.equal((await world.read(copied, resolve(copied, "new").ino)).toString(), "acknowledged");
    assert.equal((await world.read(copied, resolve(copied, "large").ino, 100, 3)).toString(), "too");
    assert.equal(
      outcome(() => resolve(copied, "later")),
      "ENOENT",
    );
    copied.close();
    rmSync(copy, { recursive: true });
  });

  test("a torn tail of the journal is dropped", async () => {
    namespace.create(1, b("one"), 0o644, USER);
    namespace.create(1, b("two-more"), 0o644, USER);
    const copy = `${directory}-torn`;
    mkdirSync(join(copy, "data"), { recursive: true });
    for (const name of ["journal.sqlite", "journal.sqlite-wal"]) copyFileSync(join(directory, name), join(copy, name));
    const wal = join(copy, "journal.sqlite-wal");
    truncateSync(wal, statSync(wal).size - 1000);
    const torn = reopen(copy);
    assert.equal(
      outcome(() => torn.lookup(1, b("one"))),
      "ok",
    );
    assert.equal(
      outcome(() => torn.lookup(1, b("two-more"))),
      "ENOENT",
    );
    torn.close();
    rmSync(copy, { recursive: true });
  });

  test("a second opener is refused, and so is another base", async () => {
    assert.throws(() => reopen(), { code: "conflict" });
    namespace.close();
    assert.throws(() => OverlayNamespace.open(directory, undefined, undefined), { code: "conflict" });
    namespace = reopen();
  });
});

const mayMount = process.platform === "linux" && process.getuid?.() === 0;

test("on a full disk writers hear of it, removing still works and makes room", {
  skip: mayMount ? false : "needs root to mount a small disk",
}, async () => {
  const directory = await mkdtemp(join(tmpdir(), "datamon-full-"));
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=12m", "tmpfs", directory]);
  try {
    const namespace = OverlayNamespace.open(directory, undefined, undefined);
    const { ino } = namespace.create(1, b("big"), 0o644, ROOT_USER);
    let size = 0;
    const fill = (): void => {
      for (;;) size += namespace.write(ino, size, Buffer.alloc(100_000, 1));
    };
    assert.equal(outcome(fill), "ENOSPC");
    assert.equal(namespace.getattr(ino).size, size, "what was acknowledged is there");
    const made: string[] = [];
    const make = (): void => {
      for (;;) {
        namespace.create(1, b(`f${made.length}`), 0o644, ROOT_USER);
        made.push(`f${made.length}`);
      }
    };
    assert.equal(outcome(make), "ENOSPC");
    assert.deepEqual(
      listAll(namespace, 1)
        .map(({ name }) => name)
        .toSorted(),
      ["big", ...made].toSorted(),
    );
    namespace.unlink(1, b("big"));
    namespace.write(namespace.create(1, b("after"), 0o644, ROOT_USER).ino, 0, Buffer.alloc(1_000_000, 2));
    namespace.close();
    const again = OverlayNamespace.open(directory, undefined, undefined);
    assert.deepEqual(
      listAll(again, 1)
        .map(({ name }) => name)
        .toSorted(),
      ["after", ...made].toSorted(),
    );
    again.close();
  } finally {
    execFileSync("umount", [directory]);
    rmSync(directory, { recursive: true });
  }
});
