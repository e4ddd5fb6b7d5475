import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { toolPath } from "./tools.ts";

/** A store's server of its own, on the loopback interface, with one empty bucket. */
export interface StoreServer {
  /** `http://127.0.0.1:<port>` */
  readonly endpoint: string;
  readonly bucket: string;
  /** Kills the server; its data stays. */
  stop(): Promise<void>;
  /** Starts it again at the same address. */
  start(): Promise<void>;
  /** Kills the server and removes its data. */
  dispose(): Promise<void>;
}

export const BUCKET = "datamon-test";
/** The only account of the S3 server. */
export const S3_CREDENTIALS = { AWS_ACCESS_KEY_ID: "tester", AWS_SECRET_ACCESS_KEY: "tester-secret" };

/** The reason why tests that need the server are skipped on this machine, or false: for the option `skip`. */
export function serverMissing(name: "fake-gcs-server" | "versitygw"): string | false {
  return toolPath(name) === undefined && `${name} is not installed, and there is no Go to build it with`;
}

/**
 * fake-gcs-server, with its objects as files; or in memory, where they are gone when it stops, and keys
 * may be such as no file can be named.
 */
export async function startGcs(backend: "filesystem" | "memory" = "filesystem"): Promise<StoreServer> {
  const server = await startServer({
    name: "fake-gcs-server",
    argv: (port, data) => [
      ...["-scheme", "http", "-host", "127.0.0.1", "-port", String(port)],
      ...["-backend", backend, "-filesystem-root", data, "-log-level", "error"],
    ],
    probe: "/storage/v1/b",
  });
  if (backend === "memory") {
    const headers = { "content-type": "application/json" };
    const body = JSON.stringify({ name: BUCKET });
    await fetch(`${server.endpoint}/storage/v1/b`, { method: "POST", headers, body });
  }
  return server;
}

/** versitygw over a folder, with `S3_CREDENTIALS`. */
export async function startS3(): Promise<StoreServer> {
  const { AWS_ACCESS_KEY_ID: access, AWS_SECRET_ACCESS_KEY: secret } = S3_CREDENTIALS;
  return await startServer({
    name: "versitygw",
    argv: (port, data) => [
      ...["--access", access, "--secret", secret, "--port", `127.0.0.1:${port}`, "--quiet", "--keep-alive"],
      ...["posix", data],
    ],
    probe: "/",
  });
}

interface Recipe {
  readonly name: "fake-gcs-server" | "versitygw";
  readonly argv: (port: number, data: string) => string[];
  readonly probe: string;
}

async function startServer({ name, argv, probe }: Recipe): Promise<StoreServer> {
  const program = toolPath(name)!;
  const root = await mkdtemp(join(tmpdir(), `datamon-${name}-`));
  const data = join(root, "data");
  await mkdir(join(data, BUCKET), { recursive: true });
  const port = await freePort();
  const endpoint = `http://127.0.0.1:${port}`;
  let stop = async () => {};
  const start = async () => {
    // What tests do to it makes it complain.
    const child = spawn(program, argv(port, data), { stdio: "ignore" });
    const gone = once(child, "exit");
    const kill = () => child.kill("SIGKILL");
    process.once("exit", kill);
    stop = async () => {
      process.off("exit", kill);
      kill();
      await gone;
    };
    while (child.exitCode === null && !(await answers(endpoint + probe))) await delay(10);
    if (child.exitCode !== null) throw new Error(`${name} ended with ${child.exitCode}`);
  };
  await start();
  return {
    endpoint,
    bucket: BUCKET,
    start,
    stop: () => stop(),
    dispose: async () => {
      await stop();
      await rm(root, { recursive: true, force: true });
    },
  };
}

async function answers(url: string): Promise<boolean> {
  return await fetch(url).then(
    async (response) => {
      await response.arrayBuffer();
      return true;
    },
    () => false,
  );
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}
