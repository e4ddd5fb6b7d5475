import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { ioError } from "../errors.ts";
import type { ObjectBody, ObjectStore, RequestOptions } from "../store.ts";

const FILE_PIECE = 1024 * 1024;

/** A body's length in bytes. Throws where its file cannot be read. */
export async function sizeOf(body: ObjectBody, doing: string): Promise<number> {
  if (body instanceof Uint8Array) return body.length;
  if (!("file" in body)) return body.reduce((total, piece) => total + piece.length, 0);
  try {
    return (await stat(body.file)).size;
  } catch (error) {
    throw ioError(doing, error);
  }
}

/** A body's bytes from `start` up to `end`, piece after piece; files are read as they are asked for. */
export async function* piecesOf(
  body: ObjectBody,
  start = 0,
  end: number = Number.POSITIVE_INFINITY,
): AsyncGenerator<Uint8Array> {
  if (body instanceof Uint8Array) {
    yield body.subarray(start, end);
  } else if ("file" in body) {
    if (start < end) yield* createReadStream(body.file, { start, end: end - 1, highWaterMark: FILE_PIECE });
  } else {
    let at = 0;
    for (const piece of body) {
      if (at + piece.length > start && at < end) yield piece.subarray(Math.max(0, start - at), end - at);
      at += piece.length;
    }
  }
}

/** True where the store's object `key` has just the body's bytes. */
export async function holds(
  store: ObjectStore,
  key: string,
  body: ObjectBody,
  options: RequestOptions,
): Promise<boolean> {
  const size = await sizeOf(body, `store object ${key} in ${store.url}`);
  if ((await store.head(key, options))?.size !== size) return false;
  let offset = 0;
  for await (const piece of piecesOf(body)) {
    const stored = await store.get(key, { offset, length: piece.length }, options);
    if (!stored.equals(piece)) return false;
    offset += piece.length;
  }
  return true;
}
