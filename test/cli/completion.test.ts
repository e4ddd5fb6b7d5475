import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";

const LAUNCHER = fileURLToPath(new URL("../../scripts/datamon", import.meta.url));

let directory: string;
const scripts = new Map<string, string>();

before(() => {
  directory = mkdtempSync(join(tmpdir(), "datamon-completion-"));
  for (const shell of ["bash", "zsh", "fish"]) {
    const file = join(directory, shell);
    writeFileSync(file, execFileSync(LAUNCHER, ["completion", shell], { env: { ...process.env, HOME: directory } }));
    scripts.set(shell, file);
  }
});
after(() => rmSync(directory, { recursive: true, force: true }));

/** Whether a shell is on this machine: the skip of its tests. */
function unless(shell: string): { skip: string | false } {
  return { skip: spawnSync(shell, ["-c", "exit 0"]).error === undefined ? false : `${shell} is not installed` };
}

function scriptOf(shell: string): string {
  return scripts.get(shell) as string;
}

/** What a command line ends in, and what completes it. */
const CASES: [line: string, expected: string[]][] = [
  ["datamon bun", ["bundle"]],
  ["datamon bundle li", ["list"]],
  ["datamon bundle list fi", ["files"]],
  ["datamon bundle list files --lab", ["--label"]],
  ["datamon bundle upload --repo birds --mess", ["--message"]],
  ["datamon mount l", ["list"]],
  ["datamon completion --he", ["--help"]],
];

describe("completion in bash", () => {
  it("is a valid script", () => {
    execFileSync("bash", ["-n", scriptOf("bash")]);
  });

  for (const [line, expected] of CASES) {
    it(`completes ${line}`, () => {
      const program = `source "$1"; COMP_WORDS=($2); COMP_CWORD=$((\${#COMP_WORDS[@]} - 1)); _datamon; printf '%s\\n' "\${COMPREPLY[@]}"`;
      const found = execFileSync("bash", ["-c", program, "bash", scriptOf("bash"), line], { encoding: "utf8" });
      assert.deepEqual(found.split("\n").filter(Boolean), expected);
    });
  }
});

describe("completion in zsh", () => {
  it("is a valid zsh script", unless("zsh"), () => {
    execFileSync("zsh", ["-n", scriptOf("zsh")]);
  });
});

describe("completion in fish", () => {
  it("is a valid fish script", unless("fish"), () => {
    execFileSync("fish", ["--no-config", "-n", scriptOf("fish")]);
  });

  it("completes command lines in fish", unless("fish"), () => {
    for (const [line, expected] of CASES) {
      const program = 'source $argv[1]; complete -C "$argv[2]"';
      const found = execFileSync("fish", ["--no-config", "-c", program, scriptOf("fish"), line], { encoding: "utf8" });
      assert.deepEqual(found.split("\n").filter(Boolean), expected, line);
    }
  });
});
