/** Commits of a mount that goes on: what its daemon does for `datamon commit`. */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { DatamonError, faultPoint, type Hash, ioError } from "../cas/index.ts";
import { type Bundle, type Context, fetchCatalog } from "../meta/index.ts";
import type { Channel } from "./channels/channel.ts";
import { type CommitOptions, commitFrozen, type FrozenCommit, updateFrozen } from "./commit.ts";
import { checkLabel } from "./commit-label.ts";
import { layersOf, removeLayer, stackOf } from "./overlay/layers.ts";
import { type OnConflict, rereadScratch, type Scratch, settleScratch, updateScratch } from "./scratch.ts";

/** What a commit of a mount is given beyond what the mount says. */
export type LiveCommitOptions = Pick<CommitOptions, "message" | "label" | "onConflict" | "onProgress">;

/** What of a channel a commit needs. */
type Layers = Pick<Channel, "freeze" | "rebase">;

/** The commits of one writable mount, one after the other. */
export class LiveCommits {
  readonly #context: Context;
  readonly #channel: Layers;
  readonly #scratch: Scratch;
  readonly #common: Pick<CommitOptions, "cacheDirectory" | "cacheSize" | "onWarning">;
  readonly #onBundle: (bundle: Bundle) => Promise<void>;
  #last: Promise<unknown> = Promise.resolve();
  /** The catalog that the last commit left in the cache: the one after it takes its place there, too. */
  #kept: Hash | undefined;

  /** @param onBundle told of the bundle that the mount stands on from here on */
  constructor(
    context: Context,
    channel: Layers,
    scratch: Scratch,
    common: Pick<CommitOptions, "cacheDirectory" | "cacheSize" | "onWarning">,
    onBundle: (bundle: Bundle) => Promise<void>,
  ) {
    this.#context = context;
    this.#channel = channel;
    this.#scratch = scratch;
    this.#common = common;
    this.#onBundle = onBundle;
  }

  /**
   * Makes a bundle of what the mount shows at one moment, while it is used; undefined where nothing
   * differs from its base. What an earlier commit began and could not finish is finished first, as a
   * bundle of its own. After a failure the mount is as usable as before, and the next commit goes on.
   */
  async commit(options: LiveCommitOptions): Promise<Bundle | undefined> {
    return await this.#inTurn(() => this.#commit({ ...this.#common, ...options }));
  }

  /** Says what to do with a label that was moved, where nothing else is said at a commit. */
  async onConflict(onConflict: OnConflict): Promise<void> {
    await this.#inTurn(async () => await updateScratch(await rereadScratch(this.#scratch), { onConflict }));
  }

  /** Waits until no commit is under way. */
  async end(): Promise<void> {
    await this.#last;
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => {});
    return await turn;
  }

  async #commit(options: CommitOptions): Promise<Bundle | undefined> {
    try {
      // The worker may have done what this thread had given up waiting for.
      const scratch = await settleScratch(await rereadScratch(this.#scratch));
      await checkLabel(this.#context, scratch.record, options);
      const before = await this.#finish(scratch, options);
      const { message, label, onConflict } = options;
      const layer = stackOf(scratch.directory).at(-1) as number;
      // Written down first, so that whoever finds the layer frozen knows what for.
      const told = await updateFrozen(before.scratch, {
        layer,
        ...(message !== undefined && { message }),
        ...(label !== undefined && { label }),
        ...(onConflict !== undefined && { onConflict }),
      });
      if (!(await this.#channel.freeze())) {
        await updateScratch(told, { frozen: before.scratch.record.frozen });
        return before.bundle;
      }
      const { bundle } = await this.#finish(told, options);
      return bundle ?? before.bundle;
    } catch (error) {
      const { code, message, hint } = ioError("commit", error);
      const { directory } = this.#scratch.record;
      throw new DatamonError(code, `${directory} could not be committed: ${message}`, {
        hint: `${hint === undefined ? "" : `${hint} `}The mount goes on, and nothing is lost. Try again with: datamon commit ${directory}`,
        cause: error,
      });
    }
  }

  /** Makes the bundles of the frozen layers and puts the last of them in their place, where that can be done by now. */
  async #finish(scratch: Scratch, options: CommitOptions): Promise<FrozenCommit> {
    const done = await commitFrozen(this.#context, scratch, options);
    if (done.bundle !== undefined) await this.#onBundle(done.bundle);
    const { base } = done;
    if (base === undefined) return done;
    const { directory } = scratch;
    const catalogs = join(this.#common.cacheDirectory, "catalogs");
    const catalog = await fetchCatalog(this.#context, base.catalog, catalogs);
    if (!(await this.#channel.rebase(catalog, base.bundle))) return done;
    faultPoint("rebase", "done");
    const settled = await updateScratch(await rereadScratch(done.scratch), { base, frozen: undefined });
    if (this.#kept !== base.catalog) {
      if (this.#kept !== undefined) await rm(join(catalogs, `${this.#kept}.sqlite`), { force: true });
      this.#kept = base.catalog;
    }
    const stack = stackOf(directory);
    for (const number of layersOf(directory)) if (!stack.includes(number)) await removeLayer(directory, number);
    return { ...done, scratch: settled };
  }
}
