/**
 * Stopping, for a moment, those who write to files that were handed to the kernel, of whose writes
 * nobody hears. Such a write holds the lock of its inode, and so does a change of an extended
 * attribute until it is answered: as long as the answer is withheld, nobody writes.
 *
 * A process of its own (`holder.ts`) asks for these changes. It finds the inodes by names in the
 * root directory that nobody else can know, because a file may have no name or several.
 */

import { randomBytes } from "node:crypto";
import { type ByteString, bytesOf } from "../../../cas/index.ts";

/** The attribute whose change is not answered. */
export const HOLDING = "user.datamon.hold";

/** The name by which the holder finds an inode. */
export function holdingName(token: string, ino: number): string {
  return `.datamon-${token}-${ino}`;
}

/** A request that waits for its answer. */
interface Held {
  readonly uniqueLow: number;
  readonly uniqueHigh: number;
}

/** One stop. */
export class Pause {
  /** What the holder shows. */
  readonly token = randomBytes(16).toString("hex");
  readonly #prefix = bytesOf(holdingName(this.token, 0)).slice(0, -1);
  readonly #held = new Map<number, Held>();

  /** The inode that a name in the root directory stands for. */
  inode(name: ByteString): number | undefined {
    return name.startsWith(this.#prefix) ? Number(name.slice(this.#prefix.length)) : undefined;
  }

  /** Takes a change of an attribute that is not to be answered; false for any other. */
  hold(ino: number, name: ByteString, value: Buffer, request: Held): boolean {
    if (name !== bytesOf(HOLDING) || value.toString("latin1") !== this.token) return false;
    const { uniqueLow, uniqueHigh } = request;
    this.#held.set(ino, { uniqueLow, uniqueHigh });
    return true;
  }

  /** True where nobody writes to any of these. */
  holds(inos: Iterable<number>): boolean {
    for (const ino of inos) if (!this.#held.has(ino)) return false;
    return true;
  }

  /** The requests to be answered at its end. */
  waiting(): Iterable<Held> {
    return this.#held.values();
  }
}
