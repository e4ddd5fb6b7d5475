import type { Bucket, Storage, StorageOptions } from "@google-cloud/storage";
import { DatamonError, ioError, isErrno, ObjectNotFoundError, UnavailableError } from "../errors.ts";
import type {
  ByteRange,
  ListOptions,
  ObjectBody,
  ObjectInfo,
  ObjectStore,
  PutOptions,
  RequestOptions,
} from "../store.ts";
import type { BucketAddress } from "./address.ts";
import { piecesOf, sizeOf } from "./body.ts";
import { crc32c, encodeCrc32c } from "./crc32c.ts";
import { failPoint, remoteError, STALL_MS } from "./failure.ts";
import { type Answer, type HttpRequest, send } from "./http.ts";
import { checkKey, isKey } from "./keys.ts";
import { MultipartUpload } from "./multipart.ts";
import { RESUMABLE_SIZE, ResumableUpload } from "./resumable.ts";

const DEFAULT_PAGE = 1000;
const HINT =
  "Give an account access to the bucket: 'gcloud auth application-default login', or a key file as 'credential' in the configuration.";

/**
 * Objects in a Google Cloud Storage bucket. The SDK brings credentials and everything about objects but
 * their bytes. These go through our own requests: the SDK's streams can be neither ended early nor
 * watched for stalls, send bodies without their length, and checksum four times slower.
 */
export class GcsStore implements ObjectStore {
  readonly url: string;
  readonly #address: BucketAddress;
  readonly #storage: Storage;
  readonly #bucket: Bucket;
  readonly #emulated: boolean;
  /** Uploads that a failure interrupted, to go on with where the same body is put again. */
  readonly #interrupted = new WeakMap<object, ResumableUpload>();
  #bucketKnown = false;

  private constructor(address: BucketAddress, storage: Storage, emulated: boolean) {
    this.url = address.url;
    this.#address = address;
    this.#storage = storage;
    this.#bucket = storage.bucket(address.bucket);
    this.#emulated = emulated;
  }

  /**
   * Opens the store at `gs://bucket/prefix`. The bucket has to be there; nothing is asked of it yet.
   *
   * @param credential a key file; without it, application default credentials
   */
  static async open(address: BucketAddress, credential: string | undefined): Promise<GcsStore> {
    const { Storage } = await import("@google-cloud/storage");
    const options: StorageOptions = { retryOptions: { autoRetry: false }, timeout: STALL_MS };
    if (credential !== undefined) options.keyFilename = credential;
    const emulator = process.env.STORAGE_EMULATOR_HOST;
    if (emulator === undefined || emulator === "") return new GcsStore(address, new Storage(options), false);
    options.apiEndpoint = `${/^https?:\/\//.test(emulator) ? "" : "http://"}${emulator.replace(/\/+$/, "")}`;
    const storage = new Storage(options);
    // From the variable the SDK takes the address without the path of the API.
    storage.baseUrl = `${storage.apiEndpoint}/storage/v1`;
    return new GcsStore(address, storage, true);
  }

  async get(key: string, range?: ByteRange, options: RequestOptions = {}): Promise<Buffer> {
    const name = this.#nameOf(key);
    const doing = `read object ${key} in ${this.url}`;
    if (range?.length === 0) {
      if ((await this.head(key)) === undefined) throw new ObjectNotFoundError(this.url, key);
      return Buffer.alloc(0);
    }
    const headers: Record<string, string> = {};
    if (range !== undefined) headers.range = `bytes=${range.offset}-${range.offset + range.length - 1}`;
    const { apiEndpoint } = this.#storage;
    const url = new URL(`${apiEndpoint}/storage/v1/b/${this.#address.bucket}/o/${encodeURIComponent(name)}?alt=media`);
    const answer = await this.#send(doing, { method: "GET", url, headers, signal: options.signal });
    const { status, body } = answer;
    if (status === 200 || status === 206) {
      checkDownload(answer, doing);
      // A server that knows no ranges sends everything.
      return status === 200 && range !== undefined ? body.subarray(range.offset, range.offset + range.length) : body;
    }
    if (status === 416) return Buffer.alloc(0);
    if (status !== 404) throw this.#failure(doing, answer);
    await this.#checkBucket(doing);
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
    const url = `${this.#storage.apiEndpoint}/upload/storage/v1/b/${this.#address.bucket}/o?name=${encodeURIComponent(name)}${query}`;
    const answer = await upload.run(url, (request) => this.#send(doing, { ...request, signal: options.signal }));
    if (answer.status === 412 && options.ifAbsent === true) {
      this.#interrupted.delete(body);
      return false;
    }
    if (answer.status === 404) {
      await this.#checkBucket(doing);
      throw new UnavailableError(`cannot ${doing}: the store has forgotten the upload`);
    }
    if (answer.status !== 200 && answer.status !== 201) throw this.#failure(doing, answer);
    this.#interrupted.delete(body);
    await this.#checkUpload(answer, upload.checksum, size, doing);
    failPoint(doing, "put", key, "done");
    return true;
  }

  async head(key: string): Promise<ObjectInfo | undefined> {
    const doing = `look up object ${key} in ${this.url}`;
    try {
      const [metadata] = await this.#bucket.file(this.#nameOf(key)).getMetadata({ fields: "size" });
      this.#bucketKnown = true;
      return { key, size: Number(metadata.size) };
    } catch (error) {
      if (statusOf(error) !== 404) throw this.#sdkFailure(doing, error);
      await this.#checkBucket(doing);
      return undefined;
    }
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ObjectInfo[]> {
    const { prefix: before } = this.#address;
    const doing = `list objects below ${prefix} in ${this.url}`;
    const page: ObjectInfo[] = [];
    let pageToken: string | undefined;
    // Things in the bucket that are no objects of ours may take up whole pages.
    do {
      options.signal?.throwIfAborted();
      const query = {
        autoPaginate: false,
        prefix: before + prefix,
        maxResults: options.limit ?? DEFAULT_PAGE,
        fields: "items(name,size),nextPageToken",
        // The offset is inclusive, and no character of a key sorts before "!".
        ...(options.after === undefined ? {} : { startOffset: `${before}${options.after}!` }),
        ...(pageToken === undefined ? {} : { pageToken }),
      };
      try {
        const [files, next] = await this.#bucket.getFiles(query);
        this.#bucketKnown = true;
        // Where only some fields are asked for, the SDK passes on what the service sent.
        for (const { name, size } of files as unknown as { name: string; size: string }[]) {
          const key = name.slice(before.length);
          if (isKey(key)) page.push({ key, size: Number(size) });
        }
        pageToken = (next as { pageToken?: string } | null)?.pageToken;
      } catch (error) {
        throw this.#sdkFailure(doing, error);
      }
    } while (page.length === 0 && pageToken !== undefined);
    return page;
  }

  async delete(key: string): Promise<void> {
    const doing = `delete object ${key} in ${this.url}`;
    failPoint(doing, "delete", key);
    try {
      await this.#bucket.file(this.#nameOf(key)).delete();
    } catch (error) {
      if (statusOf(error) !== 404) throw this.#sdkFailure(doing, error);
      await this.#checkBucket(doing);
    }
  }

  #nameOf(key: string): string {
    checkKey(key, this.url);
    return this.#address.prefix + key;
  }

  async #send(doing: string, request: HttpRequest): Promise<Answer> {
    const headers = this.#emulated ? {} : await this.#credentials(doing);
    try {
      return await send({ ...request, headers: { ...headers, ...request.headers } });
    } catch (error) {
      if (error instanceof DatamonError || request.signal?.aborted === true) throw error;
      throw this.#failed(doing, undefined, (error as NodeJS.ErrnoException).code, messageOf(error), error);
    }
  }

  async #credentials(doing: string): Promise<Record<string, string>> {
    try {
      return Object.fromEntries(await this.#storage.authClient.getRequestHeaders());
    } catch (error) {
      throw this.#sdkFailure(doing, error);
    }
  }

  /** Throws where it is the bucket that is missing: answers about objects do not tell. */
  async #checkBucket(doing: string): Promise<void> {
    if (this.#bucketKnown) return;
    try {
      await this.#bucket.getFiles({ autoPaginate: false, maxResults: 1, fields: "items(name)" });
    } catch (error) {
      throw this.#sdkFailure(doing, error);
    }
    this.#bucketKnown = true;
  }

  /** Both sides have a checksum of an upload; an object that is not what was sent is taken back. */
  async #checkUpload(answer: Answer, checksum: string, size: number, doing: string): Promise<void> {
    const made = JSON.parse(answer.body.toString()) as {
      crc32c?: string;
      size?: string;
      generation?: string;
      name?: string;
    };
    if (made.crc32c === checksum && Number(made.size) === size) return;
    const file = this.#bucket.file(String(made.name), { generation: String(made.generation) });
    await file.delete({ ifGenerationMatch: String(made.generation) }).catch(() => undefined);
    throw new UnavailableError(`cannot ${doing}: what arrived is not what was sent`);
  }

  #failure(doing: string, answer: Answer): DatamonError {
    const { status, body } = answer;
    const { code, message } = detailsOf(body);
    return this.#failed(doing, status, code, message, undefined);
  }

  #sdkFailure(doing: string, error: unknown): DatamonError {
    if (error instanceof DatamonError) return error;
    const { code, errors } = error as { code?: unknown; errors?: { reason?: string }[] };
    const status = statusOf(error);
    if (status === undefined && isAboutCredentials(error)) {
      return new DatamonError("denied", `cannot ${doing}: ${messageOf(error)}`, { hint: HINT, cause: error });
    }
    const name = errors?.[0]?.reason ?? (typeof code === "string" ? code : undefined);
    return this.#failed(doing, status, name, messageOf(error), error);
  }

  #failed(
    doing: string,
    status: number | undefined,
    code: string | undefined,
    message: string,
    cause: unknown,
  ): DatamonError {
    if (status === 404) {
      return new DatamonError("not-found", `cannot ${doing}: there is no bucket ${this.#address.bucket}`, {
        hint: "Check the name in the configuration, or create the bucket.",
        cause,
      });
    }
    const damaged = status === 400 && /crc32c|md5/i.test(message);
    return remoteError(doing, { status, code: damaged ? "BadDigest" : code, message, cause }, HINT);
  }
}

async function checksumOf(body: ObjectBody, doing: string): Promise<string> {
  let checksum = 0;
  try {
    for await (const piece of piecesOf(body)) checksum = crc32c(piece, checksum);
  } catch (error) {
    throw ioError(doing, error);
  }
  return encodeCrc32c(checksum);
}

/** The checksum that comes with an object is of the whole of it. */
function checkDownload({ status, headers, body }: Answer, doing: string): void {
  const expected = /(?:^|,)\s*crc32c=([^,]+)/.exec(String(headers["x-goog-hash"] ?? ""))?.[1];
  const range = /^bytes 0-(\d+)\/(\d+)$/.exec(headers["content-range"] ?? "");
  const whole = status === 200 || (range !== null && Number(range[1]) + 1 === Number(range[2]));
  if (expected === undefined || !whole || encodeCrc32c(crc32c(body)) === expected) return;
  throw new UnavailableError(`cannot ${doing}: what arrived does not have the checksum that the store has for it`);
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

function statusOf(error: unknown): number | undefined {
  const { code, status } = error as { code?: unknown; status?: unknown };
  if (typeof code === "number") return code;
  return typeof status === "number" ? status : undefined;
}

function messageOf(error: unknown): string {
  const { message, code } = error as { message?: string; code?: unknown };
  return message === undefined || message === "" ? String(code ?? error) : message;
}

/** A key file that is not there or no key file, or no credentials anywhere. */
function isAboutCredentials(error: unknown): boolean {
  return isErrno(error, "ENOENT", "EACCES") || /credential|private_key|JSON|client_email|PEM/i.test(messageOf(error));
}
