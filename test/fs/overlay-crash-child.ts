/** Works on an overlay without end and says on stdout, one byte each, which steps are done; it is to be killed. */

import { writeSync } from "node:fs";
import { bytesOf } from "../../src/cas/index.ts";
import { OverlayNamespace } from "../../src/fs/overlay/overlay.ts";
import { step } from "./overlay-crash-steps.ts";

const [, , directory, catalog, bundle, first] = process.argv;
const namespace = OverlayNamespace.open(directory!, catalog!, bundle!);
const { ino } = namespace.lookup(1, bytesOf("base"));
for (let number = Number(first); ; number++) {
  step(namespace, ino, number);
  writeSync(1, ".");
}
