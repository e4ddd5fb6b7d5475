import type { Command, Option } from "commander";
import { DatamonError } from "../cas/index.ts";
import { printLine } from "./output.ts";

/** `datamon completion bash|zsh|fish`. */
export function registerCompletion(program: Command): void {
  program
    .command("completion")
    .argument("<shell>", "bash, zsh or fish")
    .description("print a completion script for a shell")
    .addHelpText(
      "after",
      `
Examples:
  source <(datamon completion bash)
  datamon completion zsh > "\${fpath[1]}/_datamon"
  datamon completion fish > ~/.config/fish/completions/datamon.fish`,
    )
    .action((shell: string) => {
      const words = [...completions(program, [])];
      switch (shell) {
        case "bash":
          return printLine(bashScript(words));
        case "zsh":
          return printLine(`#compdef datamon\nautoload -U +X bashcompinit && bashcompinit\n${bashScript(words)}`);
        case "fish":
          return printLine(fishScript(words));
        default:
          throw new DatamonError("usage", `no completion for the shell ${shell}`, { hint: "Shells: bash, zsh, fish." });
      }
    });
}

/** For a command path (without `datamon`), the words that may follow it. */
interface Completion {
  path: string;
  commands: string[];
  flags: string[];
}

function* completions(command: Command, path: string[]): Generator<Completion> {
  const visible = command.createHelp().visibleCommands(command);
  yield {
    path: path.join(" "),
    commands: visible.map((child) => child.name()),
    flags: command.createHelp().visibleOptions(command).flatMap(flagsOf),
  };
  for (const child of visible) {
    if (command.commands.includes(child)) yield* completions(child, [...path, child.name()]);
  }
}

function flagsOf(option: Option): string[] {
  return [option.long, option.short].filter((flag): flag is string => flag !== undefined && flag !== null);
}

function bashScript(words: Completion[]): string {
  const cases = words.map(
    ({ path, commands, flags }) => `    "${path}") words="${[...commands, ...flags].join(" ")}" ;;`,
  );
  return `_datamon() {
  local current="\${COMP_WORDS[COMP_CWORD]}" path="" word words=""
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in -*) break ;; esac
    path="\${path:+$path }$word"
  done
  case "$path" in
${cases.join("\n")}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _datamon datamon`;
}

function fishScript(words: Completion[]): string {
  const lines = [
    "function __datamon_words",
    "  set -l words (commandline -opc)",
    '  echo "$words[2..]"',
    "end",
    "complete -c datamon -e",
  ];
  for (const { path, commands, flags } of words) {
    const here = `test (__datamon_words) = '${path}'`;
    const below = path === "" ? here : `string match -q -- '${path}*' (__datamon_words)`;
    if (commands.length > 0) lines.push(`complete -c datamon -f -n "${here}" -a "${commands.join(" ")}"`);
    for (const flag of flags) {
      const form = flag.startsWith("--") ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`;
      lines.push(`complete -c datamon -n "${below}" ${form}`);
    }
  }
  return lines.join("\n");
}
