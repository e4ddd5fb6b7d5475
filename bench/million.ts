/** Makes a bundle of a million files without making the files: `node million.ts REPO`, with the user's configuration. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ByteString } from "../src/cas/index.ts";
import { hashOf } from "../src/cas/index.ts";
import {
  CatalogWriter,
  createBundle,
  loadConfig,
  newBundleId,
  openContext,
  putCatalog,
  ROOT_INO,
} from "../src/meta/index.ts";

/** Directories in the root and in each of those, and files in each of these. */
const FANOUT = 100;
/** Bytes that each file is said to have; the blobs that would hold them are not there. */
const SIZE = 4096;

const directory = mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), "datamon-million-"));
try {
  const context = await openContext(await loadConfig());
  const file = join(directory, "catalog.sqlite");
  const writer = CatalogWriter.create(file);
  const folder = { mode: 0o40755, uid: 0, gid: 0, mtimeNs: 0n };
  const regular = { mode: 0o100644, uid: 0, gid: 0, mtimeNs: 0n };
  const name = (prefix: string, number: number) => `${prefix}${String(number).padStart(3, "0")}` as ByteString;
  const outer = writer.reserve(FANOUT);
  for (let first = 0; first < FANOUT; first += 1) {
    writer.addDirectory(ROOT_INO, name("d", first), outer + first, folder);
  }
  for (let first = 0; first < FANOUT; first += 1) {
    const inner = writer.reserve(FANOUT);
    for (let second = 0; second < FANOUT; second += 1) {
      writer.addDirectory(outer + first, name("e", second), inner + second, folder);
    }
    for (let second = 0; second < FANOUT; second += 1) {
      const files = writer.reserve(FANOUT);
      const blob = hashOf(Buffer.from(`${first}/${second}`));
      for (let third = 0; third < FANOUT; third += 1) {
        const extents = [{ start: 0, blob, offset: third * SIZE, length: SIZE }];
        const content = { hash: hashOf(Buffer.from(`${first}/${second}/${third}`)), size: SIZE, extents };
        writer.addFile(inner + second, name("f", third), files + third, regular, content);
      }
    }
  }
  const summary = await writer.finish();
  await putCatalog(context, file, summary.hash);
  await createBundle(context, {
    id: newBundleId([]),
    repo: process.argv[2]!,
    message: "bench",
    parents: [],
    catalog: summary.hash,
    tree: summary.tree,
    files: summary.files,
    bytes: summary.bytes,
  });
} finally {
  rmSync(directory, { recursive: true });
}
