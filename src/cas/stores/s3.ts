import { createHash } from "node:crypto";
import { STATUS_CODES } from "node:http";
import { crc32 } from "node:zlib";
import { DatamonError, ioError, ObjectNotFoundError, UnavailableError } from "../errors.ts";
import type {
  ByteRange,
  GetOptions,
  ListOptions,
  ObjectBody,
  ObjectInfo,
  ObjectState,
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
import { type Access, accessTo, type Settings, settingsOf } from "./s3-access.ts";
import { type Listing, readError, readListing } from "./s3-answers.ts";
import { EMPTY_PAYLOAD, encodeUri, UNSIGNED_PAYLOAD } from "./sigv4.ts";

const DEFAULT_PAGE = 1000;
/** Before a body of this many bytes the server is asked whether it wants it, as the SDK does. */
const ASKED_SIZE = 2 * 1024 * 1024;
/** How far a clock may be off, in milliseconds; the service says so in its API reference. */
const SKEW_MS = 15 * 60_000;
const HINT = "Give an account access to the bucket: with AWS's usual environment and files, or a 'profile' in the URL.";

/**
 * Objects in a bucket of Amazon S3, or of a server that speaks its protocol and heeds `If-None-Match`. The
 * SDK finds the endpoint and the credentials where the environment does not say both. The requests are our
 * own: the SDK's take half a millisecond of processor time each, and copy and hash bodies.
 */
export class S3Store implements ObjectStore {
  readonly url: string;
  readonly #address: BucketAddress;
  readonly #settings: Settings;
  #access: Promise<Access> | undefined;
  #bucketKnown = false;

  private constructor(address: BucketAddress, settings: Settings) {
    this.url = address.url;
    this.#address = address;
    this.#settings = settings;
  }

  /**
   * Opens the store at `s3://bucket/prefix`. The bucket has to be there; nothing is asked of it
   * yet. Parameters of the URL come before AWS's usual environment: `region`, `endpoint` (the URL of
   * another server than Amazon's), `path-style` (true or false; other servers get true) and `profile`.
   */
  static async open(address: BucketAddress): Promise<S3Store> {
    return new S3Store(address, settingsOf(address));
  }

  async get(key: string, range?: ByteRange, options: GetOptions = {}): Promise<Buffer> {
    const { ifVersion, memory } = options;
    const doing = `read object ${key} in ${this.url}`;
    if (range?.length === 0) {
      if ((await this.head(key, options)) === undefined) throw new ObjectNotFoundError(this.url, key);
      return Buffer.alloc(0);
    }
    const asIs: Record<string, string> = ifVersion === undefined ? {} : { "if-match": ifVersion };
    const ask = (headers: Record<string, string>, most?: number) =>
      this.#send(doing, { method: "GET", key, headers: { ...asIs, ...headers }, signal: options.signal }, (request) =>
        download({ ...request, memory, most }),
      );
    // A checksum is of the whole object, and comes only where that is asked for.
    const whole = range === undefined || (range.offset === 0 && range.length <= CHECKED_SIZE);
    let answer = whole ? await ask({ "x-amz-checksum-mode": "ENABLED" }, range?.length) : undefined;
    if (answer === undefined || wasTooLong(answer)) {
      answer = await ask({ range: `bytes=${range!.offset}-${range!.offset + range!.length - 1}` });
    } else if (answer.status === 200 && !isSound(answer)) {
      memory?.give(answer.body);
      throw new UnavailableError(`cannot ${doing}: what arrived does not have the checksum that the store has for it`);
    }
    const { status, body } = answer;
    // A server that knows no ranges sends everything.
    if (status === 200) return range === undefined ? body : body.subarray(range.offset, range.offset + range.length);
    if (status === 206) return body;
    if (ifVersion !== undefined && (status === 404 || status === 412)) throw changed(doing);
    if (status === 416) return Buffer.alloc(0);
    if (status !== 404 || readError(body).code === "NoSuchBucket") throw await this.#failure(doing, answer);
    await this.#checkBucket(doing, options);
    throw new ObjectNotFoundError(this.url, key);
  }

  async put(key: string, body: ObjectBody, options: PutOptions = {}): Promise<boolean> {
    this.#checkKey(key);
    const { ifAbsent, signal } = options;
    const doing = `store object ${key} in ${this.url}`;
    const size = await sizeOf(body, doing);
    failPoint(doing, "put", key);
    const { signsBodies } = await this.#reach(doing);
    const { checksum, payload } = await digest(body, signsBodies, doing);
    const headers = {
      "content-type": "application/octet-stream",
      "content-length": size,
      "x-amz-checksum-crc32": checksum,
      ...(ifAbsent === true ? { "if-none-match": "*" } : {}),
    };
    // A file that has grown meanwhile would run into the next request.
    const pieces = body instanceof Uint8Array ? [body] : "file" in body ? piecesOf(body, 0, size) : body;
    const answer = await this.#send(doing, { method: "PUT", key, headers, payload, body: pieces, signal });
    if (ifAbsent === true && answer.status === 412) return false;
    if (ifAbsent === true && answer.status === 409) {
      // Somebody else was putting it at the same time, which need not have come to anything.
      if ((await this.head(key, options)) !== undefined) return false;
      throw new UnavailableError(`cannot ${doing}: somebody else was storing it`);
    }
    if (answer.status !== 200) throw await this.#failure(doing, answer);
    this.#bucketKnown = true;
    failPoint(doing, "put", key, "done");
    return true;
  }

  async head(key: string, options: RequestOptions = {}): Promise<ObjectInfo | undefined> {
    const doing = `look up object ${key} in ${this.url}`;
    const own = this.#address.objects === "own";
    const asked: Record<string, string> = own ? {} : { "x-amz-checksum-mode": "ENABLED" };
    const answer = await this.#send(doing, { method: "HEAD", key, headers: asked, signal: options.signal });
    const { status, headers } = answer;
    if (status === 404) {
      await this.#checkBucket(doing, options);
      return undefined;
    }
    if (status !== 200) throw await this.#failure(doing, answer);
    this.#bucketKnown = true;
    const size = Number(headers["content-length"] ?? 0);
    if (own) return { key, size };
    const checksum = checksumIn(answer);
    const modified = Date.parse(headers["last-modified"] ?? "") || 0;
    return { key, size, state: { version: headers.etag ?? "", modified, ...(checksum && { checksum }) } };
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ObjectInfo[]> {
    const { prefix: before, objects } = this.#address;
    const doing = `list objects${prefix === "" ? "" : ` below ${prefix}`} in ${this.url}`;
    const page: ObjectInfo[] = [];
    let next: string | undefined;
    // Things in the bucket that are no objects of ours may take up whole pages.
    do {
      const listing = await this.#list(doing, options, {
        prefix: before + prefix,
        "max-keys": String(options.limit ?? DEFAULT_PAGE),
        ...(options.after === undefined ? {} : { "start-after": before + options.after }),
        ...(next === undefined ? {} : { "continuation-token": next }),
        // Keys may have characters that XML cannot.
        ...(objects === "any" ? { "encoding-type": "url" } : {}),
      });
      for (const { key: name, size, etag: version, modified } of listing.objects) {
        const key = name.slice(before.length);
        if (objects === "any") page.push({ key, size, state: { version, modified } });
        else if (isKey(key)) page.push({ key, size });
      }
      next = listing.next;
    } while (page.length === 0 && next !== undefined);
    return page;
  }

  async delete(key: string, options: RequestOptions = {}): Promise<void> {
    this.#checkKey(key);
    const doing = `delete object ${key} in ${this.url}`;
    failPoint(doing, "delete", key);
    const answer = await this.#send(doing, { method: "DELETE", key, headers: {}, signal: options.signal });
    const { status, body } = answer;
    if (status === 200 || status === 204) return;
    if (status !== 404 || readError(body).code === "NoSuchBucket") throw await this.#failure(doing, answer);
  }

  async #list(doing: string, { signal }: RequestOptions, query: Record<string, string>): Promise<Listing> {
    const answer = await this.#send(doing, {
      method: "GET",
      query: { "list-type": "2", ...query },
      headers: {},
      signal,
    });
    if (answer.status !== 200) throw await this.#failure(doing, answer);
    this.#bucketKnown = true;
    try {
      return readListing(answer.body);
    } catch (error) {
      throw new UnavailableError(`cannot ${doing}: the answer makes no sense: ${(error as Error).message}`);
    }
  }

  /** Throws where it is the bucket that is missing: answers about objects do not always tell. */
  async #checkBucket(doing: string, options: RequestOptions): Promise<void> {
    if (!this.#bucketKnown) await this.#list(doing, options, { "max-keys": "1" });
  }

  #checkKey(key: string): void {
    if (this.#address.objects === "own") checkKey(key, this.url);
    // No URL can have them: they would name another object.
    else if (/(^|\/)\.\.?(\/|$)/.test(this.#address.prefix + key)) {
      throw new DatamonError("unsupported", `${JSON.stringify(key)} in ${this.url} cannot be asked for`);
    }
  }

  async #send(
    doing: string,
    { key, query = {}, payload = EMPTY_PAYLOAD, ...request }: S3Request,
    by: (request: HttpRequest) => Promise<Answer> = send,
  ): Promise<Answer> {
    if (key !== undefined) this.#checkKey(key);
    const access = await this.#reach(doing);
    const name = key === undefined ? "" : encodeUri(this.#address.prefix + key).replaceAll("%2F", "/");
    const parameters = Object.entries(query).map((pair) => pair.map(encodeUri).join("="));
    const url = new URL(`${access.base}${name}${parameters.length === 0 ? "" : "?"}${parameters.join("&")}`);
    let headers: Record<string, string | number>;
    try {
      headers = await access.sign({ ...request, url, payload });
    } catch (error) {
      throw this.#accessFailure(doing, error);
    }
    // Proxies may take it away, so it is not signed.
    if (Number(headers["content-length"]) >= ASKED_SIZE) headers.expect = "100-continue";
    try {
      return await by({ ...request, url, headers });
    } catch (error) {
      if (request.signal?.aborted === true) throw error;
      throw remoteError(doing, networkFailure(error), HINT);
    }
  }

  async #reach(doing: string): Promise<Access> {
    this.#access ??= accessTo(this.#settings);
    try {
      return await this.#access;
    } catch (error) {
      // What was missing may be there the next time.
      this.#access = undefined;
      throw this.#accessFailure(doing, error);
    }
  }

  #accessFailure(doing: string, error: unknown): DatamonError {
    const { name, message, $metadata } = error as Error & { $metadata?: { httpStatusCode?: number } };
    if (name === "CredentialsProviderError") {
      return new DatamonError("denied", `cannot ${doing}: ${message}`, { hint: HINT, cause: error });
    }
    if (/region is missing/i.test(message)) {
      return new DatamonError("usage", `cannot ${doing}: no region is known for ${this.url}`, {
        hint: "Add it to the URL, such as ?region=eu-central-1, or set AWS_REGION.",
        cause: error,
      });
    }
    return remoteError(doing, { ...networkFailure(error), status: $metadata?.httpStatusCode }, HINT);
  }

  async #failure(doing: string, { status, headers, body }: Answer): Promise<DatamonError> {
    const { bucket } = this.#address;
    if (status === 404) {
      return new DatamonError("not-found", `cannot ${doing}: there is no bucket ${bucket}`, {
        hint: "Check the name and the endpoint in the configuration, or create the bucket.",
      });
    }
    const region = headers["x-amz-bucket-region"];
    if ((status === 301 || status === 400) && region !== undefined && region !== (await this.#reach(doing)).region) {
      return new DatamonError("usage", `cannot ${doing}: the bucket ${bucket} is in the region ${region}`, {
        hint: `Add it to the URL: ?region=${region}`,
      });
    }
    if (status === 403 && Math.abs(Date.parse(headers.date ?? "") - Date.now()) > SKEW_MS) {
      return new DatamonError("denied", `cannot ${doing}: this machine's clock differs from the store's`, {
        hint: `Set the clock: to the store it is ${headers.date}.`,
      });
    }
    const { code, message = STATUS_CODES[status] ?? "no reason was given" } = readError(body);
    return remoteError(doing, { status, code, message }, HINT);
  }
}

/** A request about an object, or about the bucket. */
interface S3Request extends Pick<HttpRequest, "method" | "headers" | "body" | "signal"> {
  readonly key?: string;
  readonly query?: Readonly<Record<string, string>>;
  /** As `Unsigned` has it; of no body by default. */
  readonly payload?: string;
}

/** The checksum of a body, and its SHA-256 where that is to be signed. */
async function digest(
  body: ObjectBody,
  signed: boolean,
  doing: string,
): Promise<{ checksum: string; payload: string }> {
  const hash = signed ? createHash("sha256") : undefined;
  let checksum = 0;
  try {
    for await (const piece of piecesOf(body)) {
      checksum = crc32(piece, checksum);
      hash?.update(piece);
    }
  } catch (error) {
    throw ioError(doing, error);
  }
  return { checksum: encodeChecksum(checksum), payload: hash?.digest("hex") ?? UNSIGNED_PAYLOAD };
}

/** True for an answer that has none of its body, because there is more of it than was wanted. */
function wasTooLong({ status, headers, body }: Answer): boolean {
  return status === 200 && body.length === 0 && Number(headers["content-length"] ?? 0) > 0;
}

/** The checksum of a whole object, where its answer has one: one of parts has a dash in it, or says so. */
function checksumIn({ headers }: Answer): ObjectState["checksum"] {
  if (headers["x-amz-checksum-type"] === "COMPOSITE") return undefined;
  for (const kind of ["crc32", "crc32c"] as const) {
    const value = headers[`x-amz-checksum-${kind}`];
    if (typeof value === "string" && !value.includes("-")) return { kind, value };
  }
  return undefined;
}

/** False for an object that did not arrive with its checksum. */
function isSound(answer: Answer): boolean {
  const expected = checksumIn(answer);
  if (expected === undefined) return true;
  return encodeChecksum(expected.kind === "crc32" ? crc32(answer.body) : crc32c(answer.body)) === expected.value;
}
