import {
  DatamonError,
  type ListOptions,
  type ObjectBody,
  type ObjectInfo,
  ObjectNotFoundError,
  type ObjectStore,
  type PutOptions,
  type RequestOptions,
  UnavailableError,
} from "../../src/cas/index.ts";

/** Objects in memory, that can be away or stand still. */
export class MemoryStore implements ObjectStore {
  readonly url: string;
  readonly objects: Map<string, Buffer>;
  readonly log: string[] = [];
  state: "well" | "away" | "still" | "full" = "well";

  /** @param objects shared by those who come to one store on ways of their own */
  constructor(name: string, objects = new Map<string, Buffer>()) {
    this.url = `memory://${name}`;
    this.objects = objects;
  }

  async get(key: string, range?: { offset: number; length: number }, options?: RequestOptions): Promise<Buffer> {
    await this.#asked("get", key, options);
    const found = this.objects.get(key);
    if (found === undefined) throw new ObjectNotFoundError(this.url, key);
    return range === undefined ? found : found.subarray(range.offset, range.offset + range.length);
  }

  async put(key: string, body: ObjectBody, options: PutOptions = {}): Promise<boolean> {
    await this.#asked("put", key, options);
    if (this.state === "full") throw new DatamonError("no-space", `cannot store ${key} in ${this.url}: it is full`);
    if (options.ifAbsent === true && this.objects.has(key)) return false;
    const pieces = (Array.isArray(body) ? body : [body]) as Uint8Array[];
    this.objects.set(key, Buffer.concat(pieces));
    return true;
  }

  async head(key: string, options?: RequestOptions): Promise<ObjectInfo | undefined> {
    await this.#asked("head", key, options);
    const found = this.objects.get(key);
    return found === undefined ? undefined : { key, size: found.length };
  }

  async list(prefix: string, { after = "", limit = 3, ...options }: ListOptions = {}): Promise<ObjectInfo[]> {
    await this.#asked("list", prefix, options);
    const keys = [...this.objects.keys()].filter((key) => key.startsWith(prefix) && key > after).sort();
    return keys.slice(0, Math.min(limit, 3)).map((key) => ({ key, size: this.objects.get(key)!.length }));
  }

  async delete(key: string, options?: RequestOptions): Promise<void> {
    await this.#asked("delete", key, options);
    this.objects.delete(key);
  }

  async #asked(verb: string, key: string, { signal }: RequestOptions = {}): Promise<void> {
    this.log.push(`${verb} ${key}`);
    await new Promise(setImmediate);
    if (this.state === "away") throw new UnavailableError(`${this.url} is away`);
    if (this.state !== "still") return;
    signal?.throwIfAborted();
    await new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
  }
}
