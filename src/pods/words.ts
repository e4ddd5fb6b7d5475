import { DatamonError } from "../cas/index.ts";

/**
 * Splits a command line into words as a POSIX shell does: blanks separate, single quotes keep all,
 * double quotes keep all but a backslash before `"`, `\`, `$`, a backquote or the end of a line, and outside of quotes a
 * backslash keeps the next character. Nothing is expanded.
 *
 * @throws DatamonError "usage" where a quote or a backslash is not followed by what it asks for
 */
export function splitWords(line: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  for (let at = 0; at < line.length; at++) {
    const char = line[at]!;
    if (/\s/.test(char)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (char === "'") {
      const end = line.indexOf("'", at + 1);
      if (end === -1) throw open(line, "a single quote");
      word = (word ?? "") + line.slice(at + 1, end);
      at = end;
    } else if (char === '"') {
      const { text, end } = doubleQuoted(line, at + 1);
      word = (word ?? "") + text;
      at = end;
    } else if (char === "\\") {
      at += 1;
      if (at === line.length) throw open(line, "a backslash");
      // A backslash at the end of a line joins it with the next one.
      if (line[at] !== "\n") word = (word ?? "") + line[at];
    } else {
      word = (word ?? "") + char;
    }
  }
  if (word !== undefined) words.push(word);
  return words;
}

/** A word as it is written on a command line, quoted where that is needed. */
export function quoteWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

function doubleQuoted(line: string, from: number): { text: string; end: number } {
  let text = "";
  for (let at = from; at < line.length; at++) {
    const char = line[at]!;
    if (char === '"') return { text, end: at };
    if (char === "\\" && at + 1 < line.length && '"\\$`\n'.includes(line[at + 1]!)) {
      at += 1;
      if (line[at] !== "\n") text += line[at];
    } else {
      text += char;
    }
  }
  throw open(line, "a double quote");
}

function open(line: string, what: string): DatamonError {
  return new DatamonError("usage", `${what} is left open in: ${line}`);
}
