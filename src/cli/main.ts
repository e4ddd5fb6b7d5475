import { mkdirSync } from "node:fs";
import { enableCompileCache } from "node:module";
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";

// Compiling and stripping the sources anew at each start would cost more than most commands do.
try {
  const home = homedir();
  if (isAbsolute(home)) {
    const own = join(home, ".datamon");
    // Whatever of the user's data comes to lie below it is nobody else's to read.
    mkdirSync(own, { recursive: true, mode: 0o700 });
    enableCompileCache(join(own, "cache", "compile"));
  }
} catch {
  // Without a home directory that can be written to, each start compiles anew.
}

const { run } = await import("./program.ts");
const status = await run(process.argv.slice(2));
// What is still on its way into a pipe would be lost.
await new Promise((resolve) => process.stdout.write("", resolve));
process.exit(status);
