import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { openStore } from "../../../src/cas/index.ts";
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

  it("takes its endpoint, region and account from the environment", async (t) => {
    const { AWS_ENDPOINT_URL } = process.env;
    t.after(() => {
      if (AWS_ENDPOINT_URL === undefined) delete process.env.AWS_ENDPOINT_URL;
      else process.env.AWS_ENDPOINT_URL = AWS_ENDPOINT_URL;
    });
    // A name, of which no bucket could be a part.
    process.env.AWS_ENDPOINT_URL = server.endpoint.replace("127.0.0.1", "localhost");
    const store = await openStore(`s3://${server.bucket}/environment`);
    assert.equal(await store.put("a", Buffer.from("b"), { ifAbsent: true }), true);
    assert.equal((await store.get("a")).toString(), "b");
  });

  it("refuses parameters that make no sense", async () => {
    for (const parameters of ["path-style=maybe", "endpoint=nowhere", "regoin=eu-central-1"]) {
      await assert.rejects(openStore(`s3://bucket?${parameters}`), { code: "usage" });
    }
  });
});
