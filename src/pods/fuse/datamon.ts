import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { DatamonError, ioError } from "../../cas/index.ts";
import type { Log } from "../log.ts";
import { quoteWord } from "../words.ts";

/**
 * Runs `datamon <words>` as a process of its own and passes on what it says, line by line.
 *
 * @returns the lines of its stdout
 * @throws DatamonError with what it gave as the reason where it fails
 */
export async function runDatamon(words: readonly string[], log: Log): Promise<string[]> {
  const entry = process.argv[1];
  if (entry === undefined) throw new DatamonError("unsupported", "a sidecar needs the datamon command");
  const command = `datamon ${words.map(quoteWord).join(" ")}`;
  log(`running ${command}`);
  const child = spawn(process.execPath, [...process.execArgv, entry, ...words], { stdio: ["ignore", "pipe", "pipe"] });
  const lines: string[] = [];
  const complaints: string[] = [];
  createInterface(child.stdout).on("line", (line) => {
    lines.push(line);
    log(`  ${line}`);
  });
  createInterface(child.stderr).on("line", (line) => {
    if (line.startsWith("datamon: ")) complaints.push(line.slice("datamon: ".length));
    log(`  ${line}`);
  });
  try {
    const [code, signal] = await once(child, "close");
    if (code === 0) return lines;
    const why = complaints.at(-1) ?? (signal === null ? `it ended with status ${code}` : `${signal} ended it`);
    const name = words.join(" ").split(" -")[0];
    throw new DatamonError("io", `${name}: ${why}`);
  } catch (error) {
    throw ioError(`run ${command}`, error);
  }
}
