import http, { type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import https from "node:https";
import type { Readable } from "node:stream";
import { CONNECT_MS, STALL_MS, stalled } from "./failure.ts";

/** The answer to a request, with its whole body. */
export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

/**
 * A request's body: pieces that follow each other, whose total length the headers tell. With the header
 * `expect: 100-continue` it is sent when the server wants it, or does not say for a second.
 */
export type Pieces = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

export interface HttpRequest {
  readonly method: string;
  readonly url: URL;
  readonly headers: Readonly<Record<string, string | number>>;
  readonly body?: Pieces;
  readonly signal?: AbortSignal | undefined;
}

/** As long as curl waits for servers that do not know what is expected of them, in milliseconds. */
const CONTINUE_MS = 1000;
/** So many bytes of a body wait to be sent before more of it is asked for. */
const AHEAD = 2 * 1024 * 1024;

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
  plain ??= new http.Agent(poolOptions());
  secure ??= new https.Agent(poolOptions());
  const sent =
    url.protocol === "https:"
      ? https.request(url, { ...options, agent: secure })
      : http.request(url, { ...options, agent: plain });
  sent.on("timeout", () => sent.destroy(stalled()));
  sent.on("socket", (socket) => {
    if (!socket.connecting) return;
    const timer = setTimeout(() => sent.destroy(stalled(true)), CONNECT_MS);
    socket.once("connect", () => clearTimeout(timer)).once("close", () => clearTimeout(timer));
  });
  const answered = new Promise<Answer>((resolve, reject) => {
    sent.on("error", reject);
    sent.on("response", (response) => {
      collect(response, method).then(resolve, reject);
    });
  });
  // An answer may come before the body is sent, and then be the reason that it cannot be.
  const sending = request.body === undefined ? sent.end() : sendBody(request.body, sent);
  try {
    return await answered;
  } finally {
    // What still reads the caller's memory ends before the caller has it back.
    if (!sent.writableFinished) sent.destroy();
    await sending;
  }
}

/** True where the environment asks for its proxies to be used, as Node does with `NODE_USE_ENV_PROXY`. */
export function usesProxies(): boolean {
  return process.env.NODE_USE_ENV_PROXY === "1";
}

/** Node tells only its own agents of the proxies. */
function poolOptions(): http.AgentOptions {
  return usesProxies() ? { ...POOL, proxyEnv: process.env } : POOL;
}

/** Ends when everything was sent or the connection is gone. */
async function sendBody(body: Pieces, sent: http.ClientRequest): Promise<void> {
  try {
    if (sent.getHeader("expect") !== undefined && !(await isWanted(sent))) return;
    // A pipeline would wait after each piece, and small ones could not leave together.
    for await (const piece of body) {
      if (sent.destroyed) return;
      if (!sent.write(piece) && sent.writableLength >= AHEAD) await next(sent, ["drain", "close"]);
    }
    sent.end();
  } catch (error) {
    sent.destroy(error as Error);
  }
}

/** False where the answer comes without the body, or none ever will. */
async function isWanted(sent: http.ClientRequest): Promise<boolean> {
  sent.flushHeaders();
  return (await next(sent, ["continue", "response", "close"], CONTINUE_MS)) !== "response" && !sent.destroyed;
}

/** The first of these that happens; undefined where none does for so many milliseconds. */
function next(sent: http.ClientRequest, names: readonly string[], patience?: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const settle = (name?: string) => {
      clearTimeout(timer);
      for (const [other, listener] of listeners) sent.off(other, listener);
      resolve(name);
    };
    const timer = patience === undefined ? undefined : setTimeout(settle, patience);
    const listeners = names.map((name) => [name, () => settle(name)] as const);
    for (const [name, listener] of listeners) sent.on(name, listener);
    // Then nothing happens any more.
    if (sent.destroyed) settle("close");
  });
}

async function collect(response: IncomingMessage, method: string): Promise<Answer> {
  const length = method === "HEAD" ? 0 : Number(response.headers["content-length"] ?? Number.NaN);
  return {
    status: response.statusCode ?? 0,
    headers: response.headers,
    body: await collectBody(response, Number.isSafeInteger(length) ? length : undefined),
  };
}

/** All that a stream brings, in one buffer; where `length` tells how much it will be, without another copy. */
function collectBody(stream: Readable, length: number | undefined): Promise<Buffer> {
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
