import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { promisify } from "node:util";
import { download } from "../../../src/cas/stores/download.ts";
import { send } from "../../../src/cas/stores/http.ts";

const PIECES = Array.from({ length: 300 }, (_, index) => Buffer.alloc(20_000 + index, index));
const BODY = Buffer.concat(PIECES);
const HEADERS = { "content-length": BODY.length };

async function serve(t: TestContext, server: Server): Promise<URL> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
}

/** A server that sends back what it was sent. */
function echo(): Server {
  return createServer(async (request, answer) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    answer.end(Buffer.concat(chunks));
  });
}

async function* slowly(): AsyncGenerator<Uint8Array> {
  for (const piece of PIECES) {
    await new Promise((resolve) => setImmediate(resolve));
    yield piece;
  }
}

test("sends a body of any pieces, asked for or not", async (t) => {
  const url = await serve(t, echo());
  for (const headers of [HEADERS, { ...HEADERS, expect: "100-continue" }]) {
    for (const body of [[BODY], PIECES, slowly()]) {
      assert.deepEqual((await send({ method: "PUT", url, headers, body })).body, BODY);
    }
  }
});

test("sends the body after a while to a server that does not say that it wants it", async (t) => {
  const server = echo();
  server.on("checkContinue", (request, answer) => server.emit("request", request, answer));
  const url = await serve(t, server);
  const headers = { ...HEADERS, expect: "100-continue" };
  assert.deepEqual((await send({ method: "PUT", url, headers, body: PIECES })).body, BODY);
});

test("keeps a body from a server that does not want it", async (t) => {
  let read = 0;
  const server = createServer();
  server.on("checkContinue", (request, answer) => {
    request.on("data", (chunk: Buffer) => {
      read += chunk.length;
    });
    answer.writeHead(412).end("no");
  });
  const url = await serve(t, server);
  const headers = { ...HEADERS, expect: "100-continue" };
  for (let round = 0; round < 3; round++) {
    const { status, body } = await send({ method: "PUT", url, headers, body: PIECES });
    assert.deepEqual([status, body.toString()], [412, "no"]);
  }
  assert.equal(read, 0);
});

test("fails with a body that fails, and with a server that hangs up", async (t) => {
  const url = await serve(t, echo());
  async function* failing(): AsyncGenerator<Uint8Array> {
    yield PIECES[0]!;
    throw new Error("no more of it");
  }
  await assert.rejects(send({ method: "PUT", url, headers: HEADERS, body: failing() }), /no more of it/);
  const rude = createServer((request) => request.socket.destroy());
  rude.on("checkContinue", (request) => request.socket.destroy());
  const nowhere = await serve(t, rude);
  for (const headers of [HEADERS, { ...HEADERS, expect: "100-continue" }]) {
    await assert.rejects(send({ method: "PUT", url: nowhere, headers, body: PIECES }), { code: /ECONNRESET|EPIPE/ });
  }
});

test("takes an answer that only tells of its body", async (t) => {
  const url = await serve(
    t,
    createServer((_, answer) => answer.writeHead(200, { "content-length": 2 ** 40 }).end()),
  );
  const { status, headers, body } = await send({ method: "HEAD", url, headers: {} });
  assert.deepEqual([status, headers["content-length"], body.length], [200, String(2 ** 40), 0]);
});

test("goes through a proxy where the environment says so", async (t) => {
  const origin = await serve(t, echo());
  const proxy = await serve(
    t,
    createServer((request, answer) => answer.end(`${request.method} ${request.url}`)),
  );
  const modules = ["http", "download"].map((name) => join(import.meta.dirname, `../../../src/cas/stores/${name}.ts`));
  const script = `
    const [{ send }, { download }] = await Promise.all(${JSON.stringify(modules)}.map((path) => import(path)));
    const [url, headers] = [new URL(process.env.ORIGIN), {}];
    const answers = [await send({ method: "PUT", url, headers, body: [] }), await download({ url, headers })];
    console.log(JSON.stringify(answers.map(({ body }) => body.toString())));
  `;
  const proxies = { http_proxy: proxy.href, HTTP_PROXY: proxy.href, no_proxy: "", NO_PROXY: "" };
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", script], {
    env: { ...process.env, ...proxies, NODE_USE_ENV_PROXY: "1", ORIGIN: origin.href },
  });
  assert.deepEqual(JSON.parse(stdout), [`PUT ${origin.href}`, `GET ${origin.href}`]);
});

test("gives up a connection that is not made", {
  skip: process.platform !== "linux" && "it needs Linux",
}, async (t) => {
  // Linux does not answer where as many connections wait as a server lets wait.
  const script = `const server = require("node:net").createServer().listen({ port: 0, host: "127.0.0.1", backlog: 1 }, () => {
    require("node:fs").writeSync(1, String(server.address().port));
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  })`;
  const child = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  const port = Number((await once(child.stdout, "data"))[0]);
  const waiting = [connect(port, "127.0.0.1"), connect(port, "127.0.0.1")];
  t.after(() => waiting.map((socket) => socket.on("error", () => {}).destroy()));
  await Promise.all(waiting.map((socket) => once(socket, "connect")));
  const url = new URL(`http://127.0.0.1:${port}/`);
  const expected = { code: "ETIMEDOUT", message: /no connection was made/ };
  await Promise.all([
    assert.rejects(send({ method: "GET", url, headers: {} }), expected),
    assert.rejects(download({ url, headers: {} }), expected),
  ]);
});
