import { runMountSuite } from "./suite.ts";

runMountSuite("fuse-native");
