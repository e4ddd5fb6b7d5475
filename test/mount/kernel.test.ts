import { runMountSuite } from "./suite.ts";

runMountSuite("kernel");
