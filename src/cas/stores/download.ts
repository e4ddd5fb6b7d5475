/**
 * GETs over kept HTTP/1.1 connections that read a body from the socket straight to its place in memory.
 * Node's own client takes a new buffer for every 64 KiB, which are then copied, and the garbage collector
 * that follows them costs more than the network: 1.8 seconds of processor time a GiB, this 0.6.
 */

import net from "node:net";
import tls from "node:tls";
import type { Memory } from "../memory.ts";
import { CONNECT_MS, STALL_MS, stalled } from "./failure.ts";
import { type Answer, send, usesProxies } from "./http.ts";

/** Idle connections that are kept for each server. */
const MOST_IDLE = 64;
const SCRATCH = 64 * 1024;
const LONGEST_HEAD = 64 * 1024;

export interface Download {
  readonly url: URL;
  readonly headers: Readonly<Record<string, string | number>>;
  readonly signal?: AbortSignal | undefined;
  /** Where memory for the body comes from; that of an error is nobody's to give back. */
  readonly memory?: Memory | undefined;
  /** A body that is said to be longer than this is not read: the answer comes without it. What an error says is read. */
  readonly most?: number | undefined;
}

/**
 * Sends one GET and collects the answer. No retries but on a kept connection that the server turns out
 * to have closed, no redirects. Rejects with the system's or the signal's error; one that made no
 * progress for `STALL_MS` rejects with the code `ETIMEDOUT`.
 */
export async function download(request: Download): Promise<Answer> {
  request.signal?.throwIfAborted();
  // Node's own client knows the way through a proxy.
  if (usesProxies()) return await send({ method: "GET", ...request });
  const { origin } = request.url;
  for (;;) {
    const kept = idle.get(origin)?.pop();
    const connection = kept ?? new Connection(request.url);
    try {
      const answer = await connection.get(request);
      connection.keep(origin);
      return answer;
    } catch (error) {
      if (kept === undefined || connection.answering || request.signal?.aborted === true) throw error;
    }
  }
}

/** By origin; the one that was used last is at the end. */
const idle = new Map<string, Connection[]>();

/** What a socket is read into until it is known how long the body is. It is used up before the next read. */
const scratch = Buffer.allocUnsafeSlow(SCRATCH);

/** One connection, for one request at a time. */
class Connection {
  /** True once anything of an answer came. */
  answering = false;
  readonly #socket: net.Socket;
  #reader: AnswerReader | undefined;
  #settle: PromiseWithResolvers<Answer> | undefined;

  constructor({ protocol, hostname, port }: URL) {
    const host = hostname.replace(/^\[(.*)\]$/, "$1");
    const onread = {
      buffer: () => this.#reader?.room() ?? scratch,
      callback: (count: number) => {
        this.#take(count);
        return true;
      },
    };
    if (protocol === "https:") {
      const servername = net.isIP(host) === 0 ? { servername: host } : {};
      const options = { host, port: Number(port || 443), ALPNProtocols: ["http/1.1"], ...servername, onread };
      this.#socket = tls.connect(options as tls.ConnectionOptions);
    } else {
      this.#socket = net.connect({ host, port: Number(port || 80), onread } as net.NetConnectOpts);
    }
    this.#socket.setNoDelay(true);
    this.#socket.setTimeout(CONNECT_MS, () => this.#socket.destroy(stalled(this.#socket.connecting)));
    this.#socket.once("connect", () => this.#socket.setTimeout(STALL_MS));
    this.#socket.on("error", (error) => this.#fail(error));
    this.#socket.on("end", () => this.#ended());
    this.#socket.on("close", () => {
      for (const kept of idle.values()) if (kept.includes(this)) kept.splice(kept.indexOf(this), 1);
      this.#fail(closed());
    });
  }

  async get({ url, headers, signal, memory, most }: Download): Promise<Answer> {
    const settle = Promise.withResolvers<Answer>();
    this.#settle = settle;
    this.#reader = new AnswerReader(memory, most);
    this.answering = false;
    this.#socket.ref();
    const abort = () => {
      this.#fail(signal?.reason);
      this.#socket.destroy();
    };
    signal?.addEventListener("abort", abort, { once: true });
    const lines = Object.entries({ host: url.host, connection: "keep-alive", ...headers });
    const head = lines.map(([name, value]) => `${name}: ${value}\r\n`).join("");
    this.#socket.write(`GET ${url.pathname}${url.search} HTTP/1.1\r\n${head}\r\n`, "latin1");
    try {
      return await settle.promise;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** Keeps the connection for the next request to the same server, where that is possible. */
  keep(origin: string): void {
    const kept = idle.get(origin) ?? [];
    if (this.#reader?.reusable !== true || this.#socket.destroyed || kept.length >= MOST_IDLE) {
      this.#socket.destroy();
      return;
    }
    this.#reader = undefined;
    this.#socket.unref();
    kept.push(this);
    idle.set(origin, kept);
  }

  #take(count: number): void {
    this.answering = true;
    try {
      if (this.#reader === undefined || this.#settle === undefined) throw senseless("it was not asked for");
      const answer = this.#reader.take(count);
      if (answer !== undefined) this.#succeed(answer);
    } catch (error) {
      this.#fail(error);
      this.#socket.destroy();
    }
  }

  /** A body of unknown length is what came until the server closed. */
  #ended(): void {
    const answer = this.#reader?.end();
    if (answer !== undefined) this.#succeed(answer);
    this.#socket.destroy();
  }

  #succeed(answer: Answer): void {
    this.#settle?.resolve(answer);
    this.#settle = undefined;
  }

  #fail(error: unknown): void {
    if (this.#settle !== undefined) this.#reader?.abandon();
    this.#settle?.reject(error);
    this.#settle = undefined;
  }
}

/** Reads one answer (RFC 9112), from the bytes that are put where it says. */
class AnswerReader {
  #status = 0;
  #headers: Record<string, string> = {};
  /** The head, as far as it came; undefined once it is read. */
  #head: Uint8Array | undefined = Buffer.alloc(0);
  /** A body of known length. */
  #body: Buffer | undefined;
  #filled = 0;
  /** What came of a body of unknown length, decoded. */
  readonly #pieces: Buffer[] = [];
  #chunks: ChunkDecoder | undefined;
  #untilClose = false;
  readonly #memory: Memory | undefined;
  readonly #most: number;

  constructor(memory: Memory | undefined, most = Number.POSITIVE_INFINITY) {
    this.#memory = memory;
    this.#most = most;
  }

  /** True where another request may follow on the same connection. */
  get reusable(): boolean {
    return !this.#untilClose && !/\bclose\b/i.test(this.#headers.connection ?? "");
  }

  /** Where the next bytes are to be put. */
  room(): Buffer {
    return this.#body === undefined || this.#filled === this.#body.length ? scratch : this.#body.subarray(this.#filled);
  }

  /** So many bytes were put into what `room` gave. The answer, once it is complete. */
  take(count: number): Answer | undefined {
    if (this.#body !== undefined) {
      this.#filled += count;
      return this.#filled === this.#body.length ? this.#answer(this.#body) : undefined;
    }
    let bytes: Buffer = scratch.subarray(0, count);
    while (this.#head !== undefined) {
      const rest = this.#takeHead(bytes);
      if (rest === undefined) return undefined;
      bytes = rest;
    }
    return this.#takeBody(bytes);
  }

  /** Gives back the memory of an answer that nobody will see. Nothing more is read for it. */
  abandon(): void {
    if (this.#body !== undefined) this.#memory?.give(this.#body);
    this.#body = undefined;
  }

  /** The answer, where it is one that ends with the connection. */
  end(): Answer | undefined {
    return this.#untilClose ? this.#answer(Buffer.concat(this.#pieces)) : undefined;
  }

  /** What follows the head; undefined where it is not complete. */
  #takeHead(bytes: Buffer): Buffer | undefined {
    const head = Buffer.concat([this.#head!, bytes]);
    const end = head.indexOf("\r\n\r\n");
    if (end < 0) {
      if (head.length > LONGEST_HEAD) throw senseless("its head is too long");
      this.#head = head;
      return undefined;
    }
    const [first = "", ...lines] = head.toString("latin1", 0, end).split("\r\n");
    this.#status = Number(/^HTTP\/1\.[01] (\d{3})(?: |$)/.exec(first)?.[1] ?? Number.NaN);
    if (!(this.#status >= 100)) throw senseless("it is not one of HTTP/1.1");
    const rest = head.subarray(end + 4);
    if (this.#status < 200) {
      // "Continue" and "Early Hints": the answer proper follows.
      this.#head = Buffer.alloc(0);
      return rest;
    }
    this.#head = undefined;
    for (const line of lines) {
      const [, name, value] = /^([^:\s]+):[ \t]*(.*?)[ \t]*$/.exec(line) ?? [];
      if (name === undefined || value === undefined) throw senseless("its head makes no sense");
      const key = name.toLowerCase();
      const before = this.#headers[key];
      this.#headers[key] = before === undefined ? value : `${before}, ${value}`;
    }
    return rest;
  }

  #takeBody(bytes: Buffer): Answer | undefined {
    if (this.#chunks !== undefined) return this.#takeChunks(bytes);
    if (this.#untilClose) {
      this.#pieces.push(Buffer.from(bytes));
      return undefined;
    }
    const { "transfer-encoding": encoding, "content-length": length } = this.#headers;
    if (this.#status === 204 || this.#status === 304) return this.#answer(Buffer.alloc(0));
    if (encoding !== undefined) {
      if (encoding.toLowerCase() !== "chunked") throw senseless(`its encoding is ${encoding}`);
      this.#chunks = new ChunkDecoder();
      return this.#takeChunks(bytes);
    }
    if (length === undefined) {
      this.#untilClose = true;
      return this.#takeBody(bytes);
    }
    if (!/^\d{1,15}$/.test(length) || bytes.length > Number(length)) throw senseless("its length makes no sense");
    const failed = this.#status >= 300;
    if (Number(length) > this.#most && !failed) {
      this.#untilClose = true;
      return this.#answer(Buffer.alloc(0));
    }
    const memory = failed ? undefined : this.#memory;
    this.#body = memory?.take(Number(length)) ?? Buffer.allocUnsafeSlow(Number(length));
    this.#filled = bytes.copy(this.#body);
    return this.#filled === this.#body.length ? this.#answer(this.#body) : undefined;
  }

  #takeChunks(bytes: Buffer): Answer | undefined {
    return this.#chunks!.decode(bytes, this.#pieces) ? this.#answer(Buffer.concat(this.#pieces)) : undefined;
  }

  #answer(body: Buffer): Answer {
    return { status: this.#status, headers: this.#headers, body };
  }
}

/** The chunked transfer coding (RFC 9112, section 7.1). */
class ChunkDecoder {
  #line = "";
  /** Bytes of the chunk that are still to come; its line end, too, once there are none. */
  #left = 0;
  #state: "size" | "data" | "end" | "trailer" = "size";

  /** Adds what is decoded to `pieces`. True where that was all. */
  decode(bytes: Buffer, pieces: Buffer[]): boolean {
    for (let at = 0; at < bytes.length; ) {
      if (this.#state === "data") {
        const piece = Buffer.from(bytes.subarray(at, at + this.#left));
        pieces.push(piece);
        at += piece.length;
        this.#left -= piece.length;
        if (this.#left === 0) this.#state = "end";
        continue;
      }
      const end = bytes.indexOf(0x0a, at);
      this.#line += bytes.toString("latin1", at, end < 0 ? bytes.length : end + 1);
      if (this.#line.length > LONGEST_HEAD) throw senseless("a line of it is too long");
      if (end < 0) return false;
      at = end + 1;
      const line = this.#line.trimEnd();
      this.#line = "";
      if (this.#state === "size") {
        const size = /^([0-9a-f]{1,8})(?:[ \t;]|$)/i.exec(line)?.[1];
        if (size === undefined) throw senseless("a chunk has no size");
        this.#left = Number.parseInt(size, 16);
        this.#state = this.#left === 0 ? "trailer" : "data";
      } else if (this.#state === "end") {
        if (line !== "") throw senseless("a chunk is longer than it says");
        this.#state = "size";
      } else if (line === "") {
        if (at < bytes.length) throw senseless("something follows it");
        return true;
      }
    }
    return false;
  }
}

function closed(): Error {
  const error = new Error("the connection was closed in the middle of an answer");
  return Object.assign(error, { code: "ECONNRESET" });
}

function senseless(why: string): Error {
  return Object.assign(new Error(`the answer makes no sense: ${why}`), { code: "EPROTO" });
}
