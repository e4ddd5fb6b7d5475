import { after, before, describe } from "node:test";
import { objectStoreConformance } from "../../conformance/object-store.ts";
import { remoteStoreConformance } from "../../conformance/remote-store.ts";
import { type StoreServer, serverMissing, startGcs } from "../../support/servers.ts";

describe("Google Cloud Storage", { skip: serverMissing("fake-gcs-server") }, () => {
  let server: StoreServer;
  before(async () => {
    server = await startGcs();
    process.env.STORAGE_EMULATOR_HOST = server.endpoint;
  });
  after(() => server.dispose());

  objectStoreConformance("gcs", async () => ({ url: `gs://${server.bucket}/some/prefix`, dispose: async () => {} }));

  remoteStoreConformance("gcs", () => ({
    endpoint: server.endpoint,
    url: (endpoint, prefix, parameters = {}, bucket = server.bucket) => {
      process.env.STORAGE_EMULATOR_HOST = endpoint;
      return `gs://${bucket}/${prefix}?${new URLSearchParams(parameters)}`;
    },
  }));
});
