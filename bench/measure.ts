/** Measuring several systems side by side, and telling what came of it. */
import { readFileSync, writeFileSync } from "node:fs";
import { loadavg } from "node:os";
import { amount, type Figure, median, report } from "./harness.ts";
import type { System } from "./systems.ts";

export const ROUNDS: number = Number(process.env.BENCH_ROUNDS ?? 3);

/** What one row measured: for each system its figure in each round. */
export type Rounds = Map<string, number[]>;

/** Every figure with a target so far. */
const figures: Figure[] = [];

/** One figure of every system in every round; who comes first rotates. */
export async function inRounds(
  systems: readonly System[],
  measure: (system: System, round: number) => number | Promise<number>,
): Promise<Rounds> {
  const rounds: Rounds = new Map(systems.map(({ name }) => [name, []]));
  for (let round = 0; round < ROUNDS; round += 1) {
    for (let turn = 0; turn < systems.length; turn += 1) {
      const system = systems[(turn + round) % systems.length]!;
      push(rounds, system.name, await measure(system, round));
    }
  }
  return rounds;
}

export function push(rounds: Rounds, name: string, value: number): void {
  const values = rounds.get(name);
  if (values === undefined) rounds.set(name, [value]);
  else values.push(value);
}

export function seconds({ began, ended }: { began: number; ended: number }): number {
  return (ended - began) / 1000;
}

/** Drops the page cache, and with it what the kernel knows of names and attributes. Only root may. */
export function dropCaches(): void {
  writeFileSync("/proc/sys/vm/drop_caches", "3");
}

export function availableGibibytes(): number {
  return Number(/MemAvailable:\s+(\d+)/.exec(readFileSync("/proc/meminfo", "utf8"))![1]) / 2 ** 20;
}

/** The most memory that a process has had resident. */
export function peakMebibytes(pid: number): number {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024;
}

/** Prints the figures of every system: the median, and the least and the most. */
export function print(title: string, unit: string, rounds: Rounds): void {
  console.log(`\n${title} (${unit}, median of ${ROUNDS}, load ${loadavg()[0]!.toFixed(1)})`);
  for (const [name, values] of rounds) {
    const spread = `${amount(Math.min(...values))} – ${amount(Math.max(...values))}`;
    console.log(`  ${name.padEnd(32)} ${amount(median(values)).padStart(12)}   ${spread}`);
  }
}

/** Reports a figure by itself. */
export function judge(
  name: string,
  unit: string,
  values: number[],
  target: string,
  met: (value: number) => boolean,
): void {
  const ours = median(values);
  tell({ name, ours, unit, target, met: met(ours) });
}

/** Reports one system beside another, where both were measured: `atLeast` so many times its rate. */
export function compare(
  name: string,
  unit: string,
  rounds: Rounds,
  who: string,
  peerName: string,
  atLeast: number,
): void {
  const [ours, peer] = [rounds.get(who), rounds.get(peerName)];
  if (ours === undefined || peer === undefined) {
    console.log(`skipped: ${name}. There is no figure of ${ours === undefined ? who : peerName}.`);
    return;
  }
  const ratio = median(ours.map((value, round) => value / peer[round]!));
  const target = `at least ${atLeast} times`;
  tell({ name, ours: median(ours), peer: median(peer), ratio, unit, target, met: ratio >= atLeast });
}

function tell(figure: Figure): void {
  figures.push(figure);
  report(figure);
}

/** Prints every figure that had a target once more, together. */
export function summarize(): void {
  if (figures.length === 0) return;
  console.log("\ntogether");
  for (const { met, name, ours, ratio, unit, target } of figures) {
    const what = ratio === undefined ? `${amount(ours)} ${unit}` : `${ratio.toFixed(2)} times`;
    console.log(`  ${met ? "met " : "MISS"} ${name.padEnd(56)} ${what.padStart(20)}   ${target}`);
  }
}
