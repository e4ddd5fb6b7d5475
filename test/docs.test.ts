/** The documentation says what the code does, as far as that can be compared. */

import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { runInNewContext } from "node:vm";
import type { Command } from "commander";
import { blobKey, bytesOf, ContentHasher, encodeFrame, GEAR, hashOf } from "../src/cas/index.ts";
import { buildProgram } from "../src/cli/program.ts";
import { DirectoryHasher } from "../src/meta/catalog/hashing.ts";
import type { Inode } from "../src/meta/catalog/model.ts";
import { TABLES } from "../src/meta/catalog/schema.ts";
import { encodeXattrs } from "../src/meta/catalog/xattrs.ts";

const ROOT = join(import.meta.dirname, "..");
const MIB = 1024 * 1024;

function read(path: string): string {
  return readFileSync(join(ROOT, path), "utf8");
}

test("README lists every command with its name, and no other", () => {
  const listed = [...read("README.md").matchAll(/^\| `(datamon [a-z ]+)` \|/gm)].map(([, command]) => command);
  assert.deepEqual(listed.toSorted(), [...commandsOf(buildProgram(), "")].toSorted());
});

function* commandsOf(command: Command, above: string): Generator<string> {
  const path = above === "" ? command.name() : `${above} ${command.name()}`;
  // Commander has no question for whether a command does something itself.
  const { _actionHandler } = command as unknown as { _actionHandler?: unknown };
  if (_actionHandler) yield path;
  for (const child of command.commands) yield* commandsOf(child, path);
}

test("the constants of the format are those of the code", () => {
  const rows = [...read("docs/format.md").matchAll(/^\| `([A-Z_]+)` \| ([^|]+) \| (src\/\S+) \|/gm)];
  assert.ok(rows.length > 30, "the table of constants was found");
  const known: Record<string, number | bigint> = {};
  for (const [, name, value, file] of rows) {
    const expression = new RegExp(`^(?:export )?const ${name} = ([^;]+);$`, "m").exec(read(file!))?.[1];
    assert.ok(expression !== undefined, `${name} in ${file}`);
    // Arithmetic over constants that stand above in the table.
    const actual: number | bigint = runInNewContext(expression, { ...known });
    known[name!] = actual;
    // Masks are signed in the code.
    assert.equal(
      Number(actual < 0 ? Number(actual) >>> 0 : actual),
      Number(value!.replaceAll(",", "")),
      `${name} of ${file}`,
    );
  }
});

test("the schema of catalogs is the one of the code", () => {
  const [, sql] = /```sql\n([^`]+)```/.exec(read("docs/format.md"))!;
  assert.deepEqual(sql!.trimEnd().split("\n"), TABLES);
});

test("the vectors of the format are what the code makes", async () => {
  const format = read("docs/format.md");
  const content = Buffer.from("datamon");
  const zeros = (length: number): string => new ContentHasher().update(Buffer.alloc(length)).digest();
  const gear = (byte: number): string => (GEAR[byte]! >>> 0).toString(16).padStart(8, "0");
  const vectors = [
    Buffer.concat(await encodeFrame(content)).toString("hex"),
    hashOf(content),
    zeros(MIB),
    zeros(20 * MIB),
    gear(0),
    gear(1),
    gear(255),
    (-GEAR[0]! >>> 0).toString(16).padStart(8, "0"),
    hashOf(Buffer.from(GEAR.buffer)),
    encodeXattrs(XATTRS)!.toString("hex"),
    new DirectoryHasher().digest(),
    directoryHash(),
  ];
  for (const vector of vectors) assert.ok(format.includes(`\`${vector}\``), vector);
  assert.equal(blobKey("ab".repeat(32)), `blobs/ab/${"ab".repeat(32)}`);
});

const XATTRS = new Map([[bytesOf("user.a"), Buffer.from("1")]]);

/** Of the directory that docs/format.md describes. */
function directoryHash(): string {
  const hasher = new DirectoryHasher();
  const common = { nlink: 1, target: undefined, hash: undefined };
  const file: Inode = {
    ...common,
    ino: 2,
    mode: 0o100644,
    uid: 1000,
    gid: 1000,
    mtimeNs: 1_000_000_001n,
    size: 7,
    hash: hashOf(Buffer.from("datamon")),
    xattrs: XATTRS,
  };
  hasher.add({ name: bytesOf("f"), inode: file });
  const target = bytesOf("f");
  const link: Inode = { ...common, ino: 3, mode: 0o120777, uid: 0, gid: 0, mtimeNs: 0n, size: 1, target };
  hasher.add({ name: bytesOf("l"), inode: link });
  return hasher.digest();
}

test("every promise has an id of its own and tests that exist", () => {
  const [promises] = read("docs/semantics.md").split("\n## Limits\n");
  const ids = new Set<string>();
  for (const promise of promises!.split(/^- \*\*/m).slice(1)) {
    const [, id, rest] = /^([A-Z]-\d+)\*\* (.+)$/s.exec(promise)!;
    assert.ok(!ids.has(id!), `${id} stands there once`);
    ids.add(id!);
    const cited = [...rest!.matchAll(/`(test\/[\w./-]+)`\s+"([^"]+)"/g)];
    assert.ok(cited.length > 0, `${id} names a test`);
    for (const [, file, name] of cited) {
      assert.ok(existsSync(join(ROOT, file!)), `${id}: ${file}`);
      const text = read(file!);
      assert.ok(text.includes(`"${name}"`) || text.includes(`\`${name}\``), `${id}: "${name}" in ${file}`);
    }
  }
  assert.ok(ids.size > 40, "the promises were found");
});

test("links between the pages lead somewhere", () => {
  const pages = ["README.md", "CHANGELOG.md", ...readdirSync(join(ROOT, "docs")).map((name) => `docs/${name}`)];
  for (const page of pages) {
    for (const [, target] of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue;
      const [path, anchor] = target!.split("#") as [string, string | undefined];
      const file = path === "" ? page : join(page, "..", path);
      assert.ok(existsSync(join(ROOT, file)), `${page}: ${target}`);
      if (anchor === undefined) continue;
      const anchors = [...read(file).matchAll(/^#+ (.+)$/gm)].map(([, title]) => anchorOf(title!));
      assert.ok(anchors.includes(anchor), `${page}: ${target}`);
    }
  }
});

function anchorOf(title: string): string {
  return title
    .toLowerCase()
    .replace(/[^\w\- ]/g, "")
    .replaceAll(" ", "-");
}
