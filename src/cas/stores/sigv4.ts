/**
 * AWS Signature Version 4 in the header of a request, as "Authenticating Requests: Using the Authorization
 * Header" in the API reference of Amazon S3 has it. The SDK's own signer takes twice the time for each request,
 * and 20 milliseconds to load.
 */

import { createHmac, hash } from "node:crypto";

/** Who signs. */
export interface Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string | undefined;
}

/** What is signed of a request. */
export interface Unsigned {
  readonly method: string;
  /** Its path has to be encoded as `encodeUri` does it. */
  readonly url: URL;
  /** By names in lower case. */
  readonly headers: Readonly<Record<string, string | number>>;
  /** The body's SHA-256 in hex, or `UNSIGNED_PAYLOAD`. */
  readonly payload: string;
}

/** Stands for a body that the signature does not cover. */
export const UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD";
/** The SHA-256 of no bytes. */
export const EMPTY_PAYLOAD = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const ALGORITHM = "AWS4-HMAC-SHA256";

/** Signs requests to one service in one region. */
export class Signer {
  readonly #place: string;
  /** The key of the last request, which is good for a day. */
  #key: { readonly secret: string; readonly day: string; readonly bytes: Buffer } | undefined;

  constructor(region: string, service: string) {
    this.#place = `${region}/${service}/aws4_request`;
  }

  /** The request's headers and those that the signature needs and is in. */
  sign(request: Unsigned, { accessKeyId, secretAccessKey, sessionToken }: Credentials, now = new Date()) {
    const { method, url, payload } = request;
    const time = now.toISOString().replace(/[-:]|\.\d+/g, "");
    const day = time.slice(0, 8);
    const headers: Record<string, string | number> = {
      ...request.headers,
      host: url.host,
      "x-amz-content-sha256": payload,
      "x-amz-date": time,
    };
    if (sessionToken !== undefined) headers["x-amz-security-token"] = sessionToken;
    const names = Object.keys(headers).sort();
    const lines = names.map((name) => `${name}:${String(headers[name]).trim().replace(/ +/g, " ")}\n`).join("");
    const signed = names.join(";");
    const canonical = `${method}\n${url.pathname}\n${queryOf(url)}\n${lines}\n${signed}\n${payload}`;
    const scope = `${day}/${this.#place}`;
    const text = `${ALGORITHM}\n${time}\n${scope}\n${hash("sha256", canonical)}`;
    const signature = createHmac("sha256", this.#keyOf(secretAccessKey, day)).update(text).digest("hex");
    headers.authorization = `${ALGORITHM} Credential=${accessKeyId}/${scope}, SignedHeaders=${signed}, Signature=${signature}`;
    return headers;
  }

  #keyOf(secret: string, day: string): Buffer {
    if (this.#key?.secret !== secret || this.#key.day !== day) {
      let bytes = Buffer.from(`AWS4${secret}`);
      for (const part of [day, ...this.#place.split("/")]) bytes = createHmac("sha256", bytes).update(part).digest();
      this.#key = { secret, day, bytes };
    }
    return this.#key.bytes;
  }
}

/** A text as a part of a URL: all but letters, digits and `-._~` is encoded. */
export function encodeUri(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (one) => `%${one.charCodeAt(0).toString(16).toUpperCase()}`);
}

function queryOf({ search, searchParams }: URL): string {
  if (search === "") return "";
  const pairs = [...searchParams].map(([name, value]) => [encodeUri(name), encodeUri(value)] as const);
  pairs.sort(([name, value], [other, others]) => (name === other ? order(value, others) : order(name, other)));
  return pairs.map((pair) => pair.join("=")).join("&");
}

function order(text: string, other: string): number {
  return text < other ? -1 : 1;
}
