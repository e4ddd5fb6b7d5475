/** Mounts and takes it away again, and prints how that went: for tests that give it an environment in which it must fail. */

import { closeSync } from "node:fs";
import { DatamonError } from "../../../../src/cas/index.ts";
import { mountDirectory } from "../../../../src/fs/channels/kernel/mounting.ts";
import { detach } from "../../../../src/fs/mount-table.ts";

const [directory = "", allowOther] = process.argv.slice(2);
try {
  const fd = await mountDirectory(directory, {
    name: "datamon:test",
    readOnly: true,
    allowOther: allowOther === "other",
  });
  await detach(directory, { lazy: true });
  closeSync(fd);
  console.log(JSON.stringify({ code: "mounted" }));
} catch (error) {
  const { code, message, hint } = error as DatamonError;
  console.log(JSON.stringify(error instanceof DatamonError ? { code, message, hint } : { code: "bug", message }));
}
