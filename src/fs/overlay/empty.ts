/** The base of an overlay that starts empty: a root directory with nothing in it. */

import type { Dentry, Inode } from "../../meta/index.ts";
import type { Base } from "../base.ts";
import { S_IFDIR } from "../base.ts";
import { ROOT_INO } from "../namespace.ts";

export class EmptyBase implements Base {
  inode(ino: number): Inode | undefined {
    if (ino !== ROOT_INO) return undefined;
    return {
      ino,
      mode: S_IFDIR | 0o755,
      uid: process.getuid?.() ?? 0,
      gid: process.getgid?.() ?? 0,
      mtimeNs: 0n,
      size: 0,
      nlink: 2,
      hash: undefined,
      target: undefined,
    };
  }

  lookup(): undefined {
    return undefined;
  }

  readdir(): Dentry[] {
    return [];
  }

  parent(): undefined {
    return undefined;
  }

  plan(): void {}

  maxIno(): number {
    return ROOT_INO;
  }

  totals(): { inodes: number; bytes: number } {
    return { inodes: 1, bytes: 0 };
  }

  close(): void {}
}
