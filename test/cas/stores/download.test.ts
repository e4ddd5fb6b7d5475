import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import https from "node:https";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import tls from "node:tls";
import fc from "fast-check";
import { download } from "../../../src/cas/stores/download.ts";

/** A server that answers each request by `answer`, on kept connections; resolves to its URL. */
async function serve(t: TestContext, answer: (socket: Socket, number: number, head: string) => void): Promise<URL> {
  let number = 0;
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    let head = "";
    socket.on("data", (bytes) => {
      head += bytes.toString("latin1");
      for (let end = head.indexOf("\r\n\r\n"); end >= 0; end = head.indexOf("\r\n\r\n")) {
        answer(socket, number++, head.slice(0, end));
        head = head.slice(end + 4);
      }
    });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/an%20object?alt=media`);
}

/** Sends the parts one after the other, each when the other side has had the time to read the one before. */
async function sendSlowly(socket: Socket, parts: readonly Buffer[]): Promise<void> {
  for (const part of parts) {
    socket.write(part);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

function cut(bytes: Buffer, at: readonly number[]): Buffer[] {
  const places = [0, ...at.map((place) => place % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return places.slice(1).map((end, index) => bytes.subarray(places[index], end));
}

const BODY = Buffer.from(Array.from({ length: 200_000 }, (_, index) => (index * 7919) % 251));

test("asks as HTTP/1.1 does, and gives status, headers and body", async (t) => {
  let asked = "";
  const url = await serve(t, (socket, _, head) => {
    asked = head;
    socket.write(
      "HTTP/1.1 206 Partial\r\nX-Goog-Hash: crc32c=a\r\nx-goog-hash:  md5=b \r\nContent-Length: 3\r\n\r\nabc",
    );
  });
  const { status, headers, body } = await download({ url, headers: { range: "bytes=0-2" } });
  assert.equal(asked.split("\r\n")[0], "GET /an%20object?alt=media HTTP/1.1");
  assert.match(asked, new RegExp(`^host: ${url.host}$`, "m"));
  assert.match(asked, /^range: bytes=0-2$/m);
  assert.deepEqual([status, headers["x-goog-hash"], body.toString()], [206, "crc32c=a, md5=b", "abc"]);
});

test("reads any body in any pieces, one answer after the other on one connection", async (t) => {
  const plans: { chunks: number[]; cuts: number[]; length: number; kind: string }[] = [];
  const sockets = new Set<Socket>();
  const url = await serve(t, (socket) => {
    sockets.add(socket);
    const { kind, length, chunks, cuts } = plans.at(-1)!;
    const body = BODY.subarray(0, length);
    const pieces = cut(body, chunks).filter((piece) => piece.length > 0);
    const chunked = pieces.flatMap((piece) => [
      Buffer.from(`${piece.length.toString(16)};x=y\r\n`),
      piece,
      Buffer.from("\r\n"),
    ]);
    const bytes =
      kind === "chunked"
        ? Buffer.concat([
            Buffer.from("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            ...chunked,
            Buffer.from("0\r\na: b\r\n\r\n"),
          ])
        : Buffer.concat([
            Buffer.from(`HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: ${length}\r\n\r\n`),
            body,
          ]);
    void sendSlowly(socket, cut(bytes, cuts));
  });
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        kind: fc.constantFrom("chunked", "length"),
        length: fc.nat(BODY.length),
        chunks: fc.array(fc.nat(), { maxLength: 4 }),
        cuts: fc.array(fc.nat(), { maxLength: 6 }),
      }),
      async (plan) => {
        plans.push(plan);
        const { body } = await download({ url, headers: {} });
        assert.ok(body.equals(BODY.subarray(0, plan.length)));
      },
    ),
    { numRuns: 60 },
  );
  assert.equal(sockets.size, 1);
});

test("takes a body of unknown length to the end of the connection, and makes another one for the next", async (t) => {
  const url = await serve(t, (socket, number) => socket.end(`HTTP/1.0 200 OK\r\n\r\nbody ${number}`));
  for (const number of [0, 1]) assert.equal((await download({ url, headers: {} })).body.toString(), `body ${number}`);
});

test("does not read a body that is longer than it is to be, and goes on with another connection", async (t) => {
  const sockets = new Set<Socket>();
  const url = await serve(t, (socket) => {
    sockets.add(socket);
    socket.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc");
    setImmediate(() => socket.write("de"));
  });
  const take = () => assert.fail("memory was taken for it");
  const { status, headers, body } = await download({ url, headers: {}, most: 4, memory: { take, give: () => {} } });
  assert.deepEqual([status, headers["content-length"], body.length], [200, "5", 0]);
  for (let round = 0; round < 2; round++) {
    assert.equal((await download({ url, headers: {}, most: 5 })).body.toString(), "abcde");
  }
  assert.equal(sockets.size, 2);
});

test("reads all that an error says, in memory of its own, and keeps the connection", async (t) => {
  const sockets = new Set<Socket>();
  const url = await serve(t, (socket, number) => {
    sockets.add(socket);
    socket.write(`HTTP/1.1 ${[400, 404, 503][number]} No\r\ncontent-length: 3\r\n\r\nwhy`);
  });
  const take = () => assert.fail("memory was taken for it");
  for (const expected of [400, 404, 503]) {
    const { status, body } = await download({ url, headers: {}, most: 1, memory: { take, give: () => {} } });
    assert.deepEqual([status, body.toString()], [expected, "why"]);
  }
  assert.equal(sockets.size, 1);
});

test("gives back its memory once, and only where nobody gets the answer", async (t) => {
  const head = `HTTP/1.1 200 OK\r\ncontent-length: ${BODY.length}\r\n\r\n`;
  const url = await serve(t, (socket, number) => {
    socket.write(head);
    if (number === 0) socket.write(BODY);
    else socket.write(BODY.subarray(0, 100), () => number === 1 && socket.destroy());
  });
  const taken: Buffer[] = [];
  const given: Buffer[] = [];
  const enough = new AbortController();
  const memory = {
    take(length: number) {
      const buffer = Buffer.alloc(length);
      taken.push(buffer);
      if (taken.length === 3) setImmediate(() => enough.abort(new Error("enough")));
      return buffer;
    },
    give: (part: Buffer) => given.push(part),
  };
  const ask = () => download({ url, headers: {}, memory, signal: enough.signal });
  assert.equal((await ask()).body, taken[0]);
  await assert.rejects(ask(), { code: "ECONNRESET" });
  await assert.rejects(ask(), /enough/);
  assert.equal(taken.length, 3);
  assert.deepEqual(
    given.map((part) => taken.indexOf(part)),
    [1, 2],
  );
});

test("fails where the answer ends early or makes no sense, and not on a connection that was closed meanwhile", async (t) => {
  const answers = [
    "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
    "SSH-2.0-OpenSSH\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello\r\n",
  ];
  const url = await serve(t, (socket, number) => {
    const text = answers[number];
    if (text !== undefined) socket.end(text);
    else {
      // Once kept, and closed when the next request comes.
      socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
      socket.removeAllListeners("data").on("data", () => socket.destroy());
    }
  });
  for (const code of ["ECONNRESET", "ECONNRESET", "EPROTO", "EPROTO", "EPROTO"]) {
    await assert.rejects(download({ url, headers: {} }), { code });
  }
  for (let round = 0; round < 3; round++) assert.equal((await download({ url, headers: {} })).body.toString(), "ok");
});

test("reads over TLS, and from nobody whom it has no reason to trust", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "datamon-download-"));
  t.after(() => rmSync(directory, { recursive: true }));
  const [key, cert] = ["key.pem", "cert.pem"].map((name) => join(directory, name)) as [string, string];
  const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
  try {
    execFileSync(
      "openssl",
      ["req", "-x509", "-newkey", "rsa:2048", "-nodes", ...subject, "-keyout", key, "-out", cert],
      {
        stdio: "pipe",
      },
    );
  } catch (error) {
    t.skip(`there is no openssl to make a certificate with: ${(error as Error).message}`);
    return;
  }
  const server = https.createServer({ key: readFileSync(key), cert: readFileSync(cert) }, (_, response) => {
    response.setHeader("content-length", BODY.length).end(BODY);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = new URL(`https://localhost:${(server.address() as AddressInfo).port}/object`);
  await assert.rejects(download({ url, headers: {} }), { code: "DEPTH_ZERO_SELF_SIGNED_CERT" });
  const trusted = tls.getCACertificates("default");
  tls.setDefaultCACertificates([...trusted, readFileSync(cert, "utf8")]);
  t.after(() => {
    tls.setDefaultCACertificates(trusted);
    server.closeAllConnections();
    server.close();
  });
  for (let round = 0; round < 3; round++) assert.ok((await download({ url, headers: {} })).body.equals(BODY));
});

test("ends when its signal says so", async (t) => {
  const asked = Promise.withResolvers<void>();
  const url = await serve(t, () => asked.resolve());
  const controller = new AbortController();
  const answer = download({ url, headers: {}, signal: controller.signal });
  void asked.promise.then(() => controller.abort(new Error("enough")));
  await assert.rejects(answer, /enough/);
});
