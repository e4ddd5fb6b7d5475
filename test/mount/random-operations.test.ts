/** A writable mount whose daemons are killed does what a plain directory does, whatever is done to it. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, rmSync } from "node:fs";
import { after, before, it } from "node:test";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import type { ByteString } from "../../src/cas/index.ts";
import type { KillOrder } from "./killer.ts";
import { isRepeatable, makeBase, type Operation, operation, Place, type Seen, treeOf } from "./random-operations.ts";
import { MountHome, type SupervisedMount } from "./supervised-mount.ts";

/** How many sequences of operations are tried; more when run by hand. */
const RUNS = Number(process.env.DATAMON_TEST_RUNS ?? 3);
/** fast-check prints both for a sequence that failed. */
const SEED = Number(process.env.DATAMON_TEST_SEED ?? Date.now() & 0x7fff_ffff);
const PATH = process.env.DATAMON_TEST_PATH;

/**
 * What dies, and when: between two operations, or while the operations of the step are made, milliseconds after
 * their start. Where nobody dies, the mount is committed and goes on above its bundle.
 */
type Death =
  | { dies: "nobody" | "daemon" | "both" }
  | { dies: "daemon in the middle" | "both in the middle"; delay: number };

interface Step {
  readonly operations: Operation[];
  readonly death: Death;
}

interface Run {
  readonly openMode: "plain" | "passthrough";
  readonly steps: Step[];
}

const delay = fc.nat(60);
const death: fc.Arbitrary<Death> = fc.oneof(
  { weight: 1, arbitrary: fc.constant<Death>({ dies: "nobody" }) },
  { weight: 2, arbitrary: fc.constant<Death>({ dies: "daemon" }) },
  { weight: 3, arbitrary: fc.record({ dies: fc.constant("daemon in the middle" as const), delay }) },
  { weight: 2, arbitrary: fc.constant<Death>({ dies: "both" }) },
  { weight: 2, arbitrary: fc.record({ dies: fc.constant("both in the middle" as const), delay }) },
);
const run: fc.Arbitrary<Run> = fc.record({
  openMode: fc.constantFrom("plain", "passthrough"),
  steps: fc.array(fc.record({ operations: fc.array(operation, { minLength: 1, maxLength: 60, size: "max" }), death }), {
    minLength: 1,
    maxLength: 5,
    size: "max",
  }),
});

/** What calls on a mount answer that nobody serves. */
const DEAD = ["ENOTCONN", "ECONNABORTED", "EIO", "EINTR"];

let home: MountHome;
let killer: Worker;
/** The bundle that every run starts from. */
let base: string;
before(async () => {
  home = await MountHome.make();
  mkdirSync(home.path("base"));
  makeBase(home.path("base"));
  base = await home.upload(home.path("base"));
  killer = new Worker(new URL("./killer.ts", import.meta.url));
});
after(async () => {
  await killer?.terminate();
  await home?.end();
});

// Owners are set, and compared with those of a plain directory.
const skip = process.getuid?.() === 0 ? false : "needs root to change owners";

it(`what random operations leave is what they leave in a plain directory (${RUNS} times)`, { skip }, async (t) => {
  t.diagnostic(`DATAMON_TEST_SEED=${SEED}`);
  let made = 0;
  const property = fc.asyncProperty(run, async (sequence) => {
    made++;
    try {
      await compare(sequence, made);
    } catch (error) {
      console.error(`run ${made} with DATAMON_TEST_SEED=${SEED}: ${(error as Error).message}`);
      throw error;
    }
  });
  const endOnFailure = process.env.DATAMON_TEST_SHRINK === "0";
  await fc.assert(property, { numRuns: RUNS, seed: SEED, endOnFailure, ...(PATH !== undefined && { path: PATH }) });
});

async function compare({ openMode, steps }: Run, number: number): Promise<void> {
  const plainRoot = home.path(`plain-${number}`);
  execFileSync("cp", ["-a", home.path("base"), plainRoot]);
  const started = BigInt(Date.now()) * 1_000_000n - 2_000_000_000n;
  const mounted = await home.mount(home.path("mnt"), `birds@${base}`, "--open-mode", openMode);
  const plain = new Place(plainRoot);
  const mount = new Place(mounted.directory);
  let committed = treeOf(home.path("base"));
  try {
    for (const step of steps) {
      await make(step, plain, mount, mounted);
      if (step.death.dies === "nobody") {
        committed = treeOf(mounted.directory);
        await home.run("commit", mounted.directory);
        assertSame(treeOf(mounted.directory), committed);
      }
      assertSame(recent(treeOf(mounted.directory), started), recent(treeOf(plainRoot), started));
    }
    plain.closeAll();
    mount.closeAll();
    const left = treeOf(mounted.directory);
    const bundle = await mounted.unmount();
    if (bundle === undefined) assertSame(recent(left, started), recent(committed, started));
    else assertSame(await home.show(bundle, home.path("shown"), () => treeOf(home.path("shown"))), left);
  } finally {
    mount.closeAll();
    plain.closeAll();
    await mounted.giveUp();
    rmSync(plainRoot, { recursive: true, force: true });
  }
}

async function make({ operations, death }: Step, plain: Place, mount: Place, mounted: SupervisedMount): Promise<void> {
  const inTheMiddle = "delay" in death;
  const bothDie = death.dies === "both in the middle";
  if (bothDie) for (const place of [plain, mount]) place.closeAll();
  const killed = inTheMiddle ? once(killer, "message") : undefined;
  if (inTheMiddle) {
    const order: KillOrder = { supervisor: mounted.supervisor, both: bothDie, delay: death.delay };
    killer.postMessage(order);
  }
  let lives = true;
  for (const each of operations) {
    if (bothDie && lives && !isRepeatable(each)) continue;
    const expected = plain.do(each);
    let actual = mount.do(each);
    if (bothDie && lives && DEAD.includes(actual) && !DEAD.includes(expected)) {
      lives = false;
      await killed;
      await resume(mounted);
      // Whether it was done before nobody said; its outcome tells which, and the trees what is right.
      mount.do(each);
      actual = expected;
    }
    assert.equal(actual, expected, `the outcome of ${show(each)}`);
  }
  await killed;
  if (bothDie && lives) await resume(mounted);
  if (death.dies === "daemon") mounted.killDaemon();
  if (death.dies === "both") {
    const before = treeOf(mounted.directory);
    for (const place of [plain, mount]) place.closeAll();
    await resume(mounted);
    assertSame(treeOf(mounted.directory), before);
  }
}

async function resume(mounted: SupervisedMount): Promise<void> {
  await mounted.killBoth();
  await mounted.resume();
}

/** With all times since `started` alike: the two trees were not changed at the same moments. */
function recent(tree: Map<ByteString, Seen>, started: bigint): Map<ByteString, Seen> {
  return new Map(
    [...tree].map(([path, seen]) => [path, seen.mtimeNs < started ? seen : { ...seen, mtimeNs: started }]),
  );
}

function assertSame(actual: Map<ByteString, Seen>, expected: Map<ByteString, Seen>): void {
  assert.deepEqual(actual, expected);
}

function show(operation: Operation): string {
  return JSON.stringify(operation, (_, value) => (typeof value === "bigint" ? String(value) : value));
}
