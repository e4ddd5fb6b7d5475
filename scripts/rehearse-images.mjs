#!/usr/bin/env node
// Carries out the Dockerfiles of deploy/docker in chroots, for machines without Docker: root and
// debootstrap are needed. An image's base becomes Debian's own packages of the same kind.
//   scripts/rehearse-images.mjs RELEASE-FOLDER [DOCKERFILE…]
import { execFileSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";

const [context, ...chosen] = process.argv.slice(2);
if (context === undefined) throw new Error("usage: scripts/rehearse-images.mjs RELEASE-FOLDER [DOCKERFILE…]");
const folder = join(dirname(import.meta.dirname), "deploy", "docker");
const files = chosen.length > 0 ? chosen : readdirSync(folder).filter((name) => name.endsWith(".Dockerfile")).sort();
const version = basename(resolve(context));
const work = mkdtempSync(join(tmpdir(), "rehearsal-"));

const run = (program, ...args) => execFileSync(program, args, { stdio: ["ignore", "inherit", "inherit"] });

/** What stands for a base image. */
function base(image) {
  const debian = join(work, "debian");
  if (!existsSync(debian)) {
    console.log("== debootstrap");
    run("debootstrap", "--variant=minbase", "bookworm", debian);
    for (const file of ["/etc/apt/sources.list", "/etc/apt/apt.conf.d", "/etc/hosts", "/etc/resolv.conf"]) {
      if (existsSync(file)) cpSync(file, join(debian, file), { recursive: true, dereference: true });
    }
  }
  const root = mkdtempSync(join(work, "image-"));
  chmodSync(root, 0o755);
  if (image.startsWith("debian:12")) {
    run("cp", "-a", `${debian}/.`, root);
  } else if (image.startsWith("busybox:")) {
    chroot(debian, "/", {}, "command -v busybox >/dev/null || { apt-get update -qq && apt-get install -y -qq busybox-static; }");
    for (const name of ["bin", "tmp", "etc", "opt"]) mkdirSync(join(root, name));
    cpSync(join(debian, "bin/busybox"), join(root, "bin/busybox"));
    run("chroot", root, "/bin/busybox", "--install", "-s", "/bin");
  } else throw new Error(`nothing stands for ${image} here`);
  return root;
}

function chroot(root, directory, environment, script, user = "") {
  const mounts = ["proc", "dev", "sys"].filter((name) => existsSync(join(root, name)));
  for (const name of mounts) run("mount", "--rbind", `/${name}`, join(root, name));
  try {
    const variables = Object.entries({ PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ...environment });
    const as = user === "" ? [] : [`--userspec=${user}`];
    run("env", "-i", ...variables.map(([name, value]) => `${name}=${value}`), "/usr/sbin/chroot", ...as, root, "/bin/sh", "-ec", `cd ${directory}\n${script}`);
  } finally {
    for (const name of mounts.reverse()) run("umount", "-l", join(root, name));
  }
}

function instructions(text) {
  const lines = text.split("\n").filter((line) => !/^\s*(#|$)/.test(line)).join("\n").replace(/\\\n/g, " ").split("\n");
  return lines.map((line) => /^(\w+)\s+(.*)$/.exec(line)?.slice(1) ?? []).filter(([name]) => name !== undefined);
}

function rehearse(file) {
  const stages = new Map();
  let root = "";
  let state = { environment: {}, directory: "/", user: "" };
  let entry = [];
  for (const [name, raw] of instructions(readFileSync(file, "utf8"))) {
    console.log(`-- ${name} ${raw}`);
    const text = raw.replace(/\$\{?(\w+)\}?/g, (whole, key) => (key === "VERSION" ? version : (state.environment[key] ?? whole)));
    if (name === "FROM") {
      const [image, , stage] = text.split(" ");
      root = base(image);
      state = { environment: {}, directory: "/", user: "" };
      if (stage !== undefined) stages.set(stage, root);
    } else if (name === "ENV") {
      for (const [, key, value] of text.matchAll(/(\w+)=(\S+)/g)) {
        state.environment[key] = value.replace("$PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
      }
    } else if (name === "RUN") {
      chroot(root, state.directory, { VERSION: version, DEBIAN_FRONTEND: "noninteractive", ...state.environment }, raw, state.user);
    } else if (name === "ADD") {
      const [archive, target] = text.split(" ");
      mkdirSync(join(root, target), { recursive: true });
      run("tar", "-xzf", join(context, archive), "-C", join(root, target));
    } else if (name === "COPY") {
      const [, stage, source, target] = /^--from=(\w+) (\S+) (\S+)$/.exec(text) ?? [];
      const path = execFileSync("/usr/sbin/chroot", [stages.get(stage), "/bin/busybox", "readlink", "-f", source], { encoding: "utf8" });
      cpSync(join(stages.get(stage), path.trim()), join(root, target, basename(source)));
    } else if (name === "WORKDIR") {
      state.directory = text;
      mkdirSync(join(root, text), { recursive: true });
    } else if (name === "USER") {
      state.user = text;
    } else if (name === "ENTRYPOINT" || name === "CMD") {
      entry = JSON.parse(text);
    } else if (name !== "ARG") throw new Error(`${name} is not known here`);
  }
  // An entry point that is given nothing says how it is used, or at least that it is there.
  console.log(`-- as ${state.user || "root"}: ${entry[0]} exists`);
  chroot(root, state.directory, state.environment, `command -v ${entry[0]}`, state.user);
  return { root, ...state };
}

try {
  for (const name of files) {
    console.log(`== ${name}`);
    rehearse(existsSync(name) ? name : join(folder, name));
  }
  console.log("all images can be built");
} finally {
  rmSync(work, { recursive: true, force: true });
}
