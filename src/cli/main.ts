import { enableCompileCache } from "node:module";
import { homedir } from "node:os";
import { join } from "node:path";

// Compiling and stripping the sources anew at each start would cost more than most commands do.
enableCompileCache(join(homedir(), ".datamon", "cache", "compile"));

const { run } = await import("./program.ts");
process.exit(await run(process.argv.slice(2)));
