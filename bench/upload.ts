/**
 * Upload beside restic: 20,000 files of 4 KiB and one of 512 MiB into an empty repository on the
 * same disk, then the same tree again unchanged. Runs are paired and their medians compared.
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { datamon, median, report, timed, withDirectory, writeRandomFile, writeSmallFiles } from "./harness.ts";

const rounds = Number(process.env.BENCH_ROUNDS ?? 3);

await withDirectory((directory) => {
  const tree = join(directory, "tree");
  writeSmallFiles(tree, 20_000, 4096);
  writeRandomFile(join(tree, "large.bin"), "large", 512 << 20);
  const first = { ours: [] as number[], restic: [] as number[] };
  const again = { ours: [] as number[], restic: [] as number[] };
  console.log("$ datamon bundle upload --repo bench --path TREE --message bench");
  console.log("$ restic backup TREE");
  for (let round = 0; round < rounds; round += 1) {
    const home = join(directory, "home");
    const repository = join(directory, "restic");
    const ours = { HOME: home };
    const restic = {
      RESTIC_PASSWORD: "bench",
      RESTIC_REPOSITORY: repository,
      XDG_CACHE_HOME: join(directory, "restic-cache"),
    };
    mkdirSync(home);
    timed([datamon, "repo", "create", "--repo", "bench", "--description", "bench"], ours);
    timed(["restic", "init"], restic);
    const upload = [datamon, "bundle", "upload", "--repo", "bench", "--path", tree, "--message", "bench"];
    first.restic.push(timed(["restic", "backup", tree], restic));
    first.ours.push(timed(upload, ours));
    again.restic.push(timed(["restic", "backup", tree], restic));
    again.ours.push(timed(upload, ours));
    for (const made of [home, repository, join(directory, "restic-cache")]) rmSync(made, { recursive: true });
  }
  compare("upload of 20,000 x 4 KiB and 512 MiB", first, 1.5);
  compare("the same again, unchanged", again, 4);
});

function compare(name: string, seconds: { ours: number[]; restic: number[] }, target: number): void {
  const ratio = median(seconds.ours.map((ours, round) => seconds.restic[round]! / ours));
  report({
    name,
    ours: median(seconds.ours),
    peer: median(seconds.restic),
    ratio,
    unit: "s",
    target: `at least ${target} times restic's speed`,
    met: ratio >= target,
  });
}
