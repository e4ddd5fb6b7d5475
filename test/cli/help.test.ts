import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Command } from "commander";
import { buildProgram } from "../../src/cli/program.ts";

/** Every command that does something, with the words that lead to it. */
function* commands(command: Command, path: string[]): Generator<{ command: Command; path: string }> {
  for (const child of command.commands) {
    const words = [...path, child.name()];
    if (child.commands.length === 0 || child.options.length > 0) yield { command: child, path: words.join(" ") };
    yield* commands(child, words);
  }
}

/** The help as it is printed. */
function helpOf(command: Command): string {
  let text = "";
  command.configureOutput({ writeOut: (part) => (text += part) });
  command.outputHelp();
  return text;
}

/** Words of a command line as a shell splits them, comments and redirections left out. */
function wordsOf(line: string): string[] {
  const words = line.replace(/\s#.*$/, "").match(/(?:"[^"]*"|'[^']*'|[^\s"'])+/g) ?? [];
  const end = words.findIndex((word) => /^[>|&]/.test(word));
  return (end === -1 ? words : words.slice(0, end)).map((word) => word.replaceAll(/["']/g, ""));
}

const all = [...commands(buildProgram(), [])];

describe("the help", () => {
  it("knows all commands", () => {
    assert.deepEqual(
      all.map(({ path }) => path).sort(),
      [
        ...["config create", "config show"],
        ...["repo create", "repo list", "repo get", "repo delete"],
        ...["bundle upload", "bundle list", "bundle list files", "bundle get", "bundle download"],
        ...["bundle download file", "bundle diff", "bundle update", "bundle mount", "bundle mount new"],
        ...["label set", "label get", "label list", "label delete"],
        ...[
          "mount",
          "mount list",
          "mount status",
          "unmount",
          "commit",
          "scratch list",
          "scratch commit",
          "scratch discard",
        ],
        ...["cache status", "cache clear", "cache warm", "completion", "version", "datamover", "backup"],
        ...["store check", "store repair"],
        ...["sidecar fuse", "sidecar postgres", "sidecar wrap"],
      ].sort(),
    );
  });

  for (const { command, path } of all) {
    it(`of ${path} has an example that the command takes`, () => {
      const examples = /\nExamples?:\n((?: {2}.*\n?)+)/.exec(helpOf(command))?.[1];
      assert.ok(examples, "there is an example");
      const lines = examples.trim().split("\n").map(wordsOf);
      assert.ok(
        lines.some((words) => words.join(" ").includes(`datamon ${path}`)),
        "an example of the command itself",
      );
      // What follows this one is for the script that it becomes.
      if (path === "sidecar wrap") return;
      for (const words of lines) {
        const known = new Set(all.flatMap((one) => one.command.options.flatMap(({ long, short }) => [long, short])));
        for (const word of words) if (word.startsWith("-")) assert.ok(known.has(word), `${word} in ${words.join(" ")}`);
      }
    });
  }

  it("describes every flag", () => {
    for (const { command, path } of all) {
      for (const option of command.options) {
        if (!option.hidden) assert.notEqual(option.description, "", `${path} ${option.flags}`);
      }
    }
  });
});
