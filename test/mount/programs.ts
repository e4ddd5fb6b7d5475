/** Programs that ask much of a file system: what they do, how they go on after they were cut off, and whether all is well. */

import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chownSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import Database from "better-sqlite3";
import { noise } from "./reading.ts";

/** The sizes that a release is tried with, instead of those of every day. */
export const FULL = process.env.DATAMON_TEST_FULL === "1";

/** Where a program works. */
export interface Workplace {
  /** A directory on the mount. */
  readonly inside: string;
  /** A directory on the disk. */
  readonly outside: string;
}

export interface Program {
  readonly name: string;
  /** Why it cannot run here; undefined where it can. */
  readonly missing: string | undefined;
  /** Makes what is needed beforehand on the disk. */
  prepare?(place: Workplace): void;
  /** Starts the work; ends with status 0 where all went well. */
  work(place: Workplace): ChildProcess;
  /** After the work was cut off and the mount is back: what its user would do, until the work is done. */
  recover(place: Workplace): void | Promise<void>;
  /** Throws where anything is not as it should be. */
  check(place: Workplace): void | Promise<void>;
}

/** Names those that are not installed; undefined where all are. */
export function missing(...programs: string[]): string | undefined {
  const absent = programs.filter((name) => spawnSync(name, ["--version"], { stdio: "ignore" }).status !== 0);
  return absent.length === 0 ? undefined : `not installed: ${absent.join(", ")}`;
}

const ENVIRONMENT = { ...process.env, GIT_CONFIG_GLOBAL: "/dev/null", GIT_CONFIG_NOSYSTEM: "1" };

/** Runs a program that is to succeed and returns what it printed. */
export function run(directory: string, program: string, ...args: string[]): string {
  return execFileSync(program, args, { cwd: directory, env: ENVIRONMENT, encoding: "utf8", stdio: "pipe" });
}

/** Starts a shell script; `$1` and so on are `args`. */
function shell(directory: string, script: string, ...args: string[]): ChildProcess {
  return spawn("sh", ["-ec", script, "sh", ...args], {
    cwd: directory,
    env: ENVIRONMENT,
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
}

async function succeeded(child: ChildProcess): Promise<void> {
  let said = "";
  child.stderr?.on("data", (text) => {
    said += text;
  });
  await once(child, "exit");
  await endWork(child);
  assert.deepEqual([child.exitCode, child.signalCode], [0, null], said);
}

/** A tree of so many small files, with links of both kinds, an empty directory, a file with a hole and a large one. */
export function makeTree(directory: string, files: number): void {
  const each = 50;
  for (let index = 0; index < files / each; index++) {
    mkdirSync(join(directory, `d${index}`), { recursive: true });
    for (let file = 0; file < each; file++) {
      writeFileSync(join(directory, `d${index}/f${file}`), noise(index * each + file, 10 + file * 37));
    }
  }
  mkdirSync(join(directory, "empty"), { mode: 0o2750 });
  symlinkSync("d1/f1", join(directory, "soft"));
  execFileSync("ln", [join(directory, "d1/f1"), join(directory, "hard")]);
  execFileSync("sh", ["-c", 'truncate -s 3M "$1/sparse" && printf end >> "$1/sparse"', "sh", directory]);
  writeFileSync(join(directory, "large"), noise(7, FULL ? 200_000_000 : 5_000_001));
}

const TREE = FULL ? 10_000 : 500;

const GIT_USER = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "gc.auto=0"];
const GIT_ROUNDS = FULL ? 20 : 4;

/** Goes on from whatever round the clone has come to. */
const GIT_WORK = `
  git="git -c user.name=Somebody -c user.email=somebody@example.org -c gc.auto=0"
  [ -d clone ] || $git clone --quiet --no-local "$1" clone
  cd clone
  round=$($git rev-list --count HEAD)
  while [ "$round" -le "$2" ]; do
    echo "$round" > d2/f2; echo "$round" >> log; rm -f "d3/f$round"
    $git add --all; $git commit --quiet --message "round $round"
    [ $((round % 3)) -ne 0 ] || $git repack --quiet -a -d
    round=$((round + 1))
  done
  $git gc --quiet
  $git fsck --full --strict
`;

const git: Program = {
  name: "git",
  missing: missing("git"),
  prepare({ outside }) {
    const origin = join(outside, "origin");
    makeTree(origin, TREE);
    run(origin, "git", "init", "--quiet");
    run(origin, "git", "add", "--all");
    run(origin, "git", ...GIT_USER, "commit", "--quiet", "--message", "origin");
  },
  work: ({ inside, outside }) => shell(inside, GIT_WORK, join(outside, "origin"), String(GIT_ROUNDS)),
  async recover(place) {
    const clone = join(place.inside, "clone");
    if (spawnSync("git", ["rev-parse", "--verify", "HEAD^{tree}"], { cwd: clone, stdio: "ignore" }).status !== 0) {
      // Git does not go on with a clone that was cut off.
      rmSync(clone, { recursive: true, force: true });
    } else {
      run(clone, "find", ".git", "-name", "*.lock", "-delete");
      run(clone, "git", "fsck", "--full", "--strict");
      run(clone, "git", "reset", "--quiet", "--hard");
      run(clone, "git", "clean", "--quiet", "-d", "--force");
    }
    await succeeded(git.work(place));
  },
  check({ inside, outside }) {
    const clone = join(inside, "clone");
    run(clone, "git", "fsck", "--full", "--strict");
    assert.equal(run(clone, "git", "status", "--porcelain"), "");
    assert.equal(run(clone, "git", "rev-list", "--count", "HEAD").trim(), String(GIT_ROUNDS + 1));
    run(join(outside, "origin"), "git", "fetch", "--quiet", clone);
  },
};

const SQLITE_ROWS = FULL ? 100_000 : 3000;

/** Commits a hundred rows at a time until there are enough, changing some as it goes, and prints how many there are. */
const SQLITE_WORK = `
  import Database from "better-sqlite3";
  const [file, mode, enough] = process.argv.slice(1);
  const database = new Database(file);
  if (database.pragma("journal_mode = " + mode, { simple: true }) !== mode) process.exit(3);
  database.pragma("synchronous = FULL");
  database.exec("CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, text TEXT)");
  database.exec("CREATE INDEX IF NOT EXISTS by_text ON entry (text)");
  const insert = database.prepare("INSERT INTO entry (text) VALUES (?)");
  const change = database.prepare("UPDATE entry SET text = text || '!' WHERE id % 97 = ?");
  const count = database.prepare("SELECT count(*) FROM entry").pluck();
  const some = database.transaction((from) => {
    for (let row = from; row < from + 100; row++) insert.run(String((row * 7919) % 1000).repeat(30));
    if (from % 1000 === 0) change.run(from / 1000 % 97);
  });
  for (let rows = count.get(); rows < Number(enough); rows = count.get()) {
    some(rows);
    process.stdout.write(rows + 100 + "\\n");
  }
  database.close();
`;

function sqlite(mode: string): Program {
  let committed = 0;
  const file = ({ inside }: Workplace): string => join(inside, `${mode}.sqlite`);
  const assertWhole = (place: Workplace, rows: number): void => {
    const database = new Database(file(place));
    assert.equal(database.pragma("integrity_check", { simple: true }), "ok");
    const found = database.prepare("SELECT count(*) FROM entry").pluck().get() as number;
    assert.ok(found % 100 === 0 && found >= rows, `${found} rows, ${rows} of them known to be committed`);
    database.close();
  };
  const program: Program = {
    name: `SQLite in journal mode ${mode}`,
    missing: undefined,
    work(place) {
      const args = ["--input-type=module", "-e", SQLITE_WORK, file(place), mode, String(SQLITE_ROWS)];
      const child = spawn(process.execPath, args, {
        cwd: import.meta.dirname,
        stdio: ["ignore", "pipe", "pipe"],
        detached: true,
      });
      committed = 0;
      child.stdout.setEncoding("utf8").on("data", (text: string) => {
        committed = Number(text.trimEnd().split("\n").at(-1));
      });
      return child;
    },
    async recover(place) {
      if (existsSync(file(place)) && committed > 0) assertWhole(place, committed);
      await succeeded(program.work(place));
    },
    check: (place) => assertWhole(place, SQLITE_ROWS),
  };
  return program;
}

const tar: Program = {
  name: "tar",
  missing: missing("tar", "diff"),
  prepare({ outside }) {
    makeTree(join(outside, "tree"), TREE);
  },
  work: ({ inside, outside }) =>
    shell(
      inside,
      'tar --create --sparse --file archive.tar --directory "$1" tree; tar --extract --sparse --file archive.tar',
      outside,
    ),
  recover: (place) => succeeded(tar.work(place)),
  check({ inside, outside }) {
    run(inside, "tar", "--compare", "--file", "archive.tar");
    run(outside, "tar", "--compare", "--file", join(inside, "archive.tar"));
    run(outside, "diff", "--recursive", "--no-dereference", "tree", join(inside, "tree"));
    run(inside, "tar", "--create", "--sparse", "--file", join(outside, "back.tar"), "tree");
    run(outside, "tar", "--compare", "--file", "back.tar");
  },
};

/** What would have to be done to make `to` like `from`. */
function differences(from: string, to: string): string {
  return run("/", "rsync", "-aHAX", "--checksum", "--dry-run", "--itemize-changes", "--delete", `${from}/`, `${to}/`);
}

const rsync: Program = {
  name: "rsync",
  missing: missing("rsync"),
  prepare({ outside }) {
    makeTree(join(outside, "tree"), TREE);
  },
  work: ({ inside, outside }) => {
    const [tree, copy, back] = [join(outside, "tree"), join(inside, "copy"), join(outside, "back")];
    const script = 'rsync -aHAX --delete "$1/" "$2/"; rsync -aHAX --delete "$2/" "$3/"';
    return shell("/", script, tree, copy, back);
  },
  recover: (place) => succeeded(rsync.work(place)),
  check({ inside, outside }) {
    assert.equal(differences(join(outside, "tree"), join(inside, "copy")), "");
    assert.equal(differences(join(inside, "copy"), join(outside, "back")), "");
    assert.equal(differences(join(outside, "tree"), join(outside, "back")), "");
  },
};

const FIO = ["--name=verified", "--filename=fio", "--bs=16k", `--size=${FULL ? "1g" : "16m"}`, "--ioengine=psync"];
const FIO_VERIFY = ["--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--output=/dev/null"];

const fio: Program = {
  name: "fio",
  missing: missing("fio"),
  work: ({ inside }) =>
    shell(inside, 'exec fio "$@"', ...FIO, ...FIO_VERIFY, "--rw=randwrite", "--fsync=64", "--do_verify=1"),
  recover: (place) => succeeded(fio.work(place)),
  check({ inside }) {
    run(inside, "fio", ...FIO, ...FIO_VERIFY, "--rw=read");
  },
};

const POSTGRES = "/usr/lib/postgresql/15/bin";
/** PostgreSQL does not run as root. */
const NOBODY = 65534;

/** Begins and ends a server over the directory `pg`, whose sockets and log are in `$1`. */
const POSTGRES_SERVER = `
  PATH=${POSTGRES}:$PATH; export PGHOST=$1 PGDATABASE=postgres
  begin() {
    # Processes of a server that died keep its memory for a moment.
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
      postgres -D pg -k "$1" -c listen_addresses= -c max_wal_size=64MB >> "$1/log" 2>&1 & server=$!
      while kill -0 $server 2> /dev/null; do
        if pg_isready --quiet; then return; fi
        sleep 0.1
      done
      sleep 1
    done
    tail -n 20 "$1/log" >&2; exit 1
  }
  end() { kill -INT $server; wait $server; }
`;

const POSTGRES_WORK = `
  if [ ! -e pg/complete ]; then
    rm -rf pg; initdb --pgdata pg --data-checksums --auth trust > /dev/null; touch pg/complete
  fi
  begin "$1"
  if ! psql --quiet --command "SELECT FROM filled" > /dev/null 2>&1; then
    pgbench --initialize --quiet --scale $2
    psql --quiet --command "CREATE TABLE filled ()"
  fi
  pgbench --client 4 --time $3 --log --log-prefix "$1/transactions" > /dev/null
  end
`;

const POSTGRES_CHECK = `
  begin "$1"
  same="SELECT count(DISTINCT sum) FROM (SELECT sum(abalance) FROM pgbench_accounts
    UNION ALL SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
    UNION ALL SELECT sum(delta) FROM pgbench_history) AS sums"
  value() { psql --quiet --tuples-only --no-align --command "$1"; }
  [ "$(value "$same")" = 1 ] || { echo "sums differ" >&2; exit 1; }
  known=$(cat "$1"/transactions.* | wc -l); found=$(value "SELECT count(*) FROM pgbench_history")
  [ "$found" -ge "$known" ] || { echo "$found transactions of $known" >&2; exit 1; }
  pg_amcheck --all --install-missing
  end
  pg_checksums --check --pgdata pg > /dev/null
`;

function postgresScript({ inside, outside }: Workplace, script: string): ChildProcess {
  const [directory, sockets] = [join(inside, "database"), join(outside, `sockets of ${basename(inside)}`)];
  for (const made of [directory, sockets]) {
    mkdirSync(made, { recursive: true });
    chownSync(made, NOBODY, NOBODY);
  }
  const [scale, seconds] = FULL ? [10, 30] : [1, 2];
  return spawn("sh", ["-ec", POSTGRES_SERVER + script, "sh", sockets, String(scale), String(seconds)], {
    uid: NOBODY,
    gid: NOBODY,
    cwd: directory,
    stdio: ["ignore", "ignore", "pipe"],
    detached: true,
  });
}

const postgres: Program = {
  name: "PostgreSQL",
  missing:
    missing(join(POSTGRES, "postgres")) ??
    (process.getuid?.() === 0 ? undefined : "needs root to be somebody else for PostgreSQL"),
  work: (place) => postgresScript(place, POSTGRES_WORK),
  recover: (place) => succeeded(postgres.work(place)),
  check: (place) => succeeded(postgresScript(place, POSTGRES_CHECK)),
};

export const PROGRAMS: readonly Program[] = [git, sqlite("wal"), sqlite("delete"), postgres, tar, rsync, fio];

/** Ends what a program started, if anything of it is left. */
export async function endWork(child: ChildProcess): Promise<void> {
  const ended = child.exitCode !== null || child.signalCode !== null ? undefined : once(child, "exit");
  try {
    process.kill(-child.pid!, "SIGKILL");
  } catch {
    // All of it has ended.
  }
  await ended;
}
