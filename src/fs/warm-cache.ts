/** Bringing a bundle's content into the disk cache before it is read. */

import { join } from "node:path";
import { DiskCache, Fetcher } from "../cache/index.ts";
import { type ByteString, DatamonError, type Hash, toBuffer } from "../cas/index.ts";
import { type Bundle, Catalog, type Context, fetchCatalog, type Inode } from "../meta/index.ts";
import { homeOf, isRegular, layoutOf } from "./base.ts";

/** Blobs that are asked for at once; of each there are at most 8 MiB in memory. */
const TOGETHER = 16;
const BLOCK = 4096;

export interface WarmOptions {
  readonly bundle: Bundle;
  /** Paths of files or directories, with `*`, `**`, `?`, `[…]` and `{…,…}`; everything where there are none. */
  readonly paths?: readonly string[];
  readonly cacheDirectory: string;
  readonly cacheSize?: number | undefined;
  readonly signal?: AbortSignal;
  /** Told what is on this machine so far, of how much. */
  onProgress?(state: { files: number; bytes: number; totalFiles: number; totalBytes: number }): void;
}

export interface WarmResult {
  readonly files: number;
  /** Bytes of these files. */
  readonly bytes: number;
  /** Blobs and decoded bytes that came from the store; the rest was here already. */
  readonly fetchedBlobs: number;
  readonly fetchedBytes: number;
}

/**
 * Brings everything into the cache that the chosen files need, so that a mount of the bundle with the
 * same cache asks the store for none of their content. Throws `no-space`, before anything is fetched,
 * where that is more than the cache may hold, and afterwards where the cache did not keep all of it.
 */
export async function warmCache(context: Context, options: WarmOptions): Promise<WarmResult> {
  const { bundle, cacheDirectory, cacheSize, signal } = options;
  const catalog = Catalog.open(await fetchCatalog(context, bundle.catalog, join(cacheDirectory, "catalogs")));
  const cache = DiskCache.open(cacheDirectory, cacheSize === undefined ? {} : { sizeLimit: cacheSize });
  const fetcher = new Fetcher(context.blobs, cache, { memoryLimit: 0 });
  try {
    const paths = options.paths?.length ? options.paths.map(matcherOf) : undefined;
    const need = needOf(catalog, paths);
    if (paths !== undefined && need.files === 0) {
      throw new DatamonError("not-found", `no file of bundle ${bundle.id} is at ${options.paths!.join(" or ")}`);
    }
    if (need.onDisk > cache.limit) throw tooMuch(need, cache.limit);
    const { files: totalFiles, bytes: totalBytes } = need;
    let [files, bytes, lost] = [0, 0, 0];
    const under = new Set<Promise<void>>();
    let failure: unknown;
    let last: Hash | undefined;
    for (const inode of filesOf(catalog, paths)) {
      for (const extent of catalog.extents(inode.ino)) {
        if (extent.blob === last) continue;
        last = extent.blob;
        while (under.size >= TOGETHER) await Promise.race(under);
        signal?.throwIfAborted();
        if (failure !== undefined) throw failure;
        const kept = fetcher.keep({ blob: extent.blob, home: homeOf(inode, extent) }).then(
          (isKept) => {
            if (!isKept) lost++;
          },
          (error: unknown) => {
            failure ??= error;
          },
        );
        const entry = kept.finally(() => under.delete(entry));
        under.add(entry);
      }
      const layout = layoutOf(catalog, inode);
      if (layout !== undefined) fetcher.files?.want(layout);
      files++;
      bytes += inode.size;
      options.onProgress?.({ files, bytes, totalFiles, totalBytes });
    }
    await Promise.all(under);
    if (failure !== undefined) throw failure;
    await fetcher.settled();
    if (lost > 0) throw notKept(lost, cache);
    return { files, bytes, fetchedBlobs: fetcher.stats.fetches, fetchedBytes: fetcher.stats.bytesFetched };
  } finally {
    await fetcher.close();
    cache.close();
    catalog.close();
  }
}

interface Need {
  readonly files: number;
  readonly bytes: number;
  /** Bytes that their blobs take in the cache. */
  readonly onDisk: number;
}

function needOf(catalog: Catalog, paths: readonly RegExp[] | undefined): Need {
  const onDisk = (wanted: (blob: Hash) => boolean): number => {
    let sum = 0;
    for (const { hash, size } of catalog.blobs()) if (wanted(hash)) sum += Math.ceil(size / BLOCK) * BLOCK;
    return sum;
  };
  if (paths === undefined) {
    const { files, bytes } = catalog.summary();
    return { files, bytes, onDisk: onDisk(() => true) };
  }
  const blobs = new Set<Hash>();
  let [files, bytes] = [0, 0];
  for (const { ino, size } of filesOf(catalog, paths)) {
    files++;
    bytes += size;
    for (const { blob } of catalog.extents(ino)) blobs.add(blob);
  }
  return { files, bytes, onDisk: onDisk((blob) => blobs.has(blob)) };
}

function* filesOf(catalog: Catalog, paths: readonly RegExp[] | undefined): Generator<Inode> {
  for (const { path, inode } of catalog.walk()) {
    if (!isRegular(inode.mode)) continue;
    if (paths === undefined || paths.some((one) => one.test(textOf(path)))) yield inode;
  }
}

function textOf(path: ByteString): string {
  return toBuffer(path).toString("utf8");
}

/** Matches a path, and everything below it, as shells do; `**` is for any number of directories. */
function matcherOf(glob: string): RegExp {
  const trimmed = glob.replace(/^\.?\/+|\/+$/g, "");
  let [source, depth] = ["", 0];
  for (let at = 0; at < trimmed.length; ) {
    const rest = trimmed.slice(at);
    const [token] = /^(?:\*\*\/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|[{},]|\\.|.)/su.exec(rest)!;
    at += token.length;
    if (token === "**/") source += "(?:[^/]+/)*";
    else if (token === "**") source += ".*";
    else if (token === "*") source += "[^/]*";
    else if (token === "?") source += "[^/]";
    else if (token.length > 1 && token.startsWith("[")) {
      source += token.replace(/^\[[!^]/, "[^").replace(/[\\&|~]/g, "\\$&");
    } else if (token === "{") {
      depth++;
      source += "(?:";
    } else if (token === "}" && depth > 0) {
      depth--;
      source += ")";
    } else if (token === "," && depth > 0) source += "|";
    else source += token.startsWith("\\") ? token : token.replace(/[\\^$.+()|[\]{}]/, "\\$&");
  }
  try {
    return new RegExp(`^${source}(?:/.*)?$`, "su");
  } catch (error) {
    throw new DatamonError("usage", `${glob} is not a pattern of paths`, { cause: error });
  }
}

function tooMuch({ files, onDisk }: Need, limit: number): DatamonError {
  return new DatamonError(
    "no-space",
    `the ${files} files take ${mebibytes(onDisk)} of the cache, which may hold ${mebibytes(limit)}`,
    { hint: "Give it more with --cache-size, here and to the mount, or choose files with --path." },
  );
}

function notKept(blobs: number, cache: DiskCache): DatamonError {
  const { degraded } = cache.status();
  const why = degraded ?? "others who use it took the space";
  return new DatamonError("no-space", `the cache did not keep ${blobs} blobs: ${why}`, {
    hint: "Make room, or choose files with --path, and warm it again.",
  });
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
