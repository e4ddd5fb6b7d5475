/**
 * The layers of a scratch, as they lie on the disk. Changes go to the topmost. A commit of a mount
 * that goes on freezes it and has another begin above it; the frozen one goes when its bundle takes
 * its place.
 *
 * The first layer is the directory of the scratch itself, the others are in `layers/<number>`. Each
 * holds journal.sqlite and data/. One that is being made has a name with `.new` at its end: renaming
 * it is what freezes the one below. Its `below/` then holds copies of files that go on to be written
 * to above, to be put in their place in the layer below.
 */

import { closeSync, existsSync, fsyncSync, openSync, readdirSync, renameSync, rmSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { isErrno } from "../../cas/index.ts";
import { journalBase } from "./journal.ts";

/** The journal of a layer. */
export function journalFile(layer: string): string {
  return join(layer, "journal.sqlite");
}

/** The data files of a layer. */
export function dataDirectory(layer: string): string {
  return join(layer, "data");
}

/** The directory of the layer with this number. */
export function layerDirectory(scratch: string, number: number): string {
  return number === 0 ? scratch : join(scratch, "layers", String(number));
}

/** What a journal says that it stands on where that is a layer and no bundle. */
export function layerName(number: number): string {
  return `layer/${number}`;
}

/** Where the layer with this number is made. */
export function draftDirectory(scratch: string, number: number): string {
  return `${layerDirectory(scratch, number)}.new`;
}

/** Where copies are kept that are made before that layer is. */
export function aheadDirectory(scratch: string, number: number): string {
  return `${layerDirectory(scratch, number)}.ahead`;
}

/** Numbers of the layers, the lowest first; a scratch that was never opened has the first. */
export function layersOf(scratch: string): [number, ...number[]] {
  const found = existsSync(journalFile(scratch)) ? [0] : [];
  for (const name of namesIn(join(scratch, "layers"))) if (/^\d+$/.test(name)) found.push(Number(name));
  found.sort((one, other) => one - other);
  return found.length === 0 ? [0] : (found as [number, ...number[]]);
}

/** The layers that count: the topmost with those that it stands on, the lowest first. */
export function stackOf(scratch: string): [number, ...number[]] {
  const layers = layersOf(scratch);
  const stack: number[] = [];
  for (let number: number | undefined = layers[layers.length - 1]; number !== undefined; ) {
    stack.unshift(number);
    const base = baseOfLayer(scratch, number);
    number = base?.startsWith("layer/") ? Number(base.slice("layer/".length)) : undefined;
  }
  return stack as [number, ...number[]];
}

/** What a layer stands on: the id of a bundle, empty for none, or the name of a layer; undefined for one without a journal. */
export function baseOfLayer(scratch: string, number: number): string | undefined {
  const file = journalFile(layerDirectory(scratch, number));
  return existsSync(file) ? journalBase(file) : undefined;
}

/** Ends what a process died in: layers that were not begun, or are not needed any more, go; copies come to their place. */
export function settleLayers(scratch: string): void {
  for (const name of namesIn(join(scratch, "layers"))) {
    if (!/^\d+$/.test(name)) rmSync(join(scratch, "layers", name), { recursive: true, force: true });
  }
  const stack = stackOf(scratch);
  for (const number of stack) placeCopies(scratch, number);
  for (const number of layersOf(scratch)) {
    if (stack.includes(number)) continue;
    for (const path of pathsOf(scratch, number)) rmSync(path, { recursive: true, force: true });
  }
}

/** Puts the copies that came with layer `number` in their place in the one below. */
export function placeCopies(scratch: string, number: number): void {
  const copies = join(layerDirectory(scratch, number), "below");
  const names = number === 0 ? [] : namesIn(copies);
  const data = dataDirectory(layerDirectory(scratch, number - 1));
  for (const name of names) renameSync(join(copies, name), join(data, name));
}

/** Removes a layer that nothing stands on. */
export async function removeLayer(scratch: string, number: number): Promise<void> {
  for (const path of pathsOf(scratch, number)) await rm(path, { recursive: true, force: true });
}

/** All that a layer is, in the order in which it is to be removed: without its journal it is none. */
function pathsOf(scratch: string, number: number): string[] {
  const layer = layerDirectory(scratch, number);
  const journal = journalFile(layer);
  return [dataDirectory(layer), `${journal}-wal`, `${journal}-shm`, journal, ...(number > 0 ? [layer] : [])];
}

/** The names in a directory are on the disk when this returns. */
export function syncDirectory(directory: string): void {
  const fd = openSync(directory, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if (isErrno(error, "ENOENT")) return [];
    throw error;
  }
}
