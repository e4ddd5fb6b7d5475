import {
  copiesOf,
  DamagedObjectError,
  DatamonError,
  ObjectNotFoundError,
  type ObjectStore,
  UnavailableError,
} from "../../cas/index.ts";
import type { Context } from "../context.ts";
import { mapInOrder } from "../parallel.ts";
import { refRecord } from "../records.ts";
import { requireRepo } from "../repos.ts";
import { type Entry, mergeListings } from "./listings.ts";
import { type Copy, hashInKey, isPossible, isRecord, withCopy } from "./objects.ts";
import { rejoinRef } from "./ref-forks.ts";
import { type Harm, References } from "./references.ts";

/** What is wrong with an object, or with a bundle because of it. */
export type Finding =
  /** A store that cannot be compared with the others. */
  | { readonly kind: "unreachable"; readonly store: string; readonly why: string }
  /** One store's copy is not there, is not right, or says something else than the one that counts. */
  | {
      readonly kind: "missing" | "damaged" | "differs";
      readonly key: string;
      readonly store: string;
      readonly why: string;
      readonly repaired: boolean;
    }
  /** No store has the object right. */
  | { readonly kind: "lost"; readonly key: string; readonly why: string }
  /** What is lost of bundles for that reason. */
  | ({ readonly kind: "harmed" } & Harm);

export interface CheckOptions {
  /** Read all that the stores hold, not only records and what looks wrong in a listing. */
  readonly readData?: boolean | undefined;
  /** Put right what is wrong in one store and right in another. */
  readonly repair?: boolean | undefined;
  /** Only what this repo needs. */
  readonly repo?: string | undefined;
  /** Datamon's cache directory; catalogs are kept there for as long as they are needed. */
  readonly cacheDirectory: string;
  readonly signal?: AbortSignal | undefined;
  /** Objects compared so far, and bytes of them that were read; called often. */
  readonly onProgress?: ((progress: { files: number; bytes: number }) => void) | undefined;
}

/** Blobs and catalogs that are read at once. */
const BLOBS_AT_ONCE = 8;
const CATALOGS_AT_ONCE = 2;
const RECORDS_AT_ONCE = 16;

/**
 * Compares all stores of a context with each other and with what its bundles need, and finds what is
 * missing or damaged anywhere; with `repair`, copies it from a store that has it right, never without having
 * verified it. Records are always read. What is uploaded meanwhile may be reported as missing where it has not
 * arrived yet. Memory does not grow with the stores.
 */
export async function* checkStores(context: Context, options: CheckOptions): AsyncGenerator<Finding> {
  if (options.repo !== undefined) await requireRepo(context, options.repo);
  const references = await References.open(context, options.cacheDirectory);
  try {
    yield* new StoreCheck(context, options, references).run();
  } finally {
    await references.close();
  }
}

class StoreCheck {
  readonly #context: Context;
  readonly #options: CheckOptions;
  readonly #references: References;
  readonly #unreachable = new Map<ObjectStore, string>();
  readonly #told = new Set<ObjectStore>();
  readonly #progress = { files: 0, bytes: 0 };
  #lost = false;

  constructor(context: Context, options: CheckOptions, references: References) {
    this.#context = context;
    this.#options = options;
    this.#references = references;
  }

  /** On each store, what an object needs comes before it. */
  async *run(): AsyncGenerator<Finding> {
    const { repo } = this.#options;
    const metadata = copiesOf(this.#context.metadata);
    const blobs = copiesOf(this.#context.blobs.store);
    await this.#reach(metadata);
    await this.#reach(blobs);
    yield* this.#tellUnreachable();
    await this.#references.load(repo);
    yield* this.#compare(blobs, "blobs/", BLOBS_AT_ONCE, this.#references.blobKeys());
    yield* this.#compare(metadata, "catalogs/", CATALOGS_AT_ONCE, this.#references.catalogKeys());
    for (const kind of ["bundles", "repos"]) {
      yield* this.#compare(metadata, repo === undefined ? `${kind}/` : `${kind}/${repo}/`, RECORDS_AT_ONCE);
    }
    yield* this.#compareRefs(metadata, repo === undefined ? "refs/" : `refs/${repo}/`);
    if (this.#lost) for await (const harm of this.#references.harm()) yield { kind: "harmed", ...harm };
  }

  async *#compare(
    stores: readonly ObjectStore[],
    prefix: string,
    concurrency: number,
    needed: Iterable<string> = [],
  ): AsyncGenerator<Finding> {
    for await (const { findings } of this.#examined(stores, prefix, concurrency, needed, this.#options.repair)) {
      yield* this.#tellUnreachable();
      yield* findings;
    }
    yield* this.#tellUnreachable();
  }

  /** Entries of refs are put right one after the other: what lost its number is added to the same logs. */
  async *#compareRefs(stores: readonly ObjectStore[], prefix: string): AsyncGenerator<Finding> {
    const { repair } = this.#options;
    for await (const { entry, findings } of this.#examined(stores, prefix, RECORDS_AT_ONCE, [], false)) {
      yield* this.#tellUnreachable();
      if (repair !== true || findings.length === 0) yield* findings;
      else yield* await this.#examine(stores, entry, true);
    }
    yield* this.#tellUnreachable();
  }

  async *#examined(
    stores: readonly ObjectStore[],
    prefix: string,
    concurrency: number,
    needed: Iterable<string>,
    repair: boolean | undefined,
  ): AsyncGenerator<{ entry: Entry; findings: Finding[] }> {
    const { repo, signal, onProgress } = this.#options;
    const entries = mergeListings(stores, prefix, needed, (store, error) => {
      this.#unreachable.set(store, (error as Error).message);
    });
    const work = async (entry: Entry): Promise<{ entry: Entry; findings: Finding[] }> => {
      signal?.throwIfAborted();
      // Blobs and catalogs belong to no repo but by being needed.
      const other = repo !== undefined && !entry.needed && !isRecord(entry.key);
      const findings = other ? [] : await this.#examine(stores, entry, repair === true);
      this.#progress.files++;
      onProgress?.(this.#progress);
      return { entry, findings };
    };
    yield* mapInOrder(entries, work, concurrency);
  }

  /** Finds out which stores have an object right, and puts the others right where that is wanted. */
  async #examine(stores: readonly ObjectStore[], { key, infos, needed }: Entry, repair: boolean): Promise<Finding[]> {
    const { readData } = this.#options;
    const sizes = infos.flatMap((info) => (info === undefined ? [] : [info.size]));
    const doubtful = new Set(sizes).size > 1 || sizes.some((size) => !isPossible(key, size));
    const read = readData === true || doubtful || isRecord(key);
    const states = await Promise.all(
      stores.map(async (store, index) => {
        if (this.#unreachable.has(store)) return new State(store, "unknown");
        if (infos[index] === undefined) return new State(store, "absent");
        return read ? await this.#look(store, key) : new State(store, "believed");
      }),
    );
    for (const [index, { store, kind }] of states.entries()) {
      // An upload may have been between two stores when they were listed.
      const again = kind === "absent" && states.some(({ isGood }) => isGood) && (await this.#has(store, key));
      if (again) states[index] = await this.#look(store, key);
    }
    if (repair && states.some(({ isBad }) => isBad)) {
      // What was only listed is verified before it is copied.
      for (const [index, { store, kind }] of states.entries()) {
        if (states.some(({ kind }) => kind === "right")) break;
        if (kind === "believed") states[index] = await this.#look(store, key);
      }
    }
    const good = await this.#good(key, states);
    const [best] = good;
    if (best === undefined) return this.#lostOrGone(key, states, needed);
    const wrong = states.filter((state) => state.kind !== "unknown" && !good.includes(state));
    if (wrong.length === 0) return [];
    if (!repair) return wrong.map((state) => state.finding(key, best, false));
    return await this.#repair(key, best, wrong);
  }

  /**
   * The copies that count, the best first. Of records that say different things it is what the first store
   * says; of an entry of a ref the first whose bundle is there.
   */
  async #good(key: string, states: readonly State[]): Promise<State[]> {
    const right = states.filter((state) => state.isGood);
    const [first] = right;
    if (first?.record === undefined || right.every(({ record }) => record!.equals(first.record!))) {
      // What was read is known to be right.
      return [...right.filter(({ kind }) => kind === "right"), ...right.filter(({ kind }) => kind === "believed")];
    }
    let best = first;
    if (key.startsWith("refs/")) {
      for (const state of right.toReversed()) if (await this.#namesBundle(key, state.record!)) best = state;
    }
    return right.filter(({ record }) => record!.equals(best.record!));
  }

  async #namesBundle(key: string, record: Buffer): Promise<boolean> {
    const { bundle } = refRecord.decode(record);
    const repo = key.split("/")[1];
    return bundle === null || (await this.#context.metadata.head(`bundles/${repo}/${bundle}.yaml`)) !== undefined;
  }

  async #repair(key: string, good: State, wrong: readonly State[]): Promise<Finding[]> {
    const losers = wrong.flatMap(({ kind, record }) => (kind === "right" && record !== undefined ? [record] : []));
    if (key.startsWith("refs/") && losers.length > 0) await rejoinRef(this.#context.metadata, key, losers);
    return await withCopy(good.store, key, this.#references.directory, async (copy) => {
      return await Promise.all(wrong.map((state) => this.#replace(key, good, state, copy)));
    });
  }

  async #replace(key: string, good: State, state: State, copy: Copy): Promise<Finding> {
    try {
      await state.store.put(key, copy.body, state.kind === "absent" ? { ifAbsent: true } : {});
      return state.finding(key, good, true);
    } catch (error) {
      this.#failed(state.store, error);
      return { ...state.finding(key, good, false), why: `cannot be repaired: ${(error as Error).message}` };
    }
  }

  #lostOrGone(key: string, states: readonly State[], needed: boolean): Finding[] {
    const damaged = states.find(({ kind }) => kind === "damaged");
    // What nobody needs and nobody has was deleted while the stores were listed.
    if (damaged === undefined && !needed) return [];
    const unknown = states.filter(({ kind }) => kind === "unknown").map(({ store }) => store.url);
    const elsewhere = unknown.length === 0 ? "" : `; ${unknown.join(" and ")} could not be asked`;
    if (needed) this.#noteLost(key);
    return [{ kind: "lost", key, why: `${damaged?.why ?? "no store has it"}${elsewhere}` }];
  }

  #noteLost(key: string): void {
    const hash = hashInKey(key);
    if (hash === undefined) return;
    this.#lost = true;
    if (key.startsWith("blobs/")) this.#references.blobIsLost(hash);
    else this.#references.catalogIsLost(hash);
  }

  /** Reads one store's copy. */
  async #look(store: ObjectStore, key: string): Promise<State> {
    try {
      return await withCopy(store, key, this.#references.directory, ({ record, size }) => {
        this.#progress.bytes += size;
        return new State(store, "right", "", record);
      });
    } catch (error) {
      if (error instanceof ObjectNotFoundError) return new State(store, "absent");
      if (error instanceof DamagedObjectError) return new State(store, "damaged", error.message);
      // A place on a disk that cannot be read holds nothing right.
      if (error instanceof DatamonError && error.code === "io") return new State(store, "damaged", error.message);
      this.#failed(store, error);
      return new State(store, "unknown");
    }
  }

  async #has(store: ObjectStore, key: string): Promise<boolean> {
    try {
      return (await store.head(key)) !== undefined;
    } catch (error) {
      this.#failed(store, error);
      return false;
    }
  }

  /** Notes a store that cannot be asked; throws what is no such thing. */
  #failed(store: ObjectStore, error: unknown): void {
    if (!(error instanceof DatamonError)) throw error;
    if (error instanceof UnavailableError || error.code === "denied") this.#unreachable.set(store, error.message);
    else if (error.code === "interrupted" || error.code === "usage") throw error;
  }

  async #reach(stores: readonly ObjectStore[]): Promise<void> {
    let failure: unknown;
    await Promise.all(
      stores.map(async (store) => {
        try {
          await store.list("", { limit: 1 });
        } catch (error) {
          failure = error;
          this.#unreachable.set(store, (error as Error).message);
        }
      }),
    );
    if (stores.every((store) => this.#unreachable.has(store))) throw failure;
  }

  *#tellUnreachable(): Generator<Finding> {
    for (const [store, why] of this.#unreachable) {
      if (this.#told.has(store)) continue;
      this.#told.add(store);
      yield { kind: "unreachable", store: store.url, why };
    }
  }
}

/** How one store's copy of an object is. */
class State {
  readonly store: ObjectStore;
  readonly kind: "right" | "believed" | "absent" | "damaged" | "unknown";
  readonly why: string;
  readonly record: Buffer | undefined;

  constructor(store: ObjectStore, kind: State["kind"], why = "", record?: Buffer) {
    this.store = store;
    this.kind = kind;
    this.why = why;
    this.record = record;
  }

  get isGood(): boolean {
    return this.kind === "right" || this.kind === "believed";
  }

  get isBad(): boolean {
    return this.kind === "absent" || this.kind === "damaged";
  }

  finding(key: string, good: State, repaired: boolean): Finding & { kind: "missing" | "damaged" | "differs" } {
    const store = this.store.url;
    if (this.kind === "absent") return { kind: "missing", key, store, why: `${good.store.url} has it`, repaired };
    if (this.kind === "damaged") return { kind: "damaged", key, store, why: this.why, repaired };
    return { kind: "differs", key, store, why: `${good.store.url} says something else`, repaired };
  }
}
