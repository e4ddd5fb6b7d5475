import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, describe, it } from "node:test";
import { type DatamonError, openStore } from "../../../src/cas/index.ts";
import { objectStoreConformance } from "../../conformance/object-store.ts";
import { remoteStoreConformance } from "../../conformance/remote-store.ts";
import { FaultProxy } from "../../support/fault-proxy.ts";
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

  it("uploads large files piece by piece, also where one is interrupted, and only where they are absent", async (t) => {
    const proxy = await FaultProxy.start(server.endpoint);
    const directory = await mkdtemp(join(tmpdir(), "datamon-large-"));
    t.after(async () => {
      await proxy.down();
      await rm(directory, { recursive: true });
    });
    const file = join(directory, "large");
    const bytes = randomBytes(33 * 1024 * 1024);
    await writeFile(file, bytes);
    process.env.STORAGE_EMULATOR_HOST = proxy.endpoint;
    const store = await openStore(`gs://${server.bucket}/large`);
    let cut = false;
    proxy.plan = ({ method }) => {
      if (method !== "PUT" || cut) return undefined;
      cut = true;
      return { cutRequest: 5_000_000 };
    };
    assert.equal(await store.put("a", { file }, { ifAbsent: true }), true);
    assert.ok(bytes.equals(await store.get("a")));
    assert.ok(proxy.seen.filter(({ method }) => method === "PUT").length > 3);
    assert.equal(await store.put("a", { file }, { ifAbsent: true }), false);
  });

  it("names a key file that is not there or is none", async (t) => {
    const { STORAGE_EMULATOR_HOST } = process.env;
    delete process.env.STORAGE_EMULATOR_HOST;
    t.after(() => {
      process.env.STORAGE_EMULATOR_HOST = STORAGE_EMULATOR_HOST;
    });
    for (const credential of ["/no/such/key.json", import.meta.filename]) {
      await assert.rejects(openStore("gs://bucket", { credential }), (error: DatamonError) => {
        assert.equal(error.code, "denied");
        assert.ok(error.message.includes(credential));
        return true;
      });
    }
    const keyless = join(await mkdtemp(join(tmpdir(), "datamon-key-")), "key.json");
    t.after(() => rm(dirname(keyless), { recursive: true }));
    await writeFile(keyless, "{}");
    const store = await openStore("gs://bucket", { credential: keyless });
    await assert.rejects(store.get("a"), { code: "denied", message: /object a in gs:/, hint: /credential/ });
  });
});
