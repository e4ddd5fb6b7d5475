import { once } from "node:events";
import http, { type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

/** What happens to one request on its way. Offsets count bytes of bodies. */
export interface Fault {
  /** Milliseconds before it is passed on. */
  readonly latency?: number;
  /** It is passed on when this has settled. */
  readonly until?: Promise<unknown>;
  /** Answered with this status, and not passed on. */
  readonly status?: number;
  /** The connection is cut after this many bytes of the request's body went to the server. */
  readonly cutRequest?: number;
  /** The connection is cut after this many bytes of the answer's body; at 0 the server has done it, and the client does not know. */
  readonly cutAnswer?: number;
  /** The byte at this offset is changed. */
  readonly corruptRequest?: number;
  readonly corruptAnswer?: number;
  /** Nothing comes back, ever: the connection stays open. With `cutAnswer`, after so many bytes of it. */
  readonly stall?: boolean;
}

/** A request as the proxy sees it. */
export interface Seen {
  readonly method: string;
  /** Path and query, with everything decoded. */
  readonly path: string;
  /** Counts from 1. */
  readonly number: number;
}

/** A proxy in front of an HTTP server, on the loopback interface, that does harm as `plan` says. */
export class FaultProxy {
  /** Decides on every request. */
  plan: (request: Seen) => Fault | undefined = () => undefined;
  readonly seen: Seen[] = [];
  readonly #target: URL;
  readonly #server = http.createServer({ requestTimeout: 0 });
  readonly #sockets = new Set<Socket>();
  // The server's own idle connections may end at any moment, which would be a fault that nobody planned.
  readonly #agent = new http.Agent({ keepAlive: false });
  #port = 0;

  private constructor(target: string) {
    this.#target = new URL(target);
    const handle = (request: IncomingMessage, answer: ServerResponse) => {
      this.#handle(request, answer).catch(() => request.socket.destroy());
    };
    this.#server.on("request", handle);
    // A client that asks whether to send its body is to hear it from the server.
    this.#server.on("checkContinue", handle);
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  static async start(target: string): Promise<FaultProxy> {
    const proxy = new FaultProxy(target);
    await proxy.up();
    return proxy;
  }

  /** `http://127.0.0.1:<port>` */
  get endpoint(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** Refuses connections and cuts those that there are, until `up`. */
  async down(): Promise<void> {
    const closed = once(this.#server, "close");
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  async up(): Promise<void> {
    this.#server.listen(this.#port, "127.0.0.1");
    await once(this.#server, "listening");
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  async #handle(request: IncomingMessage, answer: ServerResponse): Promise<void> {
    const { method = "", url = "" } = request;
    const seen = { method, path: decodeURIComponent(url), number: this.seen.length + 1 };
    this.seen.push(seen);
    const fault = this.plan(seen) ?? {};
    if (fault.latency !== undefined) await delay(fault.latency);
    await fault.until?.catch(() => undefined);
    if (fault.status !== undefined) {
      if (request.headers.expect === undefined) await once(request.resume(), "end");
      answer.writeHead(fault.status, { connection: "close" }).end();
      return;
    }
    const passed = http.request({
      agent: this.#agent,
      host: this.#target.hostname,
      port: this.#target.port,
      method,
      path: url,
      headers: request.headers,
    });
    const answered = once(passed, "response") as Promise<[IncomingMessage]>;
    answered.catch(() => undefined);
    // Also after an answer: a server may hang up on what it did not want to hear.
    passed.on("error", () => undefined);
    try {
      const wanted = request.headers.expect === undefined || (await isWanted(passed, answered));
      if (wanted) {
        if (request.headers.expect !== undefined) answer.writeContinue();
        for await (const chunk of damaged(request, fault.cutRequest, fault.corruptRequest)) {
          // A server may answer, or be gone, before it has seen everything.
          if (!passed.write(chunk)) await Promise.race([drained(passed), answered]);
        }
      }
      passed.end();
      const [response] = await answered;
      if (fault.stall === true && fault.cutAnswer === undefined) return;
      if (fault.cutAnswer !== undefined) await this.#cutAfter(fault, response, answer);
      answer.writeHead(response.statusCode ?? 0, { ...response.headers, ...(wanted ? {} : { connection: "close" }) });
      for await (const chunk of damaged(response, undefined, fault.corruptAnswer)) {
        if (!answer.write(chunk)) await once(answer, "drain");
      }
      answer.end();
    } catch {
      passed.destroy();
      if (fault.stall !== true) request.socket.destroy();
    }
  }

  /** Passes on a part of the answer and throws. */
  async #cutAfter({ cutAnswer }: Fault, response: IncomingMessage, answer: ServerResponse): Promise<never> {
    if (cutAnswer !== 0) {
      answer.writeHead(response.statusCode ?? 0, response.headers);
      for await (const chunk of until(response, cutAnswer ?? 0)) answer.write(chunk);
      // What was written leaves before the connection goes.
      await delay(20);
    }
    throw new Error("cut");
  }
}

function drained(passed: http.ClientRequest): Promise<void> {
  return new Promise((resolve) => passed.once("drain", resolve));
}

/** Sends the headers, and tells whether the server wants the body or has its answer already. */
async function isWanted(passed: http.ClientRequest, answered: Promise<unknown>): Promise<boolean> {
  passed.flushHeaders();
  return await Promise.race([once(passed, "continue").then(() => true), answered.then(() => false)]);
}

async function* damaged(
  stream: IncomingMessage,
  cut: number | undefined,
  corrupt: number | undefined,
): AsyncGenerator<Buffer> {
  let at = 0;
  for await (const chunk of stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    if (corrupt !== undefined && corrupt >= at && corrupt < at + chunk.length) chunk[corrupt - at]! ^= 0x10;
    if (cut !== undefined && at + chunk.length > cut) {
      yield chunk.subarray(0, cut - at);
      throw new Error("cut");
    }
    at += chunk.length;
    yield chunk;
  }
}

async function* until(stream: IncomingMessage, cut: number): AsyncGenerator<Buffer> {
  let left = cut;
  for await (const chunk of stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    yield chunk.subarray(0, left);
    left -= chunk.length;
    if (left <= 0) return;
  }
}
