import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe } from "node:test";
import { pathToFileURL } from "node:url";
import { objectStoreConformance } from "../../conformance/object-store.ts";
import { type StoreServer, serverMissing, startGcs } from "../../support/servers.ts";

objectStoreConformance("two local stores as one", async () => {
  const root = await mkdtemp(join(tmpdir(), "datamon-replicas-"));
  return {
    url: ["a", "b"].map((name) => pathToFileURL(join(root, name)).href),
    dispose: () => rm(root, { recursive: true, force: true }),
  };
});

describe("a local store and a bucket as one", { skip: serverMissing("fake-gcs-server") }, () => {
  let server: StoreServer;
  let root: string;
  before(async () => {
    server = await startGcs();
    process.env.STORAGE_EMULATOR_HOST = server.endpoint;
    root = await mkdtemp(join(tmpdir(), "datamon-replicas-"));
  });
  after(async () => {
    await server.dispose();
    await rm(root, { recursive: true, force: true });
  });

  objectStoreConformance("the bucket first", async () => ({
    url: [`gs://${server.bucket}/prefix`, pathToFileURL(root).href],
    environment: { STORAGE_EMULATOR_HOST: server.endpoint },
    dispose: async () => {},
  }));
});
