import { type Command, Option } from "commander";
import { type ByteString, bytesOf, display, toBuffer } from "../cas/index.ts";

/** Adds `-o json` to a command. */
export function withOutput(command: Command): Command {
  return command.addOption(
    new Option("-o, --output <format>", "how to print").choices(["text", "json"]).default("text"),
  );
}

/** What `-o` says. */
export interface OutputOptions {
  output: "text" | "json";
}

/** Prints one line of data. */
export function printLine(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Prints one JSON value. Big integers are printed as strings, dates in ISO 8601. */
export function printJson(value: unknown): void {
  printLine(JSON.stringify(value, replaceBigInt, 2));
}

/** A name for JSON, which escapes on its own: as it is where it is UTF-8, as it is displayed otherwise. */
export function jsonName(name: ByteString): string {
  const text = toBuffer(name).toString("utf8");
  return bytesOf(text) === name ? text : display(name);
}

/**
 * Prints a listing of any length: lines as they come, or one JSON array written element by element,
 * so that memory does not grow with the listing.
 */
export async function printList<T>(
  items: AsyncIterable<T> | Iterable<T>,
  options: OutputOptions,
  line: (item: T) => string,
  json: (item: T) => unknown = (item) => item,
): Promise<void> {
  if (options.output === "text") {
    for await (const item of items) await write(`${line(item)}\n`);
    return;
  }
  let first = true;
  for await (const item of items) {
    await write(`${first ? "[\n  " : ",\n  "}${JSON.stringify(json(item), replaceBigInt)}`);
    first = false;
  }
  await write(first ? "[]\n" : "\n]\n");
}

/** Says something to a person, on stderr. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** `2019-03-12 22:10:24.159 -0700 PDT`, in the machine's time zone. */
export function formatTime(date: Date): string {
  const offset = -date.getTimezoneOffset();
  const shifted = new Date(date.getTime() + offset * 60_000).toISOString();
  const fraction = shifted.slice(19, 23).replace(/\.?0+$/, "");
  const sign = offset < 0 ? "-" : "+";
  const hours = String(Math.floor(Math.abs(offset) / 60)).padStart(2, "0");
  const minutes = String(Math.abs(offset) % 60).padStart(2, "0");
  return `${shifted.slice(0, 10)} ${shifted.slice(11, 19)}${fraction} ${sign}${hours}${minutes} ${zoneName(date)}`;
}

/** `1.5 GiB`, `312 B`. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** `12,345`. (Loading a locale for this takes longer than many commands.) */
export function formatCount(count: number): string {
  return String(count).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** `1 file`, `2 files`; `several` where an s does not make the plural. */
export function plural(count: number, one: string, several = `${one}s`): string {
  return `${formatCount(count)} ${count === 1 ? one : several}`;
}

function zoneName(date: Date): string {
  const parts = new Intl.DateTimeFormat("en-US", { timeZoneName: "short" }).formatToParts(date);
  return parts.find((part) => part.type === "timeZoneName")?.value ?? "UTC";
}

async function write(text: string): Promise<void> {
  if (process.stdout.write(text)) return;
  await new Promise<void>((resolve) => process.stdout.once("drain", resolve));
}

function replaceBigInt(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? value.toString() : value;
}
