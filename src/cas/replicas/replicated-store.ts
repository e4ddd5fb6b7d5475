import { DamagedObjectError, DatamonError, ObjectNotFoundError, UnavailableError } from "../errors.ts";
import { Patience, type RetryOptions } from "../policies/retry.ts";
import type {
  ByteRange,
  GetOptions,
  ListOptions,
  ObjectBody,
  ObjectInfo,
  ObjectStore,
  PutOptions,
  RequestOptions,
} from "../store.ts";
import { holds } from "../stores/body.ts";
import { mergePages } from "./merge.ts";
import { Replica, type ReplicaStatus } from "./replica.ts";

/** How several stores are used as one. */
export interface ReplicaOptions {
  /** In how many stores an object has to be before a put is done; by default in all that answer, at least one. */
  readonly copies?: number | undefined;
  /** Is told in a sentence, again and again, when a store does not answer, or fails, or holds something wrong. */
  readonly onTrouble?: ((url: string, message: string) => void) | undefined;
  /** How long a request goes on that no store can serve. */
  readonly patience?: RetryOptions | undefined;
}

/** How a copy is read. */
export interface CopyOptions extends RequestOptions {
  /** False for what takes its time: no second store is asked while the first one is at it. */
  readonly hurry?: boolean;
}

/** Keys that no two different objects have: those of blobs, catalogs and bundles. */
const UNIQUE = /\/(?:[0-9a-f]{64}|[0-9A-Za-z]{27}\.yaml)$/;

/** An object that is not in the stores that answered, and may be in one that did not. */
class PerhapsNotFoundError extends DatamonError {}

interface Failure {
  readonly replica: Replica;
  readonly error: unknown;
}

/**
 * Several stores that hold the same objects, as one. Puts go to all of them, reads to the first that
 * answers and has what is wanted, listings show what any of them has. One that does not answer is
 * passed over, and tried again from time to time.
 *
 * An object that is to be created where it is absent is created by whoever comes first in the first
 * store of the list; all users have to name the stores in the same order. While that store is away
 * the next one decides. Where two users disagree about who is away, both may be told that they came first:
 * what the earlier store of the list holds then counts. Blobs, catalogs and bundles have keys of their own
 * and need no decision.
 */
export class ReplicatedStore implements ObjectStore {
  readonly url: string;
  readonly #replicas: readonly Replica[];
  readonly #copies: number;
  readonly #patience: Patience;
  readonly #onTrouble: (url: string, message: string) => void;

  /** @param stores in the order that decides; each gives a request up soon, because there are others */
  constructor(stores: readonly ObjectStore[], { copies = 1, onTrouble = () => {}, patience }: ReplicaOptions = {}) {
    this.url = stores.map(({ url }) => url).join(" and ");
    this.#replicas = stores.map((store) => new Replica(store, (message) => onTrouble(store.url, message)));
    this.#copies = copies;
    this.#patience = new Patience(patience);
    this.#onTrouble = onTrouble;
  }

  /** The stores themselves, in their order. */
  get stores(): ObjectStore[] {
    return this.#replicas.map(({ store }) => store);
  }

  get statuses(): ReplicaStatus[] {
    return this.#replicas.map(({ status }) => status);
  }

  async get(key: string, range?: ByteRange, options: GetOptions = {}): Promise<Buffer> {
    return await this.readCopy((store, signal) => store.get(key, range, { ...options, signal }), options);
  }

  async head(key: string, options: RequestOptions = {}): Promise<ObjectInfo | undefined> {
    try {
      return await this.readCopy(async (store, signal) => {
        const info = await store.head(key, { signal });
        if (info === undefined) throw new ObjectNotFoundError(store.url, key);
        return info;
      }, options);
    } catch (error) {
      if (error instanceof ObjectNotFoundError || error instanceof PerhapsNotFoundError) return undefined;
      throw error;
    }
  }

  /** True where a put of the object would do nothing: all stores that answer have it, and enough do. */
  async isSettled(key: string): Promise<boolean> {
    const asked = this.#living();
    const { values } = await settle(asked, (replica) =>
      replica.request(undefined, (signal) => replica.store.head(key, { signal })),
    );
    const having = [...values.values()].filter((info) => info !== undefined).length;
    return having === asked.length && having >= this.#copies;
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ObjectInfo[]> {
    const { signal } = options;
    return await this.#patience.during(signal, async () => {
      const asked = this.#living();
      const { values, failures } = await settle(asked, (replica) =>
        replica.request(signal, (own) => replica.store.list(prefix, { ...options, signal: own })),
      );
      if (values.size === 0) throw this.#verdict(failures);
      return mergePages([...values.values()], options.limit);
    });
  }

  async put(key: string, body: ObjectBody, options: PutOptions = {}): Promise<boolean> {
    const put = new Put(key, body, options, this.#replicas);
    const attempt = options.ifAbsent === true && !UNIQUE.test(key) ? () => this.#create(put) : () => this.#store(put);
    return await this.#patience.during(options.signal, attempt);
  }

  /**
   * Removes the object from all stores. One that does not answer is an error, because it would bring
   * the object back.
   */
  async delete(key: string, { signal }: RequestOptions = {}): Promise<void> {
    const { failures } = await settle(this.#replicas, (replica) =>
      replica.request(signal, (own) => replica.store.delete(key, { signal: own })),
    );
    const [first] = failures;
    if (first === undefined) return;
    const { code, message } = asDatamonError(first.error);
    throw new DatamonError(code, message, {
      hint: "Nothing is deleted unless all stores can: one that cannot would bring it back. Try again when they answer.",
      cause: first.error,
    });
  }

  /**
   * What `read` makes of the first store with which it succeeds. Stores are tried in their order,
   * those that do not answer last; where one keeps waiting the next is tried beside it.
   */
  async readCopy<T>(
    read: (store: ObjectStore, signal: AbortSignal) => Promise<T>,
    options: CopyOptions = {},
  ): Promise<T> {
    return await this.#patience.during(options.signal, () => this.#readOnce(read, options));
  }

  async #readOnce<T>(
    read: (store: ObjectStore, signal: AbortSignal) => Promise<T>,
    { signal, hurry = true }: CopyOptions,
  ): Promise<T> {
    const waiting = this.#inOrder();
    const decided = new AbortController();
    const own = signal === undefined ? decided.signal : AbortSignal.any([signal, decided.signal]);
    const failures: Failure[] = [];
    const started: Replica[] = [];
    const underWay = new Map<Replica, Promise<{ replica: Replica; value: T } | Failure>>();
    const start = (replica: Replica): void => {
      started.push(replica);
      underWay.set(replica, attempt(replica, read, own));
    };
    try {
      for (;;) {
        if (underWay.size === 0) {
          const next = waiting.shift();
          if (next === undefined) throw this.#verdict(failures);
          // That the living do not have it is an answer; the dead would have to be waited for each time.
          if (!next.answers && failures.some(({ error }) => error instanceof ObjectNotFoundError)) {
            failures.push({ replica: next, error: new UnavailableError(`${next.store.url} does not answer`) });
            continue;
          }
          start(next);
        }
        const mayHurry = hurry && waiting[0]?.answers === true;
        const outcome = await withinTime([...underWay.values()], mayHurry ? started.at(-1)!.lateAfter : undefined);
        if (outcome === "late") {
          start(waiting.shift()!);
          continue;
        }
        const { replica } = outcome;
        underWay.delete(replica);
        if ("value" in outcome) {
          for (const other of started.slice(0, started.indexOf(replica))) if (underWay.has(other)) other.wasSlow();
          return outcome.value;
        }
        signal?.throwIfAborted();
        failures.push(outcome);
      }
    } finally {
      decided.abort();
    }
  }

  /** An object whose bytes are the same whoever puts it, or that is to replace what is there. */
  async #store(put: Put): Promise<boolean> {
    const { failures } = await settle(this.#wanting(put), (replica) => put.to(replica));
    return this.#enough(put, failures);
  }

  /** An object that only one of several writers may create: the first store that answers decides. */
  async #create(put: Put): Promise<boolean> {
    const failures: Failure[] = [];
    // A decision is too important to pass a store over because it did not answer some time ago.
    for (const replica of this.#replicas) {
      if (put.results.size > 0) break;
      await put.to(replica).catch((error: unknown) => failures.push({ replica, error }));
      put.signal?.throwIfAborted();
    }
    if (put.results.size === 0) throw this.#verdict(failures);
    if (put.firstResult() === false) return false;
    const asked = this.#wanting(put).filter((replica) => !failures.some((failure) => failure.replica === replica));
    const others = await settle(asked, async (replica) => {
      if ((await put.to(replica)) || (await put.isHeldBy(replica))) return;
      put.results.delete(replica);
      put.disagreeing.add(replica);
    });
    for (const { store } of put.disagreeing) {
      this.#onTrouble(
        store.url,
        `store ${store.url} holds another object ${put.key}, made while not all stores answered`,
      );
    }
    return this.#enough(put, [...failures, ...others.failures]);
  }

  #enough(put: Put, failures: readonly Failure[]): boolean {
    put.signal?.throwIfAborted();
    if (put.results.size === 0) throw this.#verdict(failures);
    if (put.results.size < this.#copies) {
      const [first] = failures;
      const why = first === undefined ? "the others do not answer" : asDatamonError(first.error).message;
      const message = `object ${put.key} is in ${put.results.size} of the ${this.#copies} stores it has to be in: ${why}`;
      const details = {
        cause: first?.error,
        hint: "Try again when the stores answer, or lower 'copies' in the configuration.",
      };
      const lasting = failures.find(({ error }) => !(error instanceof UnavailableError));
      if (lasting === undefined) throw new UnavailableError(message, details);
      throw new DatamonError(asDatamonError(lasting.error).code, message, details);
    }
    const result = put.firstResult()!;
    if (result) for (const replica of this.#replicas) if (!put.results.has(replica)) replica.missed++;
    return result;
  }

  /** The stores that do not have the object yet: those that answer, and the others where there are too few. */
  #wanting(put: Put): Replica[] {
    const wanting = this.#replicas.filter((replica) => !put.results.has(replica) && !put.disagreeing.has(replica));
    const living = wanting.filter((replica) => replica.answers);
    return put.results.size + living.length < this.#copies ? wanting : living;
  }

  /** Those that are not taken for dead; all where that is none. */
  #living(): Replica[] {
    const living = this.#replicas.filter((replica) => replica.answers);
    return living.length > 0 ? living : [...this.#replicas];
  }

  /** In the order in which they are read: the quick, the slow, the dead. */
  #inOrder(): Replica[] {
    const rank = (replica: Replica): number => (replica.answers ? (replica.isSlow ? 1 : 0) : 2);
    return [...this.#replicas].sort((a, b) => rank(a) - rank(b));
  }

  /** What is to be said where no store could do it. */
  #verdict(failures: readonly Failure[]): unknown {
    const errors = failures.map(({ error }) => error);
    const damaged = errors.find((error) => error instanceof DamagedObjectError);
    if (damaged !== undefined) return damaged;
    const notFound = errors.find((error) => error instanceof ObjectNotFoundError);
    const other = failures.find(({ error }) => !(error instanceof ObjectNotFoundError));
    if (notFound !== undefined && other === undefined) return new ObjectNotFoundError(this.url, notFound.key);
    if (notFound !== undefined) {
      return new PerhapsNotFoundError(
        "unavailable",
        `${notFound.message}, and ${other!.replica.store.url} cannot be asked: ${asDatamonError(other!.error).message}`,
        { hint: "Try again when all stores answer.", cause: other!.error },
      );
    }
    return errors.find((error) => error instanceof UnavailableError) ?? errors[0];
  }
}

/** One object on its way to several stores. */
class Put {
  readonly key: string;
  readonly signal: AbortSignal | undefined;
  /** What the stores that have it answered: true where this put has created it. */
  readonly results = new Map<Replica, boolean>();
  readonly disagreeing = new Set<Replica>();
  readonly #body: ObjectBody;
  readonly #options: PutOptions;
  readonly #order: readonly Replica[];

  constructor(key: string, body: ObjectBody, options: PutOptions, order: readonly Replica[]) {
    this.key = key;
    this.signal = options.signal;
    this.#body = body;
    this.#options = options;
    this.#order = order;
  }

  async to(replica: Replica): Promise<boolean> {
    const result = await replica.request(this.signal, (signal) =>
      replica.store.put(this.key, this.#body, { ...this.#options, signal }),
    );
    this.results.set(replica, result);
    return result;
  }

  /** What the first store of the list answered that has it. */
  firstResult(): boolean | undefined {
    for (const replica of this.#order) if (this.results.has(replica)) return this.results.get(replica);
    return undefined;
  }

  /** True where the object that is there has these bytes. */
  async isHeldBy(replica: Replica): Promise<boolean> {
    return await replica.request(this.signal, (signal) => holds(replica.store, this.key, this.#body, { signal }));
  }
}

/** The stores that hold the copies of what `store` holds: itself where it is one alone. */
export function copiesOf(store: ObjectStore): ObjectStore[] {
  return store instanceof ReplicatedStore ? store.stores : [store];
}

/** True where the object is in the store, of several in all that answer: nobody needs to put it. */
export async function isSettled(store: ObjectStore, key: string): Promise<boolean> {
  return store instanceof ReplicatedStore ? await store.isSettled(key) : (await store.head(key)) !== undefined;
}

/** How each of several stores has fared; empty for one alone. */
export function replicaStatuses(store: ObjectStore): ReplicaStatus[] {
  return store instanceof ReplicatedStore ? store.statuses : [];
}

/**
 * What `read` makes of the object it reads, from the first store that has it right: where `read` throws
 * that it is damaged, not there or not to be had, the next one is tried.
 */
export async function readCopy<T>(
  store: ObjectStore,
  read: (copy: ObjectStore, signal?: AbortSignal) => Promise<T>,
  options: CopyOptions = {},
): Promise<T> {
  return store instanceof ReplicatedStore ? await store.readCopy(read, options) : await read(store, options.signal);
}

async function attempt<T>(
  replica: Replica,
  read: (store: ObjectStore, signal: AbortSignal) => Promise<T>,
  signal: AbortSignal,
): Promise<{ replica: Replica; value: T } | Failure> {
  try {
    return { replica, value: await replica.read(signal, (own) => read(replica.store, own)) };
  } catch (error) {
    return { replica, error };
  }
}

/** The first of the promises to settle, or "late" after so many milliseconds. */
async function withinTime<T>(promises: Promise<T>[], milliseconds: number | undefined): Promise<T | "late"> {
  if (milliseconds === undefined) return await Promise.race(promises);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<"late">((resolve) => {
    timer = setTimeout(resolve, milliseconds, "late");
  });
  try {
    return await Promise.race([...promises, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function settle<T>(
  replicas: readonly Replica[],
  work: (replica: Replica) => Promise<T>,
): Promise<{ values: Map<Replica, T>; failures: Failure[] }> {
  const values = new Map<Replica, T>();
  const failures: Failure[] = [];
  const outcomes = await Promise.allSettled(replicas.map(work));
  for (const [index, outcome] of outcomes.entries()) {
    const replica = replicas[index]!;
    if (outcome.status === "fulfilled") values.set(replica, outcome.value);
    else failures.push({ replica, error: outcome.reason });
  }
  return { values, failures };
}

function asDatamonError(error: unknown): DatamonError {
  return error instanceof DatamonError ? error : new DatamonError("io", (error as Error).message, { cause: error });
}
