import { after, before, describe } from "node:test";
import { objectStoreConformance } from "../../conformance/object-store.ts";
import { remoteStoreConformance } from "../../conformance/remote-store.ts";
import { S3_CREDENTIALS, type StoreServer, serverMissing, startS3 } from "../../support/servers.ts";

describe("S3", { skip: serverMissing("versitygw") }, () => {
  let server: StoreServer;
  before(async () => {
    Object.assign(process.env, S3_CREDENTIALS);
    server = await startS3();
  });
  after(() => server.dispose());

  objectStoreConformance("s3", async () => ({
    url: `s3://${server.bucket}/some/prefix?endpoint=${server.endpoint}`,
    dispose: async () => {},
  }));

  remoteStoreConformance("s3", () => ({
    endpoint: server.endpoint,
    url: (endpoint, prefix, parameters = {}, bucket = server.bucket) =>
      `s3://${bucket}/${prefix}?${new URLSearchParams({ endpoint, ...parameters })}`,
  }));
});
