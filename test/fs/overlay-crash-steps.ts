/** The steps of the crash test: each leaves something that can be checked by its number alone. */

import assert from "node:assert/strict";
import { bytesOf } from "../../src/cas/index.ts";
import type { Namespace } from "../../src/fs/namespace.ts";
import { noise, outcome, ROOT_USER, resolve, type World } from "./fixture.ts";

/** Size of the file of the base that the steps write into. */
export const BASE_SIZE = 3_000_000;

/** Does step `number`; `base` is a large file. */
export function step(namespace: Namespace, base: number, number: number): void {
  if (number % 10 === 0) namespace.mkdir(1, bytesOf(`d${number}`), 0o755, ROOT_USER);
  const directory = namespace.lookup(1, bytesOf(`d${number - (number % 10)}`)).ino;
  const { ino } = namespace.create(directory, bytesOf("draft"), 0o600, ROOT_USER);
  namespace.write(ino, 0, noise(2000, number));
  namespace.write(ino, 2000, noise(1000, number + 1));
  namespace.setattr(ino, { mode: 0o644, mtimeNs: BigInt(number) * 1_000_000_007n }, ROOT_USER);
  namespace.rename(directory, bytesOf("draft"), directory, bytesOf(`f${number}`), 0);
  namespace.write(base, offsetOf(number), noise(100, number));
  if (number % 10 === 5) namespace.unlink(directory, bytesOf(`f${number - 1}`));
  if (number % 10 === 7) namespace.link(ino, 1, bytesOf(`l${number}`));
}

/** Checks what steps 0 to `count` - 1 left. */
export async function check(world: World, namespace: Namespace, base: Buffer, count: number): Promise<void> {
  const expected = Buffer.from(base);
  for (let number = 0; number < count; number++) {
    noise(100, number).copy(expected, offsetOf(number));
    const path = `d${number - (number % 10)}/f${number}`;
    if (number % 10 === 4 && number + 1 < count) {
      assert.equal(
        outcome(() => resolve(namespace, path)),
        "ENOENT",
      );
      continue;
    }
    // The step after the last one that was heard of may have begun: it may have removed its predecessor.
    if (number % 10 === 4 && outcome(() => resolve(namespace, path)) === "ENOENT") continue;
    const attr = resolve(namespace, path);
    assert.deepEqual(
      [attr.mode, attr.size, attr.mtimeNs, attr.nlink],
      [0o100644, 3000, BigInt(number) * 1_000_000_007n, number % 10 === 7 ? 2 : 1],
    );
    const content = await world.read(namespace, attr.ino);
    assert.ok(content.equals(Buffer.concat([noise(2000, number), noise(1000, number + 1)])), `the content of ${path}`);
  }
  const { ino } = resolve(namespace, "base");
  const found = await world.read(namespace, ino);
  // Likewise its write into the base may be there.
  noise(100, count).copy(expected, offsetOf(count));
  found.copy(expected, offsetOf(count), offsetOf(count), offsetOf(count) + 100);
  assert.ok(found.equals(expected), "the content of the file of the base");
}

function offsetOf(number: number): number {
  return (number * 7919 * 101) % (BASE_SIZE - 100);
}
