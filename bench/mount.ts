/**
 * Mounts side by side: Datamon's channels, squashfuse_ll, rclone mount and the plain file system.
 * Cold means that the page cache was dropped and that Datamon's disk cache holds the content. Every
 * round runs all systems one after the other, in an order that rotates; ratios are medians over the
 * rounds. All sides lie in memory (a tmpfs), but for what is compared with the plain disk.
 *
 * BENCH_ONLY=small,disk    only these of small, million, disk, large, write, create    BENCH_ROUNDS=3  rounds
 * BENCH_LARGE=2048         MiB of the large file    BENCH_DIR=/tmp  where the disk is
 */
import { chmodSync, existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { amount, datamon, withDirectory, writeRandomFile, writeSmallFiles } from "./harness.ts";
import {
  availableGibibytes,
  compare,
  dropCaches,
  inRounds,
  judge,
  peakMebibytes,
  print,
  push,
  ROUNDS,
  type Rounds,
  seconds,
  summarize,
} from "./measure.ts";
import type { Work } from "./reader.ts";
import {
  makeHome,
  mountDatamon,
  mountRclone,
  mountSquashfs,
  OrdinaryUser,
  plain,
  run,
  type System,
  self,
  type User,
  work,
  workTogether,
} from "./systems.ts";

const LARGE_MIB = Number(process.env.BENCH_LARGE ?? 2048);
const ONLY = process.env.BENCH_ONLY?.split(",");
const SMALL_FILES = 20_000;
const CREATED_FILES = 10_000;
const RANDOM_READS = 10_000;
const MILLION_ENTRIES = 1_010_100;

const KERNEL = "datamon, kernel channel, root";
const USER = "datamon, kernel channel, user";
const NATIVE = "datamon, fuse-native";
const SQUASHFUSE = "squashfuse_ll";
const RCLONE = "rclone mount";
const PLAIN = "plain";

class Bench {
  readonly #disk: string;
  readonly #memory: string;
  readonly #store: string;
  readonly #tree: string;
  readonly #largeFile: string;
  #user: OrdinaryUser | undefined;
  readonly #systems: System[] = [];

  constructor(directory: string) {
    this.#disk = join(directory, "disk");
    this.#memory = join(directory, "memory");
    this.#store = join(directory, "disk/store");
    this.#tree = join(directory, "disk/small");
    this.#largeFile = join(directory, "disk/large/data.bin");
  }

  async run(): Promise<void> {
    if (process.getuid?.() !== 0) {
      console.log("skipped: all rows. Only root may drop the page cache and make an ordinary user to mount for.");
      return;
    }
    for (const path of [this.#disk, this.#memory, join(this.#store, "meta"), join(this.#store, "blob")]) {
      mkdirSync(path, { recursive: true });
    }
    run(self, ["mount", "-t", "tmpfs", "-o", "size=100%", "none", this.#memory]);
    this.#user = await OrdinaryUser.make();
    for (const [name, user] of [
      ["root", self],
      ["user", this.#user],
    ] as const) {
      makeHome(this.#home(name), user, this.#store);
      makeHome(join(this.#memory, `${name}-writer`), user);
    }
    const rows: Record<string, { gibibytes: number; measure: () => Promise<void> }> = {
      small: { gibibytes: 1, measure: () => this.#small() },
      million: { gibibytes: 1, measure: () => this.#million() },
      disk: { gibibytes: 1, measure: () => this.#largeOnDisk() },
      large: { gibibytes: (LARGE_MIB / 1024) * 4 + 1, measure: () => this.#largeInMemory() },
      write: { gibibytes: (LARGE_MIB / 1024) * 2 + 1, measure: () => this.#write() },
      create: { gibibytes: 1, measure: () => this.#create() },
    };
    const unknown = ONLY?.filter((name) => rows[name] === undefined) ?? [];
    if (unknown.length > 0)
      throw new Error(`no such row: ${unknown.join(", ")}; there are ${Object.keys(rows).join(", ")}`);
    for (const [name, { gibibytes, measure }] of Object.entries(rows)) {
      if (ONLY !== undefined && !ONLY.includes(name)) continue;
      if (availableGibibytes() < gibibytes) {
        console.log(
          `skipped: ${name}. It needs ${gibibytes} GiB of free memory, and there are ${amount(availableGibibytes())}.`,
        );
        continue;
      }
      await measure();
    }
    summarize();
  }

  end(): void {
    this.#endSystems();
    this.#user?.end();
    run(self, ["sh", "-c", 'mountpoint -q "$1" && umount -l "$1" || true', "sh", this.#memory]);
  }

  /** Many small files: listing and reading them. */
  async #small(): Promise<void> {
    writeSmallFiles(this.#tree, SMALL_FILES, 4096);
    this.#upload("small", this.#tree);
    const systems = await this.#readers("small", this.#tree, [KERNEL, USER, NATIVE, SQUASHFUSE, RCLONE, PLAIN]);

    const scan = await inRounds(systems, async (system) => {
      dropCaches();
      return SMALL_FILES / seconds(work(system, "scan", system.path));
    });
    print(`scan + stat of ${SMALL_FILES} files, cold`, "files/s", scan);
    compare("scan + stat, cold, beside squashfuse_ll", "files/s", scan, KERNEL, SQUASHFUSE, 7);

    const second: Rounds = new Map();
    const first = await inRounds(systems, async (system) => {
      dropCaches();
      const cold = this.#readAll(system);
      push(second, system.name, this.#readAll(system));
      return cold;
    });
    print(`open + read of ${SMALL_FILES} files of 4 KiB, first pass, cold`, "files/s", first);
    print("the same, second pass", "files/s", second);
    compare("open + read, first pass, beside squashfuse_ll", "files/s", first, KERNEL, SQUASHFUSE, 2);
    compare("open + read, second pass, beside the plain disk", "files/s", second, KERNEL, PLAIN, 0.7);

    const together = await this.#together(systems, (part, parts) => ["files", part, parts], "operations");
    print("open + read by four readers at once, cold", "files/s", together.four);
    compareReaders("small files", "files/s", together);
    this.#endSystems();
  }

  /** Files per second of one pass over the tree. */
  #readAll(system: System): number {
    const done = work(system, "files", system.path);
    if (done.bytes !== SMALL_FILES * 4096) throw new Error(`${system.name}: ${done.bytes} bytes were read`);
    return SMALL_FILES / seconds(done);
  }

  /** One large file beside the plain disk. */
  async #largeOnDisk(): Promise<void> {
    this.#makeLarge();
    const cache = join(this.#disk, "cache");
    const mount = this.#track(this.#mount(KERNEL, self, "large", ["--cache-dir", cache]));
    const systems = [mount, plain(PLAIN, join(this.#disk, "large"))];
    this.#fill(mount);
    run(self, ["sync"]);

    const cold = await inRounds(systems, async (system) => {
      dropCaches();
      return mibPerSecond(work(system, "sequential", join(system.path, "data.bin")));
    });
    print(`sequential read of ${LARGE_MIB} MiB on disk, cold`, "MiB/s", cold);
    compare("sequential read, cold, beside the plain disk", "MiB/s", cold, KERNEL, PLAIN, 0.9);

    const warm = await this.#readWarm(systems);
    print("the same, warm", "MiB/s", warm);
    compare("sequential read, warm, beside the plain disk", "MiB/s", warm, KERNEL, PLAIN, 0.9);

    const random = await inRounds(systems, async (system, round) => {
      dropCaches();
      const done = work(system, "random", join(system.path, "data.bin"), String(RANDOM_READS), String(round + 1));
      return RANDOM_READS / seconds(done);
    });
    print("random reads of 4 KiB in it, cold", "reads/s", random);
    compare("random 4 KiB reads, cold, beside the plain disk", "reads/s", random, KERNEL, PLAIN, 0.8);
    this.#endSystems();
    rmSync(cache, { recursive: true });
  }

  /** One large file in memory, so that the ways to the kernel are compared and not the disk. */
  async #largeInMemory(): Promise<void> {
    this.#makeLarge();
    const source = join(this.#disk, "large");
    const systems = await this.#readers("large", source, [KERNEL, USER, NATIVE, SQUASHFUSE, RCLONE]);
    const file = (system: System) => join(system.path, "data.bin");
    const cold = await inRounds(systems, async (system) => {
      dropCaches();
      return mibPerSecond(work(system, "sequential", file(system)));
    });
    print(`sequential read of ${LARGE_MIB} MiB in memory, cold`, "MiB/s", cold);
    const warm = await this.#readWarm(systems);
    print("the same, warm", "MiB/s", warm);
    compare("sequential read, user, cold, beside squashfuse_ll", "MiB/s", cold, USER, SQUASHFUSE, 1.1);
    // No daemon takes part: both are read from the kernel's page cache, so that nobody can be ahead.
    compare("sequential read, user, warm, beside squashfuse_ll", "MiB/s", warm, USER, SQUASHFUSE, 0.9);

    const random = await inRounds(systems, async (system, round) => {
      dropCaches();
      return RANDOM_READS / seconds(work(system, "random", file(system), String(RANDOM_READS), String(round + 1)));
    });
    print("random reads of 4 KiB in it, cold", "reads/s", random);

    const together = await this.#together(systems, (part, parts) => ["sequential", part, parts], "bytes", "data.bin");
    print("sequential read by four readers at once, cold", "MiB/s", together.four);
    compareReaders("a large file", "MiB/s", together);
    this.#endSystems();
  }

  /**
   * Reads the large file from the page cache. How fast that goes depends, up to twofold, on where in
   * memory the pages lie, and whoever reads first after the cache was dropped mostly gets the worst places.
   * So each pass begins with a cache of its own.
   */
  async #readWarm(systems: readonly System[]): Promise<Rounds> {
    return await inRounds(systems, async (system) => {
      const file = join(system.path, "data.bin");
      dropCaches();
      work(system, "sequential", file);
      return mibPerSecond(work(system, "sequential", file));
    });
  }

  async #million(): Promise<void> {
    const environment = { HOME: this.#home("root") };
    run(self, [datamon, "repo", "create", "--repo", "million", "--description", "bench"], environment);
    run(self, [process.execPath, join(import.meta.dirname, "million.ts"), "million"], environment);
    const flags = ["--cache-dir", join(this.#disk, "cache-million")];
    this.#mount(KERNEL, self, "million", flags).end();
    const answered: number[] = [];
    const found: number[] = [];
    const resident: number[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      const began = performance.now();
      const mount = this.#track(this.#mount(KERNEL, self, "million", flags));
      run(self, ["ls", mount.path]);
      answered.push((performance.now() - began) / 1000);
      found.push(MILLION_ENTRIES / seconds(work(mount, "find", mount.path)));
      resident.push(peakMebibytes(mount.daemon!()));
      this.#endSystems();
    }
    judge("a million files: command to first ls", "s", answered, "at most 0.7 s", (value) => value <= 0.7);
    judge("a million files: find", "entries/s", found, "at least 100,000 entries/s", (value) => value >= 100_000);
    judge("a million files: the daemon's peak memory", "MiB", resident, "under 250 MB", (mib) => mib < 250e6 / 2 ** 20);
  }

  /** A large file written into a writable mount whose scratch lies in memory. */
  async #write(): Promise<void> {
    const systems = await this.#writers();
    const rates = await inRounds(systems, async (system) => {
      const file = join(system.path, "written");
      const rate = mibPerSecond(work(system, "write", file, String(LARGE_MIB)));
      run(system.user, ["rm", file]);
      return rate;
    });
    print(`sequential write of ${LARGE_MIB} MiB, scratch in memory`, "MiB/s", rates);
    compare("sequential write beside plain tmpfs", "MiB/s", rates, KERNEL, PLAIN, 0.5);
    compare("sequential write, user, beside rclone mount", "MiB/s", rates, USER, RCLONE, 1.2);
    this.#endSystems();
  }

  async #create(): Promise<void> {
    const systems = await this.#writers();
    const rates = await inRounds(systems, async (system) => {
      const folder = join(system.path, "created");
      const rate = CREATED_FILES / seconds(work(system, "create", folder, String(CREATED_FILES)));
      run(system.user, ["rm", "-r", folder]);
      return rate;
    });
    print(`create + write 4 KiB + close, ${CREATED_FILES} files, scratch in memory`, "files/s", rates);
    compare("create + write + close beside rclone mount", "files/s", rates, KERNEL, RCLONE, 2);
    compare("create + write + close, user, beside rclone mount", "files/s", rates, USER, RCLONE, 2);
    this.#endSystems();
  }

  /** Everything that can show the tree in `source`, with all its data in memory. */
  async #readers(repo: string, source: string, names: string[]): Promise<System[]> {
    const systems: System[] = [];
    const add = (system: System) => {
      systems.push(this.#track(system));
      this.#fill(system);
    };
    const cache = (name: "root" | "user") => ["--cache-dir", join(this.#home(name), "cache")];
    if (names.includes(KERNEL)) add(this.#mount(KERNEL, self, repo, cache("root")));
    if (names.includes(USER) && this.#user !== undefined) add(this.#mount(USER, this.#user, repo, cache("user")));
    if (names.includes(NATIVE)) {
      await this.#attempt(NATIVE, () => {
        add(this.#mount(NATIVE, self, repo, [...cache("root"), "--channel", "fuse-native"]));
      });
    }
    if (names.includes(SQUASHFUSE)) {
      await this.#attempt(SQUASHFUSE, async () => {
        const image = join(this.#memory, `${repo}.squashfs`);
        run(self, ["mksquashfs", source, image, "-quiet", "-no-progress"]);
        add(await mountSquashfs(image, this.#mountPoint("squashfuse")));
      });
    }
    if (names.includes(RCLONE)) {
      await this.#attempt(RCLONE, async () => {
        const copy = join(this.#memory, `${repo}-copy`);
        run(self, ["cp", "-r", source, copy]);
        add(await mountRclone(copy, this.#mountPoint("rclone"), ["--read-only"]));
      });
    }
    if (names.includes(PLAIN)) add(plain(PLAIN, source));
    run(self, ["sync"]);
    return systems;
  }

  /** Writable places, all in memory. */
  async #writers(): Promise<System[]> {
    const systems: System[] = [];
    const add = (system: System) => {
      systems.push(this.#track(system));
    };
    const writer = (name: string, user: User, home: string, flags: readonly string[] = []) => {
      const environment = { HOME: join(this.#memory, home) };
      const repos = JSON.parse(run(user, [datamon, "repo", "list", "-o", "json"], environment)) as unknown[];
      if (repos.length === 0) {
        run(user, [datamon, "repo", "create", "--repo", "new", "--description", "bench"], environment);
      }
      const directory = this.#mountPoint(name.replaceAll(/\W+/g, "-"), user);
      add(mountDatamon({ name, user, home: environment.HOME, directory, flags: ["--rw", ...flags], bundle: "new" }));
    };
    writer(KERNEL, self, "root-writer");
    if (this.#user !== undefined) writer(USER, this.#user, "user-writer");
    await this.#attempt(NATIVE, () => writer(NATIVE, self, "root-writer", ["--channel", "fuse-native"]));
    await this.#attempt(RCLONE, async () => {
      const target = join(this.#memory, "rclone-target");
      mkdirSync(target, { recursive: true });
      const cache = ["--vfs-cache-mode", "full", "--cache-dir", join(this.#memory, "rclone-cache")];
      // What was written is not copied to its target meanwhile.
      add(await mountRclone(target, this.#mountPoint("rclone"), [...cache, "--vfs-write-back", "1h"]));
    });
    const path = join(this.#memory, "plain");
    mkdirSync(path, { recursive: true });
    add(plain(PLAIN, path));
    return systems;
  }

  async #attempt(name: string, work: () => void | Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      console.log(`skipped: ${name}. ${error instanceof Error ? error.message : error}`);
    }
  }

  #upload(repo: string, path: string): void {
    const environment = { HOME: this.#home("root") };
    run(self, [datamon, "repo", "create", "--repo", repo, "--description", "bench"], environment);
    run(self, [datamon, "bundle", "upload", "--repo", repo, "--path", path, "--message", "bench"], environment);
    run(self, ["chmod", "-R", "a+rX", this.#store]);
  }

  #makeLarge(): void {
    if (existsSync(this.#largeFile)) return;
    mkdirSync(join(this.#disk, "large"));
    writeRandomFile(this.#largeFile, "large", LARGE_MIB * 2 ** 20);
    this.#upload("large", join(this.#disk, "large"));
  }

  /** Reads all there is, so that it is in the caches on disk. */
  #fill(system: System): void {
    run(system.user, ["sh", "-c", 'find "$1" -type f -exec cat {} + >/dev/null', "sh", system.path]);
  }

  #mount(name: string, user: User, bundle: string, flags: readonly string[]): System {
    const home = this.#home(user === self ? "root" : "user");
    const directory = this.#mountPoint(name.replaceAll(/\W+/g, "-"), user);
    return mountDatamon({ name, user, home, directory, flags, bundle });
  }

  #track(system: System): System {
    this.#systems.push(system);
    return system;
  }

  #home(name: "root" | "user"): string {
    return join(this.#memory, `${name}-home`);
  }

  #mountPoint(name: string, user: User = self): string {
    const directory = join(this.#memory, "mounts", name);
    mkdirSync(directory, { recursive: true });
    run(self, ["chown", String(user.uid), directory]);
    return directory;
  }

  #endSystems(): void {
    for (const system of this.#systems.splice(0).reverse()) system.end();
  }

  /** The same work by one reader and shared by four at once, both cold. */
  async #together(
    systems: readonly System[],
    share: (part: string, parts: string) => [string, string, string],
    count: "operations" | "bytes",
    file = "",
  ): Promise<{ one: Rounds; four: Rounds }> {
    const one: Rounds = new Map();
    const rate = async (system: System, readers: number) => {
      dropCaches();
      const works = Array.from({ length: readers }, (_, part) => {
        const [name, ...rest] = share(String(part), String(readers));
        return [name, join(system.path, file), ...rest];
      });
      const done = await workTogether(system, works);
      return (count === "bytes" ? done.bytes / 2 ** 20 : done.operations) / seconds(done);
    };
    const four = await inRounds(systems, async (system) => {
      push(one, system.name, await rate(system, 1));
      return await rate(system, 4);
    });
    return { one, four };
  }
}

function mibPerSecond(done: Work): number {
  if (done.bytes !== LARGE_MIB * 2 ** 20) throw new Error(`${done.bytes} bytes instead of ${LARGE_MIB} MiB`);
  return LARGE_MIB / seconds(done);
}

function compareReaders(what: string, unit: string, { one, four }: { one: Rounds; four: Rounds }): void {
  const pair: Rounds = new Map([
    ["four", four.get(KERNEL)!],
    ["one", one.get(KERNEL)!],
  ]);
  compare(`four readers at once of ${what}, beside one`, unit, pair, "four", "one", 1);
}

await withDirectory(async (directory) => {
  chmodSync(directory, 0o755);
  const bench = new Bench(directory);
  try {
    await bench.run();
  } finally {
    bench.end();
  }
});
