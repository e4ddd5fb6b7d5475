/** What a change costs in the store, and how many objects many small files make. */
import { mkdirSync, readdirSync, renameSync, statSync } from "node:fs";
import { join } from "node:path";
import { datamon, report, timed, withDirectory, writeRandomFile, writeSmallFiles } from "./harness.ts";

await withDirectory((directory) => {
  const environment = { HOME: join(directory, "home") };
  const blobs = join(directory, "home/.datamon/store/blob/blobs");
  mkdirSync(environment.HOME);
  const upload = (repo: string, path: string) => {
    timed([datamon, "bundle", "upload", "--repo", repo, "--path", path, "--message", "bench"], environment);
  };
  for (const repo of ["large", "small"]) {
    timed([datamon, "repo", "create", "--repo", repo, "--description", "bench"], environment);
  }

  const large = join(directory, "large");
  mkdirSync(large);
  writeRandomFile(join(large, "data.bin"), "size", 1 << 30);
  upload("large", large);
  const before = storeSize(blobs);
  writeRandomFile(join(large, "next"), "size", 1 << 30, Buffer.alloc(200, "x"));
  renameSync(join(large, "next"), join(large, "data.bin"));
  upload("large", large);
  const added = (storeSize(blobs).bytes - before.bytes) / 2 ** 20;
  report({
    name: "new bytes after 200 bytes are inserted at the front of a 1 GiB file",
    ours: added,
    unit: "MiB",
    target: "at most 16 MiB",
    met: added <= 16,
  });

  const small = join(directory, "small");
  writeSmallFiles(small, 100_000, 4096);
  const objects = storeSize(blobs).objects;
  upload("small", small);
  const made = storeSize(blobs).objects - objects;
  report({
    name: "objects for 100,000 files of 4 KiB",
    ours: made,
    unit: "objects",
    target: "fewer than 500",
    met: made < 500,
  });
});

function storeSize(blobs: string): { objects: number; bytes: number } {
  let objects = 0;
  let bytes = 0;
  for (const entry of readdirSync(blobs, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    objects += 1;
    bytes += statSync(join(entry.parentPath, entry.name)).size;
  }
  return { objects, bytes };
}
