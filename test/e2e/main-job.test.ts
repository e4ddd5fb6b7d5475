/** From a folder to a mounted bundle and back. */

import assert from "node:assert/strict";
import {
  appendFileSync,
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { fillWithEverything, pattern } from "../fs/transfer/support.ts";
import {
  assertFailed,
  assertSame,
  assertSameAttributes,
  attributes,
  DATASET,
  Home,
  mountedBelow,
  runs,
  sh,
  smallTree,
  until,
  write,
} from "./support.ts";

const CHANNELS = ["kernel", "fuse-native"];

/** Changes of every kind to a tree that has the dataset. */
function edit(root: string): void {
  const at = (name: string) => join(root, name);
  writeFileSync(at("rain.csv"), readFileSync(at("seattle-weather.csv"), "utf8").replaceAll(/^.*,(sun|fog)\n/gm, ""));
  writeFileSync(at("cars.json"), readFileSync(at("cars.json"), "utf8").replaceAll("USA", "US"));
  mkdirSync(at("pictures/small"), { recursive: true });
  renameSync(at("7zip.png"), at("pictures/small/archiver.png"));
  renameSync(at("gimp.png"), at("ffox.png"));
  rmSync(at("jobs.json"));
  appendFileSync(at("flights-3m.parquet"), "appended");
  truncateSync(at("birdstrikes.csv"), 1000);
  writeFileSync(at("empty"), "");
  symlinkSync("rain.csv", at("newest.csv"));
  linkSync(at("rain.csv"), at("rain-again.csv"));
  chmodSync(at("barley.json"), 0o400);
  mkdirSync(at("nothing in here"));
  utimesSync(at("burtin.json"), 1_000_000_000, 1_000_000_000.25);
}

describe("a published dataset", () => {
  let home: Home;
  let v1: string;

  before(async () => {
    home = new Home();
    await home.repo();
    v1 = await home.upload(DATASET, "--label", "v1");
  });
  after(() => home.end());

  it("is uploaded again without a byte", async () => {
    const before = home.blobs();
    const again = await home.json("bundle", "upload", "--repo", "birds", "--path", DATASET, "--message", "again");
    assert.deepEqual([again.stats.blobsPut, again.stats.bytesPut], [0, 0]);
    assert.deepEqual(home.blobs(), before);
    assert.equal(again.tree, (await home.json("bundle", "get", "--repo", "birds", "--bundle", v1)).tree);
  });

  for (const channel of CHANNELS) {
    it(`is mounted, read, changed and committed through ${channel}`, async () => {
      const mnt = home.path(`mnt-${channel}`);
      const mounted = await home.run("mount", "--channel", channel, "birds@v1", mnt);
      assert.deepEqual([mounted.code, mounted.stdout], [0, ""], mounted.stderr);
      assert.match(mounted.stderr, new RegExp(`mounted birds bundle ${v1} on ${mnt}\n$`));
      await assertSame(mnt, DATASET, channel);
      assert.throws(() => writeFileSync(join(mnt, "new"), ""), { code: "EROFS" });
      assert.equal(await home.ok("unmount", mnt), "");
      assert.equal(existsSync(mnt), false, "the directory that mounting made is gone");

      const label = `after-${channel}`;
      await home.ok(
        "mount",
        "--rw",
        "--message",
        "only rainy days",
        "--label",
        label,
        "--channel",
        channel,
        "birds@v1",
        mnt,
      );
      edit(mnt);
      const [status] = await home.json("mount", "list");
      assert.deepEqual([status.repo, status.bundle, status.mode, status.directory], ["birds", v1, "rw", mnt]);
      assert.ok(status.uncommitted > 10 && runs(status.daemonPid) && Date.parse(status.lastCommit) > 0);
      const expected = attributes(mnt);
      const v2 = await home.commit(mnt);

      const found = await home.json("bundle", "get", "--repo", "birds", "--label", label);
      assert.deepEqual([found.id, found.parents, found.message], [v2, [v1], "only rainy days"]);
      const folder = await home.download("--bundle", v2);
      assertSameAttributes(attributes(folder), expected, channel);
      const copy = home.path(`copy-${channel}`);
      await sh("cp", "-a", DATASET, copy);
      edit(copy);
      await sh("diff", "-r", "--no-dereference", copy, folder);
      rmSync(copy, { recursive: true });

      const lines = await home.lines("bundle", "diff", "--repo", "birds", "--label", "v1", "--to", label);
      const kinds = new Map(lines.map((text) => [text.split(" , ")[1], text[0]]));
      for (const [name, kind] of Object.entries({
        "rain.csv": "A",
        "cars.json": "U",
        "7zip.png": "D",
        "pictures/small/archiver.png": "A",
        "gimp.png": "D",
        "ffox.png": "U",
        "jobs.json": "D",
        "flights-3m.parquet": "U",
        "birdstrikes.csv": "U",
        "nothing in here": "A",
      })) {
        assert.equal(kinds.get(name), kind, `${kind} ${name} in\n${lines.join("\n")}`);
      }

      write(join(folder, "cars.json"), "mine");
      const update = ["bundle", "update", "--repo", "birds", "--label", "v1", "--destination", folder];
      const refused = await home.run(...update);
      assertFailed(refused, 1, "update");
      assert.match(refused.stderr, /local edits in .* would be lost: cars\.json\n.*--force/);
      await home.ok(...update, "--force");
      await assertSame(folder, DATASET);
    });
  }
});

describe("a tree of everything that a bundle keeps", () => {
  let home: Home;
  let tree: string;

  before(async () => {
    home = new Home();
    tree = home.path("tree");
    mkdirSync(tree);
    fillWithEverything(tree);
    await home.repo();
    await home.upload(tree);
  });
  after(() => home.end());

  it("is the same when it is downloaded", async () => {
    await assertSame(await home.download(), tree);
    assert.deepEqual(await home.lines("bundle", "diff", "--repo", "birds", "--destination", tree), []);
  });

  it("is the same when it is mounted", async () => {
    const mnt = home.path("mnt");
    await home.ok("mount", "birds", mnt);
    await assertSame(mnt, tree);
    await home.ok("unmount", mnt);
  });

  it("is the same when it was copied into a mount", async () => {
    const mnt = home.path("mnt");
    await home.ok("bundle", "mount", "new", "--repo", "birds", "--message", "copied", "--mount", mnt, "--daemonize");
    await sh("cp", "-a", `${tree}/.`, mnt);
    await assertSame(mnt, tree);
    const id = await home.commit(mnt);
    await assertSame(await home.download("--bundle", id), tree);
    assert.deepEqual((await home.json("bundle", "get", "--repo", "birds", "--bundle", id)).parents, []);
  });

  it("is listed in lines that no name breaks", async () => {
    const [using, ...lines] = await home.lines("bundle", "list", "files", "--repo", "birds");
    assert.match(using as string, /^Using bundle: /);
    for (const text of lines) assert.match(text, /^name:.+, size:\d+, hash:([0-9a-f]{64})?$/);
    assert.equal(lines.length, (await home.json("bundle", "list", "files", "--repo", "birds")).length);
  });
});

describe("bundle mount", () => {
  let home: Home;
  let v1: string;

  before(async () => {
    home = new Home();
    await home.repo();
    v1 = await home.upload(smallTree(home.path("tree")), "--label", "v1");
  });
  after(() => home.end());

  const endings: [how: string, end: (mnt: string, pid: number) => unknown][] = [
    ["SIGINT", (_, pid) => process.kill(pid, "SIGINT")],
    ["SIGTERM", (_, pid) => process.kill(pid, "SIGTERM")],
    ["umount", (mnt) => sh("umount", mnt)],
    ["fusermount3 -u", (mnt) => sh("fusermount3", "-u", mnt)],
    ["datamon unmount", (mnt) => home.ok("unmount", mnt)],
  ];
  for (const [how, end] of endings) {
    it(`stays in the foreground until ${how}`, async () => {
      const mnt = home.path("mnt");
      const mount = home.start("bundle", "mount", "--repo", "birds", "--label", "v1", "--mount", mnt, "--stream=true");
      await mount.says(/mounted on /);
      assert.equal(mount.stdout, `Using bundle: ${v1}\n`);
      await assertSame(mnt, home.path("tree"));
      await end(mnt, mount.process.pid as number);
      const { code, stdout, stderr } = await mount.end();
      assert.deepEqual([code, stdout], [0, `Using bundle: ${v1}\n`], stderr);
      assert.deepEqual(mountedBelow(home.root), []);
    });

    it(`new commits after ${how}`, async () => {
      const mnt = home.path("new");
      const args = [
        "--repo",
        "birds",
        "--message",
        `ended by ${how}`,
        "--mount",
        mnt,
        "--destination",
        home.path("cache"),
      ];
      const mount = home.start("bundle", "mount", "new", ...args);
      await mount.says(/mounted on /);
      write(join(mnt, "lark.csv"), `lark,${how}\n`);
      await end(mnt, mount.process.pid as number);
      const { code, stdout, stderr } = await mount.end();
      assert.equal(code, 0, stderr);
      const id = /^bundle: (\w{27})\n$/.exec(stdout)?.[1];
      assert.ok(id, stdout);
      assert.equal((await home.json("bundle", "get", "--repo", "birds", "--bundle", id)).message, `ended by ${how}`);
      assert.equal(readFileSync(join(await home.download("--bundle", id), "lark.csv"), "utf8"), `lark,${how}\n`);
      assert.ok(existsSync(home.path("cache", "containers")));
    });
  }

  it("--daemonize comes back once the mount answers", async () => {
    const mnt = home.path("daemonized");
    const { code, stdout } = await home.run(
      "bundle",
      "mount",
      "--repo=birds",
      "--label=v1",
      `--mount=${mnt}`,
      "--daemonize",
    );
    assert.deepEqual([code, stdout], [0, ""]);
    assert.equal(readFileSync(join(mnt, "robin.csv"), "utf8"), "robin,1\n");
    assert.deepEqual(await home.lines("mount", "list"), [
      `birds , ${v1} , ro , ${mnt} , read-only , ${(await home.json("mount", "list"))[0].lastCommit}`,
    ]);
    const [pid] = home.daemons();
    await home.ok("unmount", mnt);
    assert.equal(runs(pid as number), false, "the daemon is gone when unmount returns");
    assert.deepEqual(await home.json("mount", "list"), []);
    assert.match(await home.fails(2, "unmount", mnt), /nothing of datamon is mounted on/);
  });

  it("list tells once what became of a mount that ended by itself", async () => {
    const mnt = home.path("ended");
    await home.ok("mount", "--rw", "--message", "changed", "birds@v1", mnt);
    write(join(mnt, "lark.csv"), "lark,1\n");
    const [pid] = home.daemons();
    await sh("umount", mnt);
    await until(
      () => !runs(pid as number),
      () => "the daemon commits",
    );
    const newest = (await home.json("bundle", "get", "--repo", "birds")).id;
    assert.deepEqual(await home.json("mount", "list"), []);
    const told = await home.run("mount", "list");
    assert.deepEqual([told.stdout, told.stderr], ["", `birds was unmounted from ${mnt}: bundle ${newest}\n`]);
    assert.equal((await home.run("mount", "list")).stderr, "");
  });

  it("of nothing that is there fails as the same command in the foreground does", async () => {
    for (const flags of [["--daemonize"], []]) {
      const mount = ["bundle", "mount", "--mount", "nowhere", ...flags, "--repo"];
      assert.match(await home.fails(2, ...mount, "none"), /repo none/);
      assert.match(await home.fails(2, ...mount, "birds", "--label", "none"), /label none/);
      assert.match(await home.fails(2, ...mount, "birds", "--bundle", "1INz"), /bundle 1INz/);
      assert.equal(existsSync(home.path("nowhere")), false);
    }
    assert.match(await home.fails(1, "mount", "birds", "tree"), /tree is not empty/);
    assert.match(await home.fails(1, "mount", "birds", "tree/robin.csv"), /robin\.csv is not a directory/);
  });
});

describe("a large file in a writable mount", () => {
  it("is changed in place, and only what changed is stored", async (t) => {
    const home = new Home();
    t.after(() => home.end());
    await home.repo();
    write(home.path("tree/large"), pattern(24 * 1024 * 1024));
    await home.upload("tree");
    const mnt = home.path("mnt");
    await home.ok("mount", "--rw", "--message", "patched", "birds", mnt);
    const patch = `printf patched | dd of="$0" bs=1 seek=10000000 conv=notrunc status=none && truncate -s 20000000 "$0"`;
    await sh("sh", "-c", patch, join(mnt, "large"));
    await sh("sh", "-c", patch, home.path("tree/large"));
    const before = [...home.blobs().keys()];
    await home.commit(mnt);
    await sh("diff", "-r", home.path("tree"), await home.download());
    const put = home.objects("blob", "blobs").filter((path) => !before.some((name) => path.endsWith(name)));
    const bytes = put.reduce((sum, path) => sum + readFileSync(path).length, 0);
    assert.ok(bytes <= 16 * 1024 * 1024, `${bytes} bytes new in the store`);
  });
});
