import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { it } from "node:test";
import { setTimeout } from "node:timers/promises";
import fc from "fast-check";
import { BlobStore } from "../../src/cas/index.ts";
import { ReplicatedStore } from "../../src/cas/replicas/replicated-store.ts";
import { type Context, checkStores, newBundleId } from "../../src/meta/index.ts";
import { appendRef, type RefName, readRef, refNumbers } from "../../src/meta/refs.ts";
import { MemoryStore } from "../support/memory-store.ts";
import { all } from "./temporary-context.ts";

const NAMES = ["a", "b", "c"];
const REF: RefName = { repo: "birds", kind: "labels", name: "latest" };

/** The stores as one user sees them: which of them answer is a matter of the way there. */
function contextOf(links: readonly MemoryStore[]): Context {
  const blobs = new BlobStore(new MemoryStore("blobs"));
  const config = { metadata: "", blob: "", file: undefined };
  return { metadata: new ReplicatedStore(links), blobs, contributor: { name: "n", email: "e" }, config };
}

it("whoever moves a label while whichever stores are away, no entry is lost, and the repaired label is the latest", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "datamon-forks-"));
  t.after(() => rm(directory, { recursive: true }));
  /** For each move of the label: the stores that the one who moves it cannot reach. */
  const moves = fc.array(fc.subarray([0, 1, 2], { maxLength: 2 }), { minLength: 1, maxLength: 8 });
  await fc.assert(
    fc.asyncProperty(moves, fc.nat(8), async (unreachable, repairedAfter) => {
      const objects = NAMES.map(() => new Map<string, Buffer>());
      const links = () => NAMES.map((name, index) => new MemoryStore(name, objects[index]));
      const repair = () => all(checkStores(contextOf(links()), { repair: true, cacheDirectory: directory }));
      const acknowledged: string[] = [];
      for (const [turn, away] of unreachable.entries()) {
        if (turn === repairedAfter) await repair();
        const own = links();
        for (const index of away) own[index]!.state = "away";
        const bundle = await newBundleId([]);
        await appendRef(contextOf(own), REF, bundle);
        acknowledged.push(bundle);
        // Entries have times of their own.
        await setTimeout(2);
      }
      await repair();
      assert.deepEqual(await repair(), []);
      const [first, ...others] = objects.map((map) => Object.fromEntries([...map].sort()));
      for (const other of others) assert.deepEqual(other, first);
      const context = contextOf(links());
      const log: (string | undefined)[] = [];
      for await (const number of refNumbers(context, REF)) log.push((await readRef(context, REF, number)).bundle);
      assert.deepEqual(new Set(log), new Set(acknowledged));
      assert.equal(log.at(-1), acknowledged.at(-1));
    }),
    { numRuns: 60 },
  );
});
