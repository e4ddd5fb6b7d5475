import { createReadStream } from "node:fs";
import { addAbortSignal, type Readable } from "node:stream";
import { crc32 } from "node:zlib";
import type { GetObjectCommandInput, HeadObjectCommandOutput, S3Client, S3ClientConfig } from "@aws-sdk/client-s3";
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
import { type BucketAddress, senseless } from "./address.ts";
import { piecesOf, sizeOf } from "./body.ts";
import { download } from "./download.ts";
import { CHECKED_SIZE, changed, failPoint, remoteError, STALL_MS } from "./failure.ts";
import { collectBody } from "./http.ts";
import { checkKey, isKey } from "./keys.ts";

type Sdk = typeof import("@aws-sdk/client-s3");

const DEFAULT_PAGE = 1000;
const CONNECT_MS = 5000;
/** Some servers know no regions; requests are signed for one nevertheless. */
const REGION_OF_OTHERS = "us-east-1";
const HINT = "Give an account access to the bucket: with AWS's usual environment and files, or a 'profile' in the URL.";

/** Objects in a bucket of Amazon S3, or of a server that speaks its protocol and heeds `If-None-Match`. */
export class S3Store implements ObjectStore {
  readonly url: string;
  readonly #address: BucketAddress;
  readonly #sdk: Sdk;
  readonly #client: S3Client;
  #bucketKnown = false;

  private constructor(address: BucketAddress, sdk: Sdk, client: S3Client) {
    this.url = address.url;
    this.#address = address;
    this.#sdk = sdk;
    this.#client = client;
  }

  /**
   * Opens the store at `s3://bucket/prefix`. The bucket has to be there; nothing is asked of it
   * yet. Parameters of the URL come before AWS's usual environment: `region`, `endpoint` (the URL of
   * another server than Amazon's), `path-style` (true or false; other servers get true) and `profile`.
   */
  static async open(address: BucketAddress): Promise<S3Store> {
    const sdk = await import("@aws-sdk/client-s3");
    return new S3Store(address, sdk, new sdk.S3Client(clientConfig(address)));
  }

  async get(key: string, range?: ByteRange, options: GetOptions = {}): Promise<Buffer> {
    const { ifVersion } = options;
    const doing = `read object ${key} in ${this.url}`;
    const object = { ...this.#object(key), ...(ifVersion && { IfMatch: ifVersion }) };
    if (range?.length === 0) {
      if ((await this.head(key, options)) === undefined) throw new ObjectNotFoundError(this.url, key);
      return Buffer.alloc(0);
    }
    try {
      // A checksum is of the whole object, and comes only where that is asked for.
      if (range === undefined || (range.offset === 0 && range.length <= CHECKED_SIZE)) {
        const bytes = await this.#read({ ...object, ChecksumMode: "ENABLED" }, range?.length, options);
        if (bytes !== undefined) return bytes;
      }
      return await this.#download(object, range!, options);
    } catch (error) {
      const { status, code } = detailsOf(error);
      if (ifVersion !== undefined && (status === 404 || status === 412)) throw changed(doing);
      if (status === 416) return Buffer.alloc(0);
      if (status !== 404 || code === "NoSuchBucket") throw this.#failure(doing, error);
      await this.#checkBucket(doing);
      throw new ObjectNotFoundError(this.url, key);
    }
  }

  /** An object's bytes; undefined, without reading them, where there are more than `most`. */
  async #read(
    input: GetObjectCommandInput,
    most: number | undefined,
    options: RequestOptions,
  ): Promise<Buffer | undefined> {
    const { Body, ContentLength } = await this.#client.send(new this.#sdk.GetObjectCommand(input), abortable(options));
    const stream = Body as Readable;
    if (options.signal !== undefined) addAbortSignal(options.signal, stream);
    if (most === undefined || (ContentLength ?? 0) <= most) return await collectBody(stream, ContentLength);
    stream.on("error", ignore).destroy();
    return undefined;
  }

  /** The same without the SDK's streams and checksums: it signs the request, and is handed the answer. */
  async #download(
    object: { Bucket: string; Key: string },
    { offset, length }: ByteRange,
    options: RequestOptions,
  ): Promise<Buffer> {
    const Range = `bytes=${offset}-${offset + length - 1}`;
    const command = new this.#sdk.GetObjectCommand({ ...object, Range });
    let bytes: Buffer = Buffer.alloc(0);
    const fetchIt = () => async (args: { request: unknown }) => {
      const { status, headers, body } = await download({ ...signed(args.request), ...options });
      const response = { statusCode: status, headers };
      const $metadata = { httpStatusCode: status };
      if (status !== 200 && status !== 206) throw Object.assign(errorIn(body), { $metadata, $response: response });
      // A server that knows no ranges sends everything.
      bytes = status === 200 ? body.subarray(offset, offset + length) : body;
      return { response, output: { $metadata } };
    };
    command.middlewareStack.add(fetchIt, { step: "deserialize", name: "download", priority: "high" });
    await this.#client.send(command, abortable(options));
    return bytes;
  }

  async put(key: string, body: ObjectBody, options: PutOptions = {}): Promise<boolean> {
    const doing = `store object ${key} in ${this.url}`;
    const object = this.#object(key);
    const ContentLength = await sizeOf(body, doing);
    failPoint(doing, "put", key);
    const ChecksumCRC32 = await checksumOf(body, doing);
    const file = "file" in body ? createReadStream(body.file) : undefined;
    // The SDK does not listen. A body that ends early is a request that stalls, and then is tried again.
    file?.on("error", ignore);
    const command = new this.#sdk.PutObjectCommand({
      ...object,
      ContentLength,
      ChecksumCRC32,
      Body: file ?? inOnePiece(body as Exclude<ObjectBody, { file: string }>),
      ...(options.ifAbsent === true ? { IfNoneMatch: "*" } : {}),
    });
    try {
      await this.#client.send(command, abortable(options));
    } catch (error) {
      const { status } = detailsOf(error);
      if (options.ifAbsent === true && status === 412) return false;
      if (options.ifAbsent !== true || status !== 409) throw this.#failure(doing, error);
      // Somebody else was putting it at the same time, which need not have come to anything.
      if ((await this.head(key, options)) !== undefined) return false;
      throw new UnavailableError(`cannot ${doing}: somebody else was storing it`, { cause: error });
    } finally {
      file?.destroy();
    }
    this.#bucketKnown = true;
    failPoint(doing, "put", key, "done");
    return true;
  }

  async head(key: string, options: RequestOptions = {}): Promise<ObjectInfo | undefined> {
    const doing = `look up object ${key} in ${this.url}`;
    const own = this.#address.objects === "own";
    const command = new this.#sdk.HeadObjectCommand({
      ...this.#object(key),
      ...(own ? {} : { ChecksumMode: "ENABLED" }),
    });
    try {
      const answer = await this.#client.send(command, abortable(options));
      this.#bucketKnown = true;
      const size = answer.ContentLength ?? 0;
      return own ? { key, size } : { key, size, state: { ...stateOf(answer), ...checksumIn(answer) } };
    } catch (error) {
      if (detailsOf(error).status !== 404) throw this.#failure(doing, error);
      await this.#checkBucket(doing);
      return undefined;
    }
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ObjectInfo[]> {
    const { bucket, prefix: before, objects } = this.#address;
    const doing = `list objects${prefix === "" ? "" : ` below ${prefix}`} in ${this.url}`;
    const page: ObjectInfo[] = [];
    let ContinuationToken: string | undefined;
    // Things in the bucket that are no objects of ours may take up whole pages.
    do {
      const command = new this.#sdk.ListObjectsV2Command({
        Bucket: bucket,
        Prefix: before + prefix,
        MaxKeys: options.limit ?? DEFAULT_PAGE,
        ...(options.after === undefined ? {} : { StartAfter: before + options.after }),
        ContinuationToken,
        // Keys may have characters that XML cannot.
        ...(objects === "any" ? { EncodingType: "url" } : {}),
      });
      try {
        const answer = await this.#client.send(command, abortable(options));
        this.#bucketKnown = true;
        const encoded = answer.EncodingType === "url";
        for (const item of answer.Contents ?? []) {
          const { Key = "", Size: size = 0 } = item;
          const key = (encoded ? decodeURIComponent(Key.replaceAll("+", " ")) : Key).slice(before.length);
          if (objects === "any") page.push({ key, size, state: stateOf(item) });
          else if (isKey(key)) page.push({ key, size });
        }
        ContinuationToken = answer.IsTruncated === true ? answer.NextContinuationToken : undefined;
      } catch (error) {
        throw this.#failure(doing, error);
      }
    } while (page.length === 0 && ContinuationToken !== undefined);
    return page;
  }

  async delete(key: string, options: RequestOptions = {}): Promise<void> {
    const doing = `delete object ${key} in ${this.url}`;
    const command = new this.#sdk.DeleteObjectCommand(this.#object(key));
    failPoint(doing, "delete", key);
    try {
      await this.#client.send(command, abortable(options));
    } catch (error) {
      const { status, code } = detailsOf(error);
      if (status !== 404 || code === "NoSuchBucket") throw this.#failure(doing, error);
    }
  }

  #object(key: string): { Bucket: string; Key: string } {
    if (this.#address.objects === "own") checkKey(key, this.url);
    return { Bucket: this.#address.bucket, Key: this.#address.prefix + key };
  }

  /** Throws where it is the bucket that is missing: answers about objects do not always tell. */
  async #checkBucket(doing: string): Promise<void> {
    if (this.#bucketKnown) return;
    try {
      await this.#client.send(new this.#sdk.ListObjectsV2Command({ Bucket: this.#address.bucket, MaxKeys: 1 }));
    } catch (error) {
      throw this.#failure(doing, error);
    }
    this.#bucketKnown = true;
  }

  #failure(doing: string, error: unknown): DatamonError {
    if (error instanceof DatamonError) return error;
    const { status, code, message } = detailsOf(error);
    if (status === 404) {
      return new DatamonError("not-found", `cannot ${doing}: there is no bucket ${this.#address.bucket}`, {
        hint: "Check the name and the endpoint in the configuration, or create the bucket.",
        cause: error,
      });
    }
    if (status === undefined && code === "CredentialsProviderError") {
      return new DatamonError("denied", `cannot ${doing}: ${message}`, { hint: HINT, cause: error });
    }
    if (status === undefined && /region is missing/i.test(message)) {
      return new DatamonError("usage", `cannot ${doing}: no region is known for ${this.url}`, {
        hint: "Add it to the URL, such as ?region=eu-central-1, or set AWS_REGION.",
        cause: error,
      });
    }
    return remoteError(doing, { status, code, message, cause: error }, HINT);
  }
}

function clientConfig({ url, parameters }: BucketAddress): S3ClientConfig {
  const [region, endpoint, profile] = ["region", "endpoint", "profile"].map((name) => parameters.get(name));
  const { AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION } = process.env;
  // An endpoint in the environment is found by the SDK itself.
  const other = endpoint !== undefined || Boolean(AWS_ENDPOINT_URL_S3 || AWS_ENDPOINT_URL);
  const pathStyle = parameters.get("path-style") ?? String(other);
  if (pathStyle !== "true" && pathStyle !== "false") throw senseless(url, "path-style is true or false");
  if (endpoint !== undefined && !/^https?:\/\/[^/]/.test(endpoint)) {
    throw senseless(url, "endpoint is a URL such as https://s3.example.org");
  }
  // Where a profile is named, it has the word.
  const usual = AWS_REGION || (profile === undefined && AWS_DEFAULT_REGION) || (other && REGION_OF_OTHERS) || undefined;
  const pool = { keepAlive: true, maxSockets: 256 };
  return {
    maxAttempts: 1,
    // Failures are told by errors; on the console they would only disturb.
    logger: { trace: ignore, debug: ignore, info: ignore, warn: ignore, error: ignore },
    forcePathStyle: pathStyle === "true",
    // Checksums are asked for where whole objects are read; older servers know none.
    responseChecksumValidation: "WHEN_REQUIRED",
    requestHandler: { connectionTimeout: CONNECT_MS, socketTimeout: STALL_MS, httpAgent: pool, httpsAgent: pool },
    ...(profile === undefined ? {} : { profile }),
    ...(endpoint === undefined ? {} : { endpoint }),
    ...((region ?? usual) === undefined ? {} : { region: region ?? usual }),
  };
}

function ignore(): void {}

function abortable({ signal }: RequestOptions): { abortSignal?: AbortSignal } {
  return signal === undefined ? {} : { abortSignal: signal };
}

async function checksumOf(body: ObjectBody, doing: string): Promise<string> {
  let checksum = 0;
  try {
    for await (const piece of piecesOf(body)) checksum = crc32(piece, checksum);
  } catch (error) {
    throw ioError(doing, error);
  }
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(checksum);
  return bytes.toString("base64");
}

/** A body as the SDK takes it: one buffer, and none over shared memory, which it refuses to hash. */
function inOnePiece(body: Uint8Array | readonly Uint8Array[]): Uint8Array {
  if (!(body instanceof Uint8Array)) return Buffer.concat(body);
  return body.buffer instanceof SharedArrayBuffer ? Buffer.from(body) : body;
}

function stateOf({ ETag = "", LastModified }: { ETag?: string; LastModified?: Date }): ObjectState {
  return { version: ETag, modified: LastModified?.getTime() ?? 0 };
}

/** The checksum of a whole object, where its answer has one: one of parts has a dash in it, or says so. */
function checksumIn(answer: HeadObjectCommandOutput): Pick<ObjectState, "checksum"> {
  const { ChecksumCRC32, ChecksumCRC32C, ChecksumType } = answer;
  if (ChecksumType === "COMPOSITE") return {};
  for (const [kind, value] of [
    ["crc32", ChecksumCRC32],
    ["crc32c", ChecksumCRC32C],
  ] as const) {
    if (value !== undefined && !value.includes("-")) return { checksum: { kind, value } };
  }
  return {};
}

interface SignedRequest {
  readonly protocol: string;
  readonly hostname: string;
  readonly port?: number;
  readonly path: string;
  readonly query?: Readonly<Record<string, string | readonly string[] | null>>;
  readonly headers: Readonly<Record<string, string>>;
}

/** Where the SDK's request goes, and the headers that it is signed with. */
function signed(request: unknown): { url: URL; headers: Readonly<Record<string, string>> } {
  const { protocol, hostname, port, path, query = {}, headers } = request as SignedRequest;
  const url = new URL(`${protocol}//${hostname}${port === undefined ? "" : `:${port}`}${path}`);
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) url.searchParams.append(name, one ?? "");
  }
  return { url, headers };
}

/** The error that an answer tells of, in XML, under the name that the service gives it. */
function errorIn(body: Buffer): Error {
  const text = body.toString("utf8");
  const [name, message] = ["Code", "Message"].map((tag) => new RegExp(`<${tag}>([^<]*)</${tag}>`).exec(text)?.[1]);
  return Object.assign(new Error(message ?? ""), { name: name ?? "UnknownError" });
}

function detailsOf(error: unknown): { status: number | undefined; code: string | undefined; message: string } {
  const { name, message, code, $metadata, $response } = error as {
    name?: string;
    message?: string;
    code?: string;
    $metadata?: { httpStatusCode?: number };
    $response?: { statusCode?: number };
  };
  const kind = name === "Error" ? code : name;
  return {
    status: $metadata?.httpStatusCode ?? $response?.statusCode,
    code: kind,
    message: message === undefined || message === "" || message === "UnknownError" ? String(kind ?? error) : message,
  };
}
