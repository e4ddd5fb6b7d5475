import { readFile } from "node:fs/promises";
import type { Storage } from "@google-cloud/storage";
import { DatamonError, ioError, ObjectNotFoundError, UnavailableError } from "../errors.ts";
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
import type { BucketAddress } from "./address.ts";
import { piecesOf, sizeOf } from "./body.ts";
import { crc32c, encodeChecksum } from "./crc32c.ts";
import { download } from "./download.ts";
import { CHECKED_SIZE, changed, failPoint, networkFailure, remoteError } from "./failure.ts";
import { type Answer, type HttpRequest, send } from "./http.ts";
import { checkKey, isKey } from "./keys.ts";
import { MultipartUpload } from "./multipart.ts";
import { RESUMABLE_SIZE, ResumableUpload } from "./resumable.ts";

type GoogleAuth = Storage["authClient"];

const DEFAULT_PAGE = 1000;
const HINT =
  "Give an account access to the bucket: 'gcloud auth application-default login', or a key file as 'credential' in the configuration.";

/**
 * Objects in a Google Cloud Storage bucket. The SDK brings the credentials and knows the endpoint. The
 * requests are our own: the SDK's can be neither ended early nor watched for stalls, send bodies
 * without their length, and checksum four times slower.
 */
export class GcsStore implements ObjectStore {
  readonly url: string;
  readonly #address: BucketAddress;
  readonly #endpoint: string;
  /** Undefined for an emulator, which asks for no credentials. */
  readonly #auth: GoogleAuth | undefined;
  /** Uploads that a failure interrupted, to go on with where the same body is put again. */
  readonly #interrupted = new WeakMap<object, ResumableUpload>();
  #bucketKnown = false;

  private constructor(address: BucketAddress, endpoint: string, auth: GoogleAuth | undefined) {
    this.url = address.url;
    this.#address = address;
    this.#endpoint = endpoint;
    this.#auth = auth;
  }

  /**
   * Opens the store at `gs://bucket/prefix`. The bucket has to be there; nothing is asked of it yet.
   * `$STORAGE_EMULATOR_HOST` names an emulator to use instead of the service.
   *
   * @param credential a key file; without it, application default credentials
   */
  static async open(address: BucketAddress, credential: string | undefined): Promise<GcsStore> {
    const emulator = process.env.STORAGE_EMULATOR_HOST;
    if (emulator !== undefined && emulator !== "") {
      const endpoint = `${/^https?:\/\//.test(emulator) ? "" : "http://"}${emulator.replace(/\/+$/, "")}`;
      return new GcsStore(address, endpoint, undefined);
    }
    const { Storage } = await import("@google-cloud/storage");
    const { apiEndpoint, authClient } = new Storage();
    // Given to the constructor, a key makes the SDK print a warning; it is about keys of unknown origin.
    if (credential !== undefined) authClient.jsonContent = await readCredential(credential, address.url);
    return new GcsStore(address, apiEndpoint, authClient);
  }

  async get(key: string, range?: ByteRange, options: GetOptions = {}): Promise<Buffer> {
    const { ifVersion } = options;
    const name = this.#nameOf(key);
    const doing = `read object ${key} in ${this.url}`;
    if (range?.length === 0) {
      if ((await this.head(key, options)) === undefined) throw new ObjectNotFoundError(this.url, key);
      return Buffer.alloc(0);
    }
    const headers: Record<string, string> = {};
    if (range !== undefined) headers.range = `bytes=${range.offset}-${range.offset + range.length - 1}`;
    // What is stored compressed comes as it is stored.
    if (this.#address.objects === "any") headers["accept-encoding"] = "gzip";
    const url = this.#objectUrl(name, { alt: "media", ...(ifVersion && { generation: ifVersion }) });
    const answer = await this.#send(doing, { method: "GET", url, headers, signal: options.signal }, (request) =>
      download({ ...request, memory: options.memory }),
    );
    const { status, body } = answer;
    const version = answer.headers["x-goog-generation"] ?? ifVersion;
    if (ifVersion !== undefined && (status === 404 || version !== ifVersion)) throw changed(doing);
    if (status === 200 || status === 206) {
      if (range === undefined || isWhole(range, answer)) checkDownload(answer, doing);
      // A server that knows no ranges sends everything.
      return status === 200 && range !== undefined ? body.subarray(range.offset, range.offset + range.length) : body;
    }
    if (status === 416) return Buffer.alloc(0);
    if (status !== 404) throw this.#failure(doing, answer);
    await this.#checkBucket(doing, options);
    throw new ObjectNotFoundError(this.url, key);
  }

  async put(key: string, body: ObjectBody, options: PutOptions = {}): Promise<boolean> {
    const name = this.#nameOf(key);
    const doing = `store object ${key} in ${this.url}`;
    const size = await sizeOf(body, doing);
    failPoint(doing, "put", key);
    const interrupted = this.#interrupted.get(body);
    const upload =
      interrupted ??
      (size >= RESUMABLE_SIZE
        ? new ResumableUpload({ name, body, size, checksum: await checksumOf(body, doing) })
        : new MultipartUpload({ name, body, size, checksum: await checksumOf(body, doing) }));
    if (upload instanceof ResumableUpload) this.#interrupted.set(body, upload);
    const query = options.ifAbsent === true ? "&ifGenerationMatch=0" : "";
    const url = `${this.#endpoint}/upload/storage/v1/b/${this.#address.bucket}/o?name=${encodeURIComponent(name)}${query}`;
    const answer = await upload.run(url, (request) => this.#send(doing, { ...request, signal: options.signal }));
    if (answer.status === 412 && options.ifAbsent === true) {
      this.#interrupted.delete(body);
      return false;
    }
    if (answer.status === 404) {
      await this.#checkBucket(doing, options);
      throw new UnavailableError(`cannot ${doing}: the store has forgotten the upload`);
    }
    if (answer.status !== 200 && answer.status !== 201) throw this.#failure(doing, answer);
    this.#interrupted.delete(body);
    await this.#checkUpload(answer, upload.checksum, size, doing);
    failPoint(doing, "put", key, "done");
    return true;
  }

  async head(key: string, options: RequestOptions = {}): Promise<ObjectInfo | undefined> {
    const doing = `look up object ${key} in ${this.url}`;
    const url = this.#objectUrl(this.#nameOf(key), { fields: this.#fields("size") });
    const answer = await this.#send(doing, { method: "GET", url, headers: {}, signal: options.signal });
    if (answer.status === 404) {
      await this.#checkBucket(doing, options);
      return undefined;
    }
    if (answer.status !== 200) throw this.#failure(doing, answer);
    return this.#info(key, parse<Resource>(answer, doing));
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ObjectInfo[]> {
    const { prefix: before, objects } = this.#address;
    const doing = `list objects${prefix === "" ? "" : ` below ${prefix}`} in ${this.url}`;
    // The offset is inclusive, and no character of a key of ours sorts before "!".
    const beyond = objects === "own" ? "!" : "";
    const page: ObjectInfo[] = [];
    let pageToken: string | undefined;
    // Things in the bucket that are no objects of ours may take up whole pages.
    do {
      const url = this.#url("o", {
        prefix: before + prefix,
        maxResults: String(options.limit ?? DEFAULT_PAGE),
        fields: `items(${this.#fields("name,size")}),nextPageToken`,
        ...(options.after === undefined ? {} : { startOffset: before + options.after + beyond }),
        ...(pageToken === undefined ? {} : { pageToken }),
      });
      const answer = await this.#send(doing, { method: "GET", url, headers: {}, signal: options.signal });
      if (answer.status !== 200) throw this.#failure(doing, answer);
      const { items = [], nextPageToken } = parse<Listing>(answer, doing);
      for (const item of items) {
        const key = item.name.slice(before.length);
        if (key !== options.after && (objects === "any" || isKey(key))) page.push(this.#info(key, item));
      }
      pageToken = nextPageToken;
    } while (page.length === 0 && pageToken !== undefined);
    return page;
  }

  async delete(key: string, options: RequestOptions = {}): Promise<void> {
    const doing = `delete object ${key} in ${this.url}`;
    const url = this.#objectUrl(this.#nameOf(key), {});
    failPoint(doing, "delete", key);
    const answer = await this.#send(doing, { method: "DELETE", url, headers: {}, signal: options.signal });
    if (answer.status === 404) await this.#checkBucket(doing, options);
    else if (answer.status !== 200 && answer.status !== 204) throw this.#failure(doing, answer);
  }

  #fields(fields: string): string {
    return this.#address.objects === "own" ? fields : `${fields},generation,timeCreated,crc32c`;
  }

  #info(key: string, { size, generation, timeCreated, crc32c: value }: Resource): ObjectInfo {
    if (this.#address.objects === "own") return { key, size: Number(size) };
    const checksum = value === undefined ? {} : { checksum: { kind: "crc32c" as const, value } };
    return { key, size: Number(size), state: { version: generation, modified: Date.parse(timeCreated), ...checksum } };
  }

  #url(path: string, query: Record<string, string>): URL {
    return new URL(`${this.#endpoint}/storage/v1/b/${this.#address.bucket}/${path}?${new URLSearchParams(query)}`);
  }

  #objectUrl(name: string, query: Record<string, string>): URL {
    return this.#url(`o/${encodeURIComponent(name)}`, query);
  }

  #nameOf(key: string): string {
    if (this.#address.objects === "own") checkKey(key, this.url);
    return this.#address.prefix + key;
  }

  async #send(
    doing: string,
    request: HttpRequest,
    by: (request: HttpRequest) => Promise<Answer> = send,
  ): Promise<Answer> {
    const headers = this.#auth === undefined ? {} : await this.#authorization(this.#auth, doing);
    try {
      return await by({ ...request, headers: { ...headers, ...request.headers } });
    } catch (error) {
      if (request.signal?.aborted === true) throw error;
      throw remoteError(doing, networkFailure(error), HINT);
    }
  }

  async #authorization(auth: GoogleAuth, doing: string): Promise<Record<string, string>> {
    try {
      return Object.fromEntries(await auth.getRequestHeaders());
    } catch (error) {
      const failure = networkFailure(error);
      // Credentials that are missing or none fail without a network or a service having its say.
      if (failure.status !== undefined || failure.code !== undefined) throw remoteError(doing, failure, HINT);
      throw new DatamonError("denied", `cannot ${doing}: ${failure.message}`, { hint: HINT, cause: error });
    }
  }

  /** Throws where it is the bucket that is missing: answers about objects do not tell. */
  async #checkBucket(doing: string, { signal }: RequestOptions): Promise<void> {
    if (this.#bucketKnown) return;
    const url = this.#url("o", { maxResults: "1", fields: "items(name)" });
    const answer = await this.#send(doing, { method: "GET", url, headers: {}, signal });
    if (answer.status !== 200) throw this.#failure(doing, answer);
    this.#bucketKnown = true;
  }

  /** Both sides have a checksum of an upload; an object that is not what was sent is taken back. */
  async #checkUpload(answer: Answer, checksum: string, size: number, doing: string): Promise<void> {
    const made = parse<{ crc32c: string; size: string; generation: string; name: string }>(answer, doing);
    if (made.crc32c === checksum && Number(made.size) === size) return;
    const url = this.#objectUrl(made.name, { ifGenerationMatch: made.generation });
    await this.#send(doing, { method: "DELETE", url, headers: {} });
    throw new UnavailableError(`cannot ${doing}: what arrived is not what was sent`);
  }

  #failure(doing: string, { status, body }: Answer): DatamonError {
    if (status === 404) {
      return new DatamonError("not-found", `cannot ${doing}: there is no bucket ${this.#address.bucket}`, {
        hint: "Check the name in the configuration, or create the bucket.",
      });
    }
    const { code, message } = detailsOf(body);
    const damaged = status === 400 && /crc32c/i.test(message);
    return remoteError(doing, { status, code: damaged ? "BadDigest" : code, message }, HINT);
  }
}

interface Resource {
  readonly name: string;
  readonly size: string;
  readonly generation: string;
  readonly timeCreated: string;
  readonly crc32c?: string;
}

interface Listing {
  readonly items?: readonly Resource[];
  readonly nextPageToken?: string;
}

/** An answer in JSON, which came without a checksum. */
function parse<T>({ body }: Answer, doing: string): T {
  try {
    return JSON.parse(body.toString()) as T;
  } catch (error) {
    throw new UnavailableError(`cannot ${doing}: the answer makes no sense`, { cause: error });
  }
}

async function checksumOf(body: ObjectBody, doing: string): Promise<string> {
  let checksum = 0;
  try {
    for await (const piece of piecesOf(body)) checksum = crc32c(piece, checksum);
  } catch (error) {
    throw ioError(doing, error);
  }
  return encodeChecksum(checksum);
}

/** The checksum that comes with an object is of the whole of it. */
function checkDownload({ headers, body }: Answer, doing: string): void {
  const expected = /(?:^|,)\s*crc32c=([^,]+)/.exec(String(headers["x-goog-hash"] ?? ""))?.[1];
  if (expected === undefined || encodeChecksum(crc32c(body)) === expected) return;
  throw new UnavailableError(`cannot ${doing}: what arrived does not have the checksum that the store has for it`);
}

/** True for an answer to a small range that turned out to be everything. */
function isWhole({ offset, length }: ByteRange, { status, headers, body }: Answer): boolean {
  if (offset !== 0 || length > CHECKED_SIZE) return false;
  return status === 200 || headers["content-range"]?.endsWith(`/${body.length}`) === true;
}

function detailsOf(body: Buffer): { code: string | undefined; message: string } {
  const text = body.toString();
  try {
    const { error } = JSON.parse(text) as { error: { message: string; errors?: { reason?: string }[] } };
    return { code: error.errors?.[0]?.reason, message: error.message };
  } catch {
    return { code: undefined, message: text.slice(0, 200) || "no reason was given" };
  }
}

/** What a key file says. */
async function readCredential(file: string, url: string): Promise<GoogleAuth["jsonContent"]> {
  try {
    return JSON.parse(await readFile(file, "utf8")) as GoogleAuth["jsonContent"];
  } catch (error) {
    const why = error instanceof SyntaxError ? "it is not JSON" : (error as Error).message;
    throw new DatamonError("denied", `cannot read the credential file ${file} for ${url}: ${why}`, {
      hint: HINT,
      cause: error,
    });
  }
}
