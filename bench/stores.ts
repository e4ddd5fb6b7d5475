/**
 * Object stores side by side, each served by a process on the loopback interface (fake-gcs-server for
 * Google Cloud Storage, versitygw for S3) that keeps its objects in memory (a tmpfs): a mount beside
 * parallel curl and beside rclone mount, an upload beside rclone copy, the same with 20 ms added to
 * every request, and a download over a bad network. Cold means that Datamon's disk cache is empty and
 * the page cache dropped; caches are where $BENCH_DIR says, else in the system's temporary directory.
 *
 * BENCH_ONLY=gcs,upload    only these of gcs, s3, and of sequential, upload, scan, latency, damage
 * BENCH_ROUNDS=1  rounds    BENCH_LARGE=2048  MiB of the large file, and half of it over the bad network
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { BUCKET, S3_CREDENTIALS, type StoreServer, serverMissing, startGcs, startS3 } from "../test/support/servers.ts";
import { datamon, withDirectory, writeRandomFile, writeSmallFiles } from "./harness.ts";
import {
  availableGibibytes,
  compare,
  dropCaches,
  inRounds,
  judge,
  print,
  type Rounds,
  seconds,
  summarize,
} from "./measure.ts";
import { mountDatamon, mountRclone, run, type System, self, work } from "./systems.ts";

const LARGE_MIB = Number(process.env.BENCH_LARGE ?? 2048);
const ONLY = process.env.BENCH_ONLY?.split(",") ?? [];
const SMALL_FILES = 20_000;
const SMALL_SIZE = 4096;
const READERS = 8;
const LATENCY = 20;
const ROWS = ["sequential", "upload", "scan", "latency", "damage"];

const DATAMON = "datamon";
const CURL = `${READERS} parallel curl`;
const RCLONE_COPY = "rclone copy --transfers 32";
const RCLONE_MOUNT = "rclone mount";
/** Folders of the bench's directory: a tmpfs, and one on disk. */
const MEMORY = "memory";
const DISK = "disk";
const NEAR = "without latency";
const FAR = `with ${LATENCY} ms`;

/** One kind of store: how to reach it with each program. */
interface Kind {
  readonly name: string;
  readonly server: "fake-gcs-server" | "versitygw";
  start(): Promise<StoreServer>;
  environment(endpoint: string): Record<string, string>;
  /** The URL of a store. */
  store(endpoint: string, prefix: string): string;
  /** A place as rclone writes it. */
  rclone(endpoint: string, prefix: string): string;
  /** Arguments for curl that read an object, and that put one. */
  readonly curl: Record<"get" | "put", (endpoint: string, key: string) => string[]>;
}

const S3_CURL = [
  ...["--aws-sigv4", "aws:amz:us-east-1:s3", "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"],
  ...["--user", `${S3_CREDENTIALS.AWS_ACCESS_KEY_ID}:${S3_CREDENTIALS.AWS_SECRET_ACCESS_KEY}`],
];

const KINDS: Record<string, Kind> = {
  gcs: {
    name: "GCS",
    server: "fake-gcs-server",
    start: () => startGcs(),
    environment: (endpoint) => ({ STORAGE_EMULATOR_HOST: endpoint }),
    store: (_, prefix) => `gs://${BUCKET}/${prefix}`,
    rclone: (endpoint, prefix) =>
      `:googlecloudstorage,anonymous=true,endpoint='${endpoint}/storage/v1/':${BUCKET}/${prefix}`,
    curl: {
      get: (endpoint, key) => [`${endpoint}/storage/v1/b/${BUCKET}/o/${encodeURIComponent(key)}?alt=media`],
      put: (endpoint, key) => [
        ...["-X", "POST"],
        `${endpoint}/upload/storage/v1/b/${BUCKET}/o?uploadType=media&name=${encodeURIComponent(key)}`,
      ],
    },
  },
  s3: {
    name: "S3",
    server: "versitygw",
    start: startS3,
    environment: () => S3_CREDENTIALS,
    store: (endpoint, prefix) => `s3://${BUCKET}/${prefix}?endpoint=${endpoint}`,
    rclone: (endpoint, prefix) =>
      `:s3,provider=Other,env_auth=true,region=us-east-1,endpoint='${endpoint}':${BUCKET}/${prefix}`,
    curl: {
      get: (endpoint, key) => [...S3_CURL, `${endpoint}/${BUCKET}/${key}`],
      put: (endpoint, key) => [...S3_CURL, `${endpoint}/${BUCKET}/${key}`],
    },
  },
};

/** What makes rclone read many small files the fastest: nothing is read ahead, asked twice, or forgotten. */
const RCLONE_FLAGS = [
  ...["--read-only", "--no-modtime", "--no-checksum", "--buffer-size", "0", "--vfs-read-chunk-size", "0"],
  ...["--dir-cache-time", "24h", "--attr-timeout", "24h", "--poll-interval", "0", "--vfs-read-wait", "0"],
];

/** The rows of one kind of store. */
class Bench {
  readonly #kind: Kind;
  /** In memory. */
  readonly #directory: string;
  /** A directory on disk. */
  readonly #disk: string;
  readonly #server: StoreServer;
  readonly #links: ChildProcess[] = [];
  readonly #tree: string;
  /** What each home's commands need to reach its store. */
  readonly #environments = new Map<string, Record<string, string>>();

  constructor(kind: Kind, server: StoreServer, directory: string) {
    this.#kind = kind;
    this.#server = server;
    this.#directory = join(directory, MEMORY);
    this.#disk = join(directory, DISK);
    this.#tree = join(this.#directory, "tree");
  }

  async run(): Promise<void> {
    const rows: Record<string, () => Promise<void>> = {
      sequential: () => this.#sequential(),
      upload: () => this.#upload(),
      scan: () => this.#scan(),
      latency: () => this.#latency(),
      damage: () => this.#damage(),
    };
    const wanted = ROWS.some((row) => ONLY.includes(row)) ? ROWS.filter((row) => ONLY.includes(row)) : ROWS;
    writeSmallFiles(this.#tree, SMALL_FILES, SMALL_SIZE);
    for (const row of wanted) await rows[row]!();
  }

  end(): void {
    for (const link of this.#links) link.kill();
  }

  /** A large file through the mount, beside parallel readers of ranges of the same file in the same server. */
  async #sequential(): Promise<void> {
    const file = this.#large("large", LARGE_MIB);
    const { curl } = this.#kind;
    const { endpoint } = this.#server;
    run(self, ["curl", "-sS", "--fail", "-T", join(file, "data.bin"), ...curl.put(endpoint, "plain/data.bin")]);
    const home = this.#home(this.#server.endpoint, "large");
    this.#store(home, "large", file);
    rmSync(file, { recursive: true });
    const names = [DATAMON, CURL].map(named);
    const rates = await inRounds(names, async ({ name }) => {
      dropCaches();
      if (name === DATAMON) return await this.#readLarge(home, "large");
      const began = performance.now();
      const share = (LARGE_MIB * 2 ** 20) / READERS;
      await Promise.all(
        Array.from({ length: READERS }, async (_, part) => {
          const range = `${share * part}-${share * (part + 1) - 1}`;
          const command = ["curl", "-sS", "--fail", "-o", "/dev/null", "-r", range];
          await finished([...command, ...curl.get(endpoint, "plain/data.bin")]);
        }),
      );
      return (LARGE_MIB * 1000) / (performance.now() - began);
    });
    print(`${this.#kind.name}: sequential read of ${LARGE_MIB} MiB, cold`, "MiB/s", rates);
    compare(`${this.#kind.name}: sequential read beside ${CURL}`, "MiB/s", rates, DATAMON, CURL, 0.6);
    this.#remove("plain", "large-meta", "large-blob");
  }

  async #upload(): Promise<void> {
    const rates = await inRounds([DATAMON, RCLONE_COPY].map(named), async ({ name }, round) => {
      if (name === DATAMON) return this.#uploadSmall(this.#server.endpoint, `upload-${round}`);
      const rate = this.#copySmall(`copy-${round}`);
      // The emulator's listings take longer the more there is, whatever they are of.
      this.#remove(`copy-${round}`);
      return rate;
    });
    print(`${this.#kind.name}: upload of ${SMALL_FILES} files of 4 KiB`, "files/s", rates);
    compare(`${this.#kind.name}: upload beside ${RCLONE_COPY}`, "files/s", rates, DATAMON, RCLONE_COPY, 10);
  }

  async #scan(): Promise<void> {
    this.#copySmall("copy-0");
    const home = this.#home(this.#server.endpoint, "scan");
    this.#store(home, "small", this.#tree);
    const rates = await inRounds([DATAMON, RCLONE_MOUNT].map(named), async ({ name }) => {
      if (name === DATAMON) return await this.#readSmall(home, "small");
      const flags = [...RCLONE_FLAGS, "--cache-dir", join(this.#disk, "rclone-cache")];
      Object.assign(process.env, this.#environment());
      const system = await mountRclone(this.#place("copy-0"), join(this.#directory, "rclone"), flags);
      dropCaches();
      return readAll(system);
    });
    print(
      `${this.#kind.name}: open + read of ${SMALL_FILES} files of 4 KiB in directory order, cold`,
      "files/s",
      rates,
    );
    compare(`${this.#kind.name}: scan beside ${RCLONE_MOUNT}`, "files/s", rates, DATAMON, RCLONE_MOUNT, 10);
  }

  /** The same three through a link that adds nothing, and through one that adds to each request. */
  async #latency(): Promise<void> {
    const file = this.#large("latency", LARGE_MIB);
    const links = new Map<string, string>();
    for (const [name, milliseconds] of [
      [NEAR, 0],
      [FAR, LATENCY],
    ] as const)
      links.set(name, await this.#link(milliseconds));
    const homes = new Map([...links].map(([name, endpoint]) => [name, this.#home(endpoint, "latency")]));
    this.#store(homes.get(NEAR)!, "large", file);
    this.#store(homes.get(NEAR)!, "small", this.#tree);
    rmSync(file, { recursive: true });
    const both = [...links.keys()].map(named);
    const { name: kind } = this.#kind;
    const tell = (what: string, unit: string, rates: Rounds) => {
      print(`${kind}: ${what}, ${FAR} and without`, unit, rates);
      compare(`${kind}: ${what} ${FAR}, beside without`, unit, rates, FAR, NEAR, 0.5);
    };
    tell("sequential read", "MiB/s", await inRounds(both, ({ name }) => this.#readLarge(homes.get(name)!, "large")));
    tell("scan", "files/s", await inRounds(both, ({ name }) => this.#readSmall(homes.get(name)!, "small")));
    tell(
      "upload",
      "files/s",
      await inRounds(both, ({ name }, round) =>
        this.#uploadSmall(links.get(name)!, `latency-${name === FAR}-${round}`),
      ),
    );
    this.#remove("latency-meta", "latency-blob");
  }

  /** One request in a hundred fails, one in a thousand is damaged. */
  async #damage(): Promise<void> {
    const mebibytes = LARGE_MIB / 2;
    const file = this.#large("damage", mebibytes);
    this.#store(this.#home(this.#server.endpoint, "damage"), "damage", file);
    const link = spawn(
      process.execPath,
      [join(import.meta.dirname, "bad-link.ts"), this.#server.endpoint, "100", "1000"],
      {
        stdio: ["ignore", "pipe", "inherit"],
      },
    );
    this.#links.push(link);
    const endpoint = await firstLine(link);
    const home = this.#home(endpoint, "damage");
    const destination = join(this.#directory, "downloaded");
    run(self, [datamon, "bundle", "download", "--repo", "damage", "--destination", destination], this.#user(home));
    run(self, ["cmp", join(file, "data.bin"), join(destination, "data.bin")]);
    link.kill();
    console.log(`\n${this.#kind.name}: ${mebibytes} MiB downloaded over a bad link: ${await firstLine(link)}`);
    judge(`${this.#kind.name}: bytes that came wrong over a bad link`, "bytes", [0], "none", (value) => value === 0);
    for (const path of [file, destination]) rmSync(path, { recursive: true });
    this.#remove("damage-meta", "damage-blob");
  }

  /** MiB a second of a file read from front to back through a mount that has nothing yet. */
  #readLarge(home: string, repo: string): number {
    return this.#mounted(home, repo, (system) => {
      const done = work(system, "sequential", join(system.path, "data.bin"));
      if (done.bytes !== LARGE_MIB * 2 ** 20) throw new Error(`${done.bytes} bytes were read`);
      return LARGE_MIB / seconds(done);
    });
  }

  #readSmall(home: string, repo: string): number {
    return this.#mounted(home, repo, readAll);
  }

  /** Does something with a mount whose cache is empty. */
  #mounted(home: string, repo: string, measure: (system: System) => number): number {
    const cache = join(this.#disk, "cache");
    const directory = join(this.#directory, "mnt");
    mkdirSync(directory, { recursive: true });
    const settings = this.#user(home);
    Object.assign(process.env, settings);
    const system = mountDatamon({
      name: DATAMON,
      user: self,
      home,
      directory,
      flags: ["--cache-dir", cache],
      bundle: repo,
    });
    dropCaches();
    try {
      return measure(system);
    } finally {
      system.end();
      rmSync(cache, { recursive: true, force: true });
    }
  }

  #uploadSmall(endpoint: string, name: string): number {
    const home = this.#home(endpoint, name);
    run(self, [datamon, "repo", "create", "--repo", "small", "--description", "bench"], this.#user(home));
    dropCaches();
    const began = performance.now();
    run(
      self,
      [datamon, "bundle", "upload", "--repo", "small", "--path", this.#tree, "--message", "bench"],
      this.#user(home),
    );
    const rate = (SMALL_FILES * 1000) / (performance.now() - began);
    this.#remove(`${name}-meta`, `${name}-blob`);
    return rate;
  }

  #copySmall(prefix: string): number {
    dropCaches();
    const began = performance.now();
    run(
      self,
      ["rclone", "--config", "", "copy", "--transfers", "32", this.#tree, this.#place(prefix)],
      this.#environment(),
    );
    return (SMALL_FILES * 1000) / (performance.now() - began);
  }

  #store(home: string, repo: string, path: string): void {
    run(self, [datamon, "repo", "create", "--repo", repo, "--description", "bench"], this.#user(home));
    run(self, [datamon, "bundle", "upload", "--repo", repo, "--path", path, "--message", "bench"], this.#user(home));
  }

  #large(name: string, mebibytes: number): string {
    const directory = join(this.#directory, name);
    mkdirSync(directory);
    writeRandomFile(join(directory, "data.bin"), name, mebibytes * 2 ** 20);
    return directory;
  }

  /** A home with stores below `prefix`, reached at `endpoint`. */
  #home(endpoint: string, prefix: string): string {
    const home = join(this.#directory, `home-${this.#environments.size}`);
    mkdirSync(join(home, ".datamon"), { recursive: true, mode: 0o700 });
    const config = {
      metadata: this.#kind.store(endpoint, `${prefix}-meta`),
      blob: this.#kind.store(endpoint, `${prefix}-blob`),
      name: "bench",
      email: "bench@localhost",
    };
    writeFileSync(join(home, ".datamon/datamon.yaml"), JSON.stringify(config));
    this.#environments.set(home, this.#kind.environment(endpoint));
    return home;
  }

  #user(home: string): Record<string, string> {
    // Compiled code lies below a home, and whoever uses Datamon for the second time has it.
    return { HOME: home, NODE_COMPILE_CACHE: join(this.#disk, "compiled"), ...this.#environments.get(home) };
  }

  /** What rclone needs; it refuses a bundle of certificates for S3. */
  #environment(): Record<string, string> {
    delete process.env.AWS_CA_BUNDLE;
    return this.#kind.environment(this.#server.endpoint);
  }

  #place(prefix: string): string {
    return this.#kind.rclone(this.#server.endpoint, prefix);
  }

  #remove(...prefixes: string[]): void {
    for (const prefix of prefixes) {
      run(self, ["rclone", "--config", "", "purge", this.#place(prefix)], this.#environment());
    }
  }

  async #link(milliseconds: number): Promise<string> {
    const { port } = new URL(this.#server.endpoint);
    const link = spawn(process.execPath, [join(import.meta.dirname, "slow-link.ts"), port, String(milliseconds)], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#links.push(link);
    return `http://127.0.0.1:${await firstLine(link)}`;
  }
}

/** Files per second of one pass over the tree. */
function readAll(system: System): number {
  try {
    const done = work(system, "files", system.path);
    if (done.bytes !== SMALL_FILES * SMALL_SIZE) throw new Error(`${system.name}: ${done.bytes} bytes were read`);
    return SMALL_FILES / seconds(done);
  } finally {
    if (system.name === RCLONE_MOUNT) system.end();
  }
}

/** Something to measure that is no mount. */
function named(name: string): System {
  return { name, path: "", user: self, end() {} };
}

async function finished(command: string[]): Promise<void> {
  const child = spawn(command[0]!, command.slice(1), { stdio: ["ignore", "ignore", "inherit"] });
  const [status] = await once(child, "close");
  if (status !== 0) throw new Error(`${command.join(" ")} failed`);
}

async function firstLine(child: ChildProcess): Promise<string> {
  const [line] = await once(child.stdout!, "data");
  return String(line).trim();
}

async function main(): Promise<void> {
  if (process.getuid?.() !== 0) {
    console.log("skipped: all rows. Only root may drop the page cache.");
    return;
  }
  const unknown = ONLY.filter((name) => KINDS[name] === undefined && !ROWS.includes(name));
  if (unknown.length > 0)
    throw new Error(`no such row: ${unknown.join(", ")}; there are ${[...Object.keys(KINDS), ...ROWS].join(", ")}`);
  const kinds = Object.entries(KINDS).filter(([name]) => !ONLY.some((one) => KINDS[one]) || ONLY.includes(name));
  for (const [, kind] of kinds) {
    const missing = serverMissing(kind.server);
    const gibibytes = (LARGE_MIB / 1024) * 5 + 2;
    if (missing !== false || availableGibibytes() < gibibytes) {
      console.log(`skipped: ${kind.name}. ${missing || `It needs ${gibibytes} GiB of free memory.`}`);
      continue;
    }
    await withDirectory(async (directory) => {
      const memory = join(directory, MEMORY);
      for (const folder of [memory, join(directory, DISK)]) mkdirSync(folder);
      run(self, ["mount", "-t", "tmpfs", "-o", "size=100%", "none", memory]);
      process.env.TMPDIR = memory;
      const server = await kind.start();
      const bench = new Bench(kind, server, directory);
      try {
        await bench.run();
      } finally {
        bench.end();
        await server.dispose();
        run(self, ["umount", "-l", memory]);
        delete process.env.TMPDIR;
      }
    });
  }
  summarize();
}

await main();
