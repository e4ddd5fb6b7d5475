/** The tests that every channel passes, on real mounts. */

import { describe } from "node:test";
import type { ChannelKind } from "../../src/fs/channels/channel.ts";
import { durabilityTests } from "./durability.ts";
import { lifeTests } from "./life.ts";
import { posixTests } from "./posix.ts";
import { readTests } from "./reading.ts";
import { writeTests } from "./writing.ts";

/** What a channel can do that not all can. */
export interface Abilities {
  /** Names that are not UTF-8. */
  readonly rawNames: boolean;
  /** Times to the nanosecond; to the millisecond otherwise. */
  readonly nanoseconds: boolean;
  /** Setting one of a file's two times. */
  readonly oneTime: boolean;
  /** renameat2 with flags. */
  readonly renameFlags: boolean;
  readonly fallocate: boolean;
  /** SEEK_DATA and SEEK_HOLE. */
  readonly holes: boolean;
  /** New files belong to who makes them, and setuid bits go when somebody else writes. */
  readonly callers: boolean;
  /** Who opens a file while another takes its name gets the one or the other. */
  readonly replaces: boolean;
  /** A reader that is killed goes away while the network is waited for. */
  readonly interrupts: boolean;
}

const ABILITIES: Record<ChannelKind, Abilities> = {
  kernel: {
    rawNames: true,
    nanoseconds: true,
    oneTime: true,
    renameFlags: true,
    fallocate: true,
    holes: true,
    callers: true,
    replaces: true,
    interrupts: true,
  },
  "fuse-native": {
    rawNames: false,
    nanoseconds: false,
    oneTime: false,
    renameFlags: false,
    fallocate: false,
    holes: false,
    callers: false,
    replaces: false,
    interrupts: false,
  },
};

/** Registers the tests for a channel; what it cannot do is not among them. */
export function runMountSuite(kind: ChannelKind): void {
  describe(`a mount through the channel ${kind}`, () => {
    readTests(kind, ABILITIES[kind]);
    writeTests(kind, ABILITIES[kind]);
    posixTests(kind, ABILITIES[kind]);
    durabilityTests(kind, ABILITIES[kind]);
    lifeTests(kind, ABILITIES[kind]);
  });
}
