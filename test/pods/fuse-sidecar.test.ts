/** The fuse sidecar and the wrapper as processes of their own, over a real store and real mounts. */

import assert from "node:assert/strict";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { CHECKOUT, Home, mountedBelow, Running, sh, until } from "../e2e/support.ts";
import { endAll, Wrapped } from "./wrapped.ts";

const home = new Home();
const sidecars = new Set<Running>();

before(async () => {
  await home.repo();
  mkdirSync(home.path("data"));
  writeFileSync(home.path("data", "counts.csv"), "robin,12\n");
  await home.upload(home.path("data"), "--label", "v1");
  // The newest bundle of `birds` is another whenever a test makes one.
  await home.repo("still");
  await home.ok("bundle", "upload", "--repo", "still", "--path", home.path("data"), "--message", "counted");
});

after(async () => {
  endAll();
  for (const { process } of sidecars) process.kill("SIGKILL");
  await home.end();
});

/** What the containers of one pod share. */
class Pod {
  readonly root = realpathSync(mkdtempSync(home.path("pod-")));
  readonly coord = join(this.root, "coord");
  readonly mount = join(this.root, "mnt");
  readonly out = join(this.root, "out");
  readonly idFile = join(this.root, "id");

  constructor() {
    mkdirSync(this.out);
  }

  /** The sidecar, by its old name. */
  sidecar(...args: string[]): Running {
    return this.sidecarWith({}, "-c", this.coord, ...args);
  }

  sidecarWith(env: NodeJS.ProcessEnv, ...args: string[]): Running {
    const launcher = join(CHECKOUT, "scripts", "wrap_datamon.sh");
    const sidecar = new Running(args, { home: home.root, cwd: this.root, launcher, env });
    sidecars.add(sidecar);
    sidecar.process.once("exit", () => sidecars.delete(sidecar));
    return sidecar;
  }

  application(script: string, ...flags: string[]): Wrapped {
    return new Wrapped(this.coord, ["-b", "fuse", ...flags, "--", "sh", "-c", script]);
  }

  has(name: string): boolean {
    return existsSync(join(this.coord, name));
  }

  async reaches(name: string, sidecar: Running): Promise<void> {
    await until(
      () => this.has(name),
      () => `${name}: ${sidecar.stderr}`,
    );
  }

  writable(label: string): string[] {
    return ["-d", `mount --rw --message edited --label ${label} birds@v1 ${this.mount}`];
  }

  upload(label: string): string[] {
    return ["-d", `bundle upload --repo birds --path=${this.out} --message "of the test" --label ${label}`];
  }
}

/** The bundle that a label names. */
async function labelled(label: string): Promise<string> {
  return (await home.json("label", "get", "--repo", "birds", "--label", label)).bundle;
}

/** The place of a scratch that a sidecar's log names. */
function keptIn(sidecar: Running): string {
  const place = /are kept in (\S+); commit them with: datamon scratch commit \1$/m.exec(sidecar.stderr)?.[1];
  assert.ok(place, sidecar.stderr);
  return place;
}

describe("the fuse sidecar", { concurrency: 4 }, () => {
  it("takes the guide's commands and saves what the application made of a mounted bundle", async () => {
    const pod = new Pod();
    const config = home.path("config.yaml");
    const sidecar = pod.sidecarWith(
      { DATAMON_CONFIG: config },
      ...["-c", pod.coord, "-i", pod.idFile],
      ...["-d", 'config create --name "Coord" --email coord-bot@example.org'],
      ...[
        "-d",
        `bundle upload --path ${pod.out} --message "result of container coordination demo" --repo birds --label coordemo`,
      ],
      ...["-d", `bundle mount --repo birds --label testlabel --mount ${pod.mount} --stream`.replace("testlabel", "v1")],
      ...[
        "-d",
        `bundle mount --repo=still --mount=${pod.mount}-2 --stream=true --destination=${pod.root}/cache --daemonize`,
      ],
    );
    // No configuration names the stores, so they are the embedded ones of this home.
    const application = pod.application(`cat ${pod.mount}/counts.csv ${pod.mount}-2/counts.csv | tee ${pod.out}/twice`);
    assert.equal(await application.end(), 0, application.stderr + sidecar.stderr);
    assert.equal((await sidecar.end()).code, 0, sidecar.stderr);
    assert.equal(application.stdout, "robin,12\nrobin,12\n");
    const id = await labelled("coordemo");
    assert.equal(readFileSync(pod.idFile, "utf8"), `${id}\n`);
    const { message, contributors, author } = await home.json(
      "bundle",
      "get",
      "--repo",
      "birds",
      "--label",
      "coordemo",
    );
    assert.equal(message, "result of container coordination demo");
    assert.match(JSON.stringify(contributors ?? author), /coord-bot@example\.org/);
    assert.equal(readFileSync(join(await home.download("--bundle", id), "twice"), "utf8"), "robin,12\nrobin,12\n");
    assert.deepEqual(mountedBelow(pod.root), []);
  });

  it("commits a writable mount, asked for in YAML", async () => {
    const pod = new Pod();
    const yaml = `globalOpts: {coordPoint: ${pod.coord}, scratchDir: ${pod.root}/scratch}
bundles:
  - {name: it, srcPath: ${pod.mount}, srcRepo: birds, srcLabel: v1, destPath: ${pod.mount}, destRepo: birds,
     destMessage: in YAML, destLabel: yaml, destBundleID: ${pod.idFile}}`;
    const sidecar = pod.sidecarWith({ dm_fuse_params: yaml });
    const application = pod.application(`ls ${pod.root}/scratch | wc -l; echo wren,3 >>${pod.mount}/counts.csv`);
    assert.equal(await application.end(), 0, application.stderr + sidecar.stderr);
    assert.equal((await sidecar.end()).code, 0);
    assert.equal(application.stdout.trim(), "1");
    const id = await labelled("yaml");
    assert.equal(readFileSync(pod.idFile, "utf8"), `${id}\n`);
    assert.equal(readFileSync(join(await home.download("--bundle", id), "counts.csv"), "utf8"), "robin,12\nwren,3\n");
    assert.deepEqual(readdirSync(join(pod.root, "scratch")), []);
  });

  it("lets an application of another user change files that are not its own", {
    skip: process.getuid?.() === 0 ? false : "only root can be somebody else",
  }, async () => {
    const pod = new Pod();
    for (const directory of [home.root, pod.root]) chmodSync(directory, 0o711);
    const sidecar = pod.sidecar(...pod.writable("other"));
    const script = `setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'echo wren,3 >>${pod.mount}/counts.csv'`;
    const application = pod.application(script);
    assert.equal(await application.end(), 0, application.stderr);
    assert.equal((await sidecar.end()).code, 0);
    assert.match(readFileSync(join(await home.download("--label", "other"), "counts.csv"), "utf8"), /wren/);
  });

  it("names the bundle that it is still where a writable mount was not changed", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.writable("same"), "-i", pod.idFile);
    assert.equal(await pod.application("true").end(), 0);
    assert.equal((await sidecar.end()).code, 0);
    assert.equal(readFileSync(pod.idFile, "utf8"), `${await labelled("v1")}\n`);
    assert.equal(await labelled("same"), await labelled("v1"));
  });

  it("ends where the application fails, and keeps its changes", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.writable("never"), "-s");
    const application = pod.application(`echo wren,3 >>${pod.mount}/counts.csv; exit 7`);
    assert.equal(await application.end(), 7);
    await sidecar.says(/sleeping instead of ending with status 1/);
    sidecar.process.kill("SIGTERM");
    assert.equal((await sidecar.end()).code, 1);
    assert.match(sidecar.stderr, /the application failed: exit status 7; nothing is uploaded/);
    assert.equal((await home.run("label", "get", "--repo", "birds", "--label", "never")).code, 2);
    assert.ok(!pod.has("mountdone"), "an application that is started again waits for mounts to come");
    assert.match(await home.ok("scratch", "commit", keptIn(sidecar)), /^bundle: /m);
  });

  it("goes with the wrapper as a command, too", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.upload("command"));
    const script = `printf '%s ' "$@" >${pod.out}/words`;
    const wrapper = home.start(
      "sidecar",
      "wrap",
      "-c",
      pod.coord,
      "-b",
      "fuse",
      "--",
      "sh",
      "-c",
      script,
      "-",
      "-b",
      "x",
    );
    assert.equal((await wrapper.end()).code, 0, wrapper.stderr);
    assert.equal((await sidecar.end()).code, 0);
    assert.equal(readFileSync(join(pod.out, "words"), "utf8"), "-b x ");
    assert.equal((await home.run("sidecar", "wrap", "-b", "fuse", "true")).code, 1);
  });

  it("uploads after a failure where that is wanted", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.upload("partial"));
    const application = pod.application(`echo 1 >${pod.out}/part; exit 7`, "--on-failure", "upload");
    assert.equal(await application.end(), 7);
    assert.equal((await sidecar.end()).code, 0);
    await labelled("partial");
  });

  it("has the wrapper fail with its message where the upload fails", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar("-d", `bundle upload --repo nowhere --path ${pod.out} --message m`);
    const application = pod.application(`echo 1 >${pod.out}/kept`);
    assert.equal(await application.end(), 1);
    assert.equal((await sidecar.end()).code, 1);
    assert.match(application.stderr, /the fuse sidecar failed: bundle upload: .*nowhere/);
    assert.ok(existsSync(join(pod.out, "kept")) && !pod.has("uploaddone"));
  });

  it("has the wrapper fail where a mount or a command line is wrong", async () => {
    const wrong: [string[], RegExp][] = [
      [["-d", "bundle mount --repo birds --label nolabel --mount m"], /bundle mount: .*nolabel/],
      [["-d", "bundle mount --repo birds"], /bundle mount: --mount is missing/],
      [["-d", "bundle upload --repo birds --path . --message m --labell x"], /unknown option --labell/],
      [["-d", "repo delete --repo birds"], /a sidecar does not run: datamon repo delete/],
      [["-d", "bundle upload --message 'open"], /a single quote is left open/],
      [["-d", "bundle mount --repo birds --mount m", "-i", "id"], /exactly one/],
    ];
    for (const [args, pattern] of wrong) {
      const pod = new Pod();
      const sidecar = pod.sidecar(...args);
      const application = pod.application("echo never");
      assert.equal(await application.end(), 1);
      assert.equal((await sidecar.end()).code, 1, sidecar.stderr);
      assert.match(application.stderr, pattern);
      assert.equal(application.stdout, "");
    }
  });

  it("fails where a mount ends that the application is using", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar("-d", `bundle mount --repo birds --mount ${pod.mount}`);
    const application = pod.application("echo up; exec sleep 60");
    await application.says(/up/);
    await home.ok("unmount", pod.mount);
    assert.equal(await application.end(), 1);
    assert.match(application.stderr, /the mount on .*mnt ended while it was needed; ending the application/);
    assert.equal((await sidecar.end()).code, 1);
  });
});

describe("kill -9", { concurrency: 4 }, () => {
  it("of the wrapper before the mounts: the sidecar ends", async () => {
    const pod = new Pod();
    const application = pod.application("true");
    await application.says(/waiting/);
    application.process.kill("SIGKILL");
    const sidecar = pod.sidecar("--timeout", "1", "-d", `bundle mount --repo birds --mount ${pod.mount}`);
    assert.equal((await sidecar.end()).code, 1);
    assert.match(sidecar.stderr, /the application's wrapper has been silent for 1 s; was waiting for initupload/);
    assert.deepEqual(mountedBelow(pod.root), []);
  });

  it("of the wrapper while the application runs: the sidecar ends and keeps the changes", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar("--timeout", "4", ...pod.writable("never"));
    const application = pod.application(`echo wren,3 >>${pod.mount}/counts.csv; echo up; exec sleep 60`);
    await application.says(/up/);
    application.process.kill("SIGKILL");
    assert.equal((await sidecar.end()).code, 1);
    assert.match(sidecar.stderr, /silent for 4 s/);
    keptIn(sidecar);
  });

  it("of the wrapper while it waits for the upload: the sidecar uploads", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.upload("orphan"));
    const application = pod.application("true");
    await application.says(/waiting for uploaddone/);
    application.process.kill("SIGKILL");
    assert.equal((await sidecar.end()).code, 0, sidecar.stderr);
    await labelled("orphan");
  });

  it("of the sidecar before its mounts and while the application runs: the wrapper ends", async () => {
    for (const [step, message] of [
      ["fusealive", /silent for 3 s; the application was not run/],
      ["mountdone", /silent for 3 s; ending the application/],
    ] as const) {
      const pod = new Pod();
      const sidecar = pod.sidecar("-d", `bundle mount --repo birds --mount ${pod.mount}`);
      await pod.reaches(step, sidecar);
      sidecar.process.kill("SIGKILL");
      const application = pod.application("exec sleep 60", "--timeout", "3");
      if (step === "fusealive") rmSync(join(pod.coord, "mountdone"), { force: true });
      assert.equal(await application.end(), 1);
      assert.match(application.stderr, message);
      const again = pod.sidecar("-d", `bundle mount --repo birds --mount ${pod.mount}`);
      if (step === "fusealive") continue;
      assert.equal((await again.end()).code, 1);
      assert.match(again.stderr, /an earlier run of this sidecar ended and took its mounts with it/);
    }
  });

  it("of the sidecar during the upload: the wrapper ends, and a sidecar that is started again uploads", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.upload("again"));
    const application = pod.application(`echo 1 >${pod.out}/one`, "--timeout", "3");
    await sidecar.says(/: uploading /);
    sidecar.process.kill("SIGKILL");
    assert.equal(await application.end(), 1);
    assert.match(application.stderr, /silent for 3 s while its uploaddone was waited for/);
    const again = pod.sidecar(...pod.upload("again"));
    assert.equal((await again.end()).code, 0, again.stderr);
    assert.match(again.stderr, /the upload, which begins again|begins again/);
    await labelled("again");
    const third = pod.sidecar(...pod.upload("again"));
    assert.equal((await third.end()).code, 0);
    assert.match(third.stderr, /has done its work/);
  });
});

describe("SIGTERM", { concurrency: 4 }, () => {
  it("while it waits leaves the changes in a scratch on the volume, and says where", async () => {
    const pod = new Pod();
    const volume = join(pod.root, "volume");
    const [flag, command] = pod.writable("late") as [string, string];
    const sidecar = pod.sidecar("--grace", "1", flag, `${command} --scratch-dir ${volume}`);
    await pod.reaches("mountdone", sidecar);
    writeFileSync(join(pod.mount, "new.csv"), "wren,3\n");
    sidecar.process.kill("SIGTERM");
    assert.equal((await sidecar.end()).code, 143);
    const place = keptIn(sidecar);
    assert.equal(place, join(volume, readdirSync(volume)[0] as string));
    assert.match(readFileSync(join(pod.coord, "fusefailed"), "utf8"), /ended by SIGTERM/);
    // The container's own file system is gone with it; the volume remains.
    rmSync(home.own("scratch", place.split("/").at(-1) as string));
    assert.match(await home.ok("scratch", "commit", place), /^bundle: /m);
    assert.deepEqual(readdirSync(volume), []);
    const downloaded = await home.download("--label", "late");
    assert.equal(readFileSync(join(downloaded, "new.csv"), "utf8"), "wren,3\n");
  });

  it("while it waits still uploads where the application asks for it within the grace", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.writable("graceful"));
    const application = pod.application(
      `trap 'echo told >${pod.mount}/last; exit 0' TERM; echo up; while :; do sleep 0.1; done`,
    );
    await application.says(/up/);
    sidecar.process.kill("SIGTERM");
    await sidecar.says(/has 20 s to ask for the upload/);
    application.process.kill("SIGTERM");
    assert.equal(await application.end(), 0);
    assert.equal((await sidecar.end()).code, 0);
    assert.ok(existsSync(join(await home.download("--label", "graceful"), "last")));
  });

  it("before the mounts are there takes them away again", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.writable("early"));
    await sidecar.says(/running datamon mount/);
    sidecar.process.kill("SIGTERM");
    assert.equal((await sidecar.end()).code, 143);
    assert.ok(!pod.has("mountdone"));
    assert.deepEqual(mountedBelow(pod.root), []);
  });

  it("does not stop an upload", async () => {
    const pod = new Pod();
    const sidecar = pod.sidecar(...pod.upload("finished"));
    const application = pod.application(`echo 1 >${pod.out}/one`);
    await sidecar.says(/: uploading /);
    sidecar.process.kill("SIGTERM");
    assert.equal((await sidecar.end()).code, 0, sidecar.stderr);
    assert.equal(await application.end(), 0);
    await labelled("finished");
  });
});

describe("the demo", () => {
  it("shows what it says", async () => {
    const said = await sh(join(CHECKOUT, "scripts", "demo-sidecar-fuse"));
    assert.match(said, /All as it should be\.\n$/);
  });
});
