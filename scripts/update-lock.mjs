#!/usr/bin/env node
// Brings package-lock.json up to date with package.json, complete for every platform.
//
// Native packages list one optional dependency a platform. Where a registry does not carry the
// builds for other platforms, npm leaves them out of the lock file, and `npm ci` then refuses it
// everywhere. Here they are entered by name and version, so that each platform finds its own.
//
// npm also does not note that a package with a binding.gyp wants no build, and `npm ci` would
// compile what is there ready-made; that is entered too, from the packages as they are installed
// here: after adding one, run `npm install` first.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
execFileSync("npm", ["install", "--package-lock-only", "--no-audit", "--no-fund", "--loglevel=error"], {
  cwd: root,
  stdio: "inherit",
});

const file = join(root, "package-lock.json");
const lock = JSON.parse(readFileSync(file, "utf8"));
const systems = ["aix", "android", "darwin", "freebsd", "linux", "netbsd", "openbsd", "openharmony", "sunos", "win32"];
const processors = { x64: "x64", arm64: "arm64", arm: "arm", ia32: "ia32", ppc64: "ppc64", s390x: "s390x", riscv64: "riscv64", loong64: "loong64", loongarch64: "loong64", armhf: "arm", mips64el: "mips64el", wasm32: "wasm32" };

for (const [path, entry] of Object.entries(lock.packages)) {
  for (const [name, version] of Object.entries((path !== "" && entry.optionalDependencies) || {})) {
    if (lookup(path, name) !== undefined) continue;
    const words = name.replace(/^@[^/]+\//, "").split(/[-_]/);
    const os = systems.find((system) => words.includes(system));
    const cpu = Object.entries(processors).find(([word]) => words.includes(word))?.[1];
    if (os === undefined && cpu === undefined) throw new Error(`${name}, wanted by ${path}, is for no platform known here`);
    lock.packages[`node_modules/${name}`] = {
      version,
      ...(cpu && { cpu: [cpu] }),
      ...(entry.dev && { dev: true }),
      ...(os === "linux" && { libc: [words.includes("musl") ? "musl" : "glibc"] }),
      optional: true,
      ...(os && { os: [os] }),
    };
  }
}
for (const [path, entry] of Object.entries(lock.packages)) {
  const manifest = join(root, path, "package.json");
  if (path !== "" && existsSync(manifest) && JSON.parse(readFileSync(manifest, "utf8")).gypfile === false) {
    entry.gypfile = false;
  }
}
lock.packages = Object.fromEntries(Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : 1)));
writeFileSync(file, `${JSON.stringify(lock, undefined, 2)}\n`);

/** The entry that `name` comes to when the package at `path` asks for it. */
function lookup(path, name) {
  for (let at = path; ; at = at.slice(0, Math.max(at.lastIndexOf("/node_modules/"), 0))) {
    const found = lock.packages[`${at === "" ? "" : `${at}/`}node_modules/${name}`];
    if (found !== undefined || at === "") return found;
  }
}
