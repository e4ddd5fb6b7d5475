import type { Command } from "commander";
import { cacheDirectoryOf, homeDirectory, openConfiguredContext, wholeNumber } from "./context.ts";
import { printLine } from "./output.ts";
import { tellingOf, withSidecarFlags } from "./sidecar.ts";

interface PostgresFlags {
  stream?: boolean;
  dataDir?: string;
  scratchDir?: string;
  binDir?: string;
  user: string;
  sleep?: boolean;
  timeout?: number;
  grace?: number;
}

/** `datamon sidecar postgres`. */
export function registerPostgres(sidecar: Command): void {
  withSidecarFlags(sidecar.command("postgres"))
    .description("run PostgreSQL databases for the application beside, and save them: id , repo , bundle , label")
    .option("--stream", "run on writable mounts of the sources instead of downloads of them")
    .option("--data-dir <dir>", "where the data directories are (default: below the directory for temporary files)")
    .option("--scratch-dir <dir>", "where streamed databases keep their changes (default: ~/.datamon/scratch)")
    .option("--bin-dir <dir>", "where postgres and its tools are (default: by PATH, or /usr/lib/postgresql/*/bin)")
    .option("--user <name>", "whom PostgreSQL runs as where datamon is root", "postgres")
    .option("--grace <seconds>", "after SIGTERM, wait so long for the application's word (default: 20)", wholeNumber(0))
    .addHelpText(
      "after",
      `
What to run is said in the environment. dm_pg_opts: c (coordination directory), V (true: a fresh database in the
place of one of another version), S (sleep at the end), d (data directories). dm_pg_db_<id>, one for each
database: p (port), r (repo), m (message), l (label); for a database that is restored sr (repo) with either
sl (label) or sb (bundle), and st (stream). Without r the database is discarded in the end. Both begin with
the separators of entries and of keys and values. Or else a YAML file, $SIDECAR_CONFIG.

Example:
  dm_pg_opts=';:c:/coord' \\
  dm_pg_db_birds=';:p:5432;sr:birds-db;sl:v1;r:birds-db;m:counted again;l:v2' datamon sidecar postgres`,
    )
    .action(async (flags: PostgresFlags) => {
      const { coordinationOf, postgresParams, runPostgresSidecar } = await import("../pods/index.ts");
      const asked = postgresParams(process.env, flags.stream);
      const params = await tellingOf(await coordinationOf(process.env), "postgres", asked);
      process.exitCode = await runPostgresSidecar({
        params: {
          ...params,
          sleep: params.sleep || flags.sleep === true,
          ...(flags.dataDir !== undefined && { dataRoot: flags.dataDir }),
        },
        openContext: openConfiguredContext,
        home: homeDirectory(),
        scratchDirectory: flags.scratchDir,
        binDirectory: flags.binDir,
        user: flags.user,
        timeout: flags.timeout,
        grace: flags.grace,
        cacheDirectory: ({ config }) => cacheDirectoryOf(config.cache),
        onSaved: ({ id, repo, bundle, label }) => printLine([id, repo, bundle, label ?? "-"].join(" , ")),
      });
    });
}
