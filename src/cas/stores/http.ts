import http, { type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import https from "node:https";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { STALL_MS, stalled } from "./failure.ts";

/** The answer to a request, with its whole body. */
export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

/** A request's body: pieces that follow each other, whose total length the headers tell. */
export type Pieces = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

export interface HttpRequest {
  readonly method: string;
  readonly url: URL;
  readonly headers: Readonly<Record<string, string | number>>;
  readonly body?: Pieces;
  readonly signal?: AbortSignal | undefined;
}

// Callers bound how much is under way; idle connections are kept for the next burst.
const POOL = { keepAlive: true, maxFreeSockets: 64, timeout: STALL_MS };
let plain: http.Agent | undefined;
let secure: https.Agent | undefined;

/**
 * Sends one request and collects the answer. No retries, no redirects. Rejects with the system's or
 * the signal's error; one that made no progress for `STALL_MS` rejects with the code `ETIMEDOUT`.
 */
export async function send(request: HttpRequest): Promise<Answer> {
  const { method, url, headers, signal } = request;
  const options = { method, headers, timeout: STALL_MS, ...(signal === undefined ? {} : { signal }) };
  plain ??= new http.Agent(POOL);
  secure ??= new https.Agent(POOL);
  const sent =
    url.protocol === "https:"
      ? https.request(url, { ...options, agent: secure })
      : http.request(url, { ...options, agent: plain });
  sent.on("timeout", () => sent.destroy(stalled()));
  const answered = new Promise<Answer>((resolve, reject) => {
    sent.on("error", reject);
    sent.on("response", (response) => {
      collect(response).then(resolve, reject);
    });
  });
  // An answer may come before the body is sent, and then be the reason that it cannot be.
  const sending = request.body === undefined ? sent.end() : pipeline(request.body, sent).catch(() => undefined);
  try {
    return await answered;
  } finally {
    // What still reads the caller's memory ends before the caller has it back.
    if (!sent.writableFinished) sent.destroy();
    await sending;
  }
}

async function collect(response: IncomingMessage): Promise<Answer> {
  const length = Number(response.headers["content-length"] ?? Number.NaN);
  return {
    status: response.statusCode ?? 0,
    headers: response.headers,
    body: await collectBody(response, Number.isSafeInteger(length) ? length : undefined),
  };
}

/** All that a stream brings, in one buffer; where `length` tells how much it will be, without another copy. */
export function collectBody(stream: Readable, length: number | undefined): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const whole = length === undefined ? undefined : Buffer.allocUnsafe(length);
    let at = 0;
    // By events: iterating over the stream takes twice the time.
    stream.on("data", (chunk: Buffer) => {
      if (whole === undefined) chunks.push(chunk);
      else chunk.copy(whole, at);
      at += chunk.length;
    });
    stream.on("end", () => resolve(whole === undefined ? Buffer.concat(chunks) : whole.subarray(0, at)));
    stream.on("error", reject);
    stream.on("close", () => reject(new Error("the connection was closed in the middle of an answer")));
  });
}
