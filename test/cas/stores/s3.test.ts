import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it, type TestContext } from "node:test";
import { promisify } from "node:util";
import { listAll, openBucket, openStore } from "../../../src/cas/index.ts";
import { parseBucketUrl } from "../../../src/cas/stores/address.ts";
import { accessTo, settingsOf } from "../../../src/cas/stores/s3-access.ts";
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
    // A name, of which no bucket could be a part.
    setEnvironment(t, { AWS_ENDPOINT_URL: server.endpoint.replace("127.0.0.1", "localhost") });
    const store = await openStore(`s3://${server.bucket}/environment`);
    assert.equal(await store.put("a", Buffer.from("b"), { ifAbsent: true }), true);
    assert.equal((await store.get("a")).toString(), "b");
  });

  it("takes the account from a profile, whatever the environment says, and the endpoint of one that it names", async (t) => {
    const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } = S3_CREDENTIALS;
    await useProfile(t, [
      `aws_access_key_id = ${AWS_ACCESS_KEY_ID}`,
      `aws_secret_access_key = ${AWS_SECRET_ACCESS_KEY}`,
      `endpoint_url = ${server.endpoint}`,
      "region = us-east-1",
    ]);
    setEnvironment(t, { AWS_SECRET_ACCESS_KEY: "another" });
    const stranger = await openStore(`s3://${server.bucket}/profile?endpoint=${server.endpoint}`);
    await assert.rejects(stranger.put("a", Buffer.from("b")), { code: "denied", hint: /account/ });
    const store = await openStore(`s3://${server.bucket}/profile?endpoint=${server.endpoint}&profile=tests`);
    await store.put("a", Buffer.from("b"));
    setEnvironment(t, { AWS_PROFILE: "tests" });
    const other = await openStore(`s3://${server.bucket}/profile?path-style=true`);
    assert.equal((await other.get("a")).toString(), "b");
    assert.deepEqual(await other.list(""), [{ key: "a", size: 1 }]);
  });

  it("renews an account that runs out", async (t) => {
    const directory = await useProfile(t, [
      `credential_process = "${process.execPath}" "$SCRIPT"`,
      "region = us-east-1",
    ]);
    const { AWS_ACCESS_KEY_ID: AccessKeyId, AWS_SECRET_ACCESS_KEY: secret } = S3_CREDENTIALS;
    const issue = (SecretAccessKey: string, minutes: number) => {
      const Expiration = new Date(Date.now() + minutes * 60_000).toISOString();
      const account = { Version: 1, AccessKeyId, SecretAccessKey, Expiration };
      return writeFile(join(directory, "script.cjs"), `console.log(${JSON.stringify(JSON.stringify(account))})`);
    };
    await issue("withdrawn", 1);
    const store = await openStore(`s3://${server.bucket}/renewed?endpoint=${server.endpoint}&profile=tests`);
    await assert.rejects(store.put("a", Buffer.from("b")), { code: "denied" });
    await issue(secret, 60);
    // Meanwhile the account that is still good for a minute is used.
    const stored = () => store.put("a", Buffer.from("b")).catch((error) => assert.equal(error.code, "denied"));
    while ((await stored()) !== true);
    // What is good for an hour is kept.
    await issue("withdrawn", 60);
    assert.equal((await store.get("a")).toString(), "b");
  });

  it("does without the SDK where the environment says everything", async () => {
    const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", WITHOUT_SDK], {
      env: { ...process.env, ...S3_CREDENTIALS, STORE: `s3://${server.bucket}/alone?endpoint=${server.endpoint}` },
    });
    assert.deepEqual(JSON.parse(stdout), { put: true, again: false, got: "b", size: 1, keys: ["a"], gone: true });
  });

  it("takes keys with every character that keys may have", async () => {
    const store = await openStore(`s3://${server.bucket}/odd?endpoint=${server.endpoint}`);
    const keys = [..."!\"#$%&'()*+,-.:;<=>?@[]^_`{|}~\\"].map((character) => `a${character}b/%2F${character}`).sort();
    for (const key of keys) assert.equal(await store.put(key, Buffer.from(key), { ifAbsent: true }), true);
    const listed: string[] = [];
    for await (const { key } of listAll(store, "")) listed.push(key);
    assert.deepEqual(listed, keys);
    for (const key of keys) {
      assert.equal((await store.get(key)).toString(), key);
      assert.deepEqual(await store.head(key), { key, size: key.length });
      await store.delete(key);
    }
    assert.deepEqual(await store.list(""), []);
  });

  it("gives back the start of an object that has much more", async () => {
    const store = await openStore(`s3://${server.bucket}/start?endpoint=${server.endpoint}`);
    const bytes = randomBytes(9_000_000);
    await store.put("a", bytes);
    const memory = { take: (length: number) => Buffer.alloc(length), give: () => {} };
    for (const length of [1, 100, 2 ** 21]) {
      assert.deepEqual(await store.get("a", { offset: 0, length }, { memory }), bytes.subarray(0, length));
    }
  });

  it("asks for no key that would name another object", async () => {
    const bucket = await openBucket(`s3://${server.bucket}?endpoint=${server.endpoint}`);
    for (const key of ["a/../b", "./a", "..", "a/."]) {
      await assert.rejects(bucket.get(key), { code: "unsupported" });
      await assert.rejects(bucket.head(key), { code: "unsupported" });
    }
    const elsewhere = await openBucket(`s3://nowhere/../${server.bucket}?endpoint=${server.endpoint}`);
    await assert.rejects(elsewhere.get("a"), { code: "unsupported" });
  });

  it("says what a server says of a region that it does not know", async () => {
    const store = await openStore(`s3://${server.bucket}/region?endpoint=${server.endpoint}&region=eu-central-1`);
    await assert.rejects(store.get("a"), { code: "io", message: /region.*eu-central-1/ });
  });

  it("refuses parameters that make no sense", async () => {
    for (const parameters of ["path-style=maybe", "endpoint=nowhere", "regoin=eu-central-1"]) {
      await assert.rejects(openStore(`s3://bucket?${parameters}`), { code: "usage" });
    }
  });
});

describe("S3 elsewhere", () => {
  it("finds Amazon's own address of a bucket", async (t) => {
    setEnvironment(t, { ...S3_CREDENTIALS, AWS_ENDPOINT_URL: undefined, AWS_ENDPOINT_URL_S3: undefined });
    const find = async (url: string) => {
      const address = parseBucketUrl(url, ["region", "endpoint", "path-style", "profile"]);
      const { base, region, sign, signsBodies } = await accessTo(settingsOf(address));
      const { authorization } = await sign({
        method: "GET",
        url: new URL(base),
        headers: {},
        payload: "UNSIGNED-PAYLOAD",
      });
      assert.match(String(authorization), new RegExp(`Credential=tester/\\d{8}/${region}/s3/aws4_request,`));
      return [base, signsBodies];
    };
    const found = {
      "s3://bucket?region=eu-west-1": ["https://bucket.s3.eu-west-1.amazonaws.com/", false],
      "s3://bucket/prefix?region=cn-north-1": ["https://bucket.s3.cn-north-1.amazonaws.com.cn/", false],
      "s3://with.dots?region=us-east-1": ["https://s3.us-east-1.amazonaws.com/with.dots/", false],
      "s3://bucket?region=us-east-1&path-style=true": ["https://s3.us-east-1.amazonaws.com/bucket/", false],
      "s3://bucket?endpoint=http://s3.us-east-1.amazonaws.com": ["http://s3.us-east-1.amazonaws.com/bucket/", true],
      "s3://bucket?endpoint=https://example.org:9000/s3/": ["https://example.org:9000/s3/bucket/", false],
      "s3://bucket?endpoint=https://example.org&path-style=false": ["https://bucket.example.org/", false],
    };
    for (const [url, expected] of Object.entries(found)) assert.deepEqual(await find(url), expected, url);
  });

  it("says so where no account or no region is known", async (t) => {
    await useProfile(t, []);
    const none = { ...S3_CREDENTIALS, AWS_REGION: undefined, AWS_DEFAULT_REGION: undefined };
    setEnvironment(t, { ...none, AWS_ENDPOINT_URL: undefined, AWS_ENDPOINT_URL_S3: undefined });
    const nowhere = await openStore("s3://bucket");
    await assert.rejects(nowhere.get("a"), { code: "usage", message: /no region/, hint: /AWS_REGION/ });
    setEnvironment(t, { AWS_ACCESS_KEY_ID: undefined, AWS_EC2_METADATA_DISABLED: "true" });
    const nobody = await openStore("s3://bucket?region=eu-west-1");
    await assert.rejects(nobody.get("a"), { code: "denied", hint: /account/ });
    // The account may come later.
    setEnvironment(t, S3_CREDENTIALS);
    const url = await serve(t, (_, answer) => answer.end("bytes"));
    const store = await openStore(`s3://bucket?endpoint=${url}&path-style=true`);
    assert.equal((await store.get("a")).toString(), "bytes");
  });

  it("says in which region the bucket is, and that the clock is wrong", async (t) => {
    setEnvironment(t, S3_CREDENTIALS);
    const elsewhere = await serve(t, (_, answer) =>
      answer.writeHead(301, { "x-amz-bucket-region": "eu-west-3" }).end(),
    );
    const store = await openStore(`s3://bucket?endpoint=${elsewhere}`);
    for (const request of [() => store.head("a"), () => store.put("a", Buffer.from("b")), () => store.list("")]) {
      await assert.rejects(request(), { code: "usage", message: /region eu-west-3/, hint: /\?region=eu-west-3/ });
    }
    const date = new Date(Date.now() + 3_600_000).toUTCString();
    const ahead = await serve(t, (_, answer) => answer.writeHead(403, { date }).end());
    const late = await openStore(`s3://bucket?endpoint=${ahead}`);
    await assert.rejects(late.head("a"), { code: "denied", message: /clock/, hint: new RegExp(date) });
  });
});

const CAS = join(import.meta.dirname, "../../../src/cas/index.ts");
/** Does what a store does, in a process that cannot load the SDK. */
const WITHOUT_SDK = `
  import { registerHooks } from "node:module";
  registerHooks({
    resolve(name, context, next) {
      if (name.startsWith("@aws-sdk/")) throw new Error("the SDK is loaded");
      return next(name, context);
    },
  });
  const { openStore } = await import(${JSON.stringify(CAS)});
  const store = await openStore(process.env.STORE);
  const put = await store.put("a", Buffer.from("b"), { ifAbsent: true });
  const again = await store.put("a", Buffer.from("c"), { ifAbsent: true });
  const got = (await store.get("a")).toString();
  const { size } = await store.head("a");
  const keys = (await store.list("")).map((info) => info.key);
  await store.delete("a");
  const gone = (await store.head("a")) === undefined;
  console.log(JSON.stringify({ put, again, got, size, keys, gone }));
`;

const changed = new WeakSet<TestContext>();

/** Sets variables, or removes them, until the test is over. */
function setEnvironment(t: TestContext, variables: Record<string, string | undefined>): void {
  if (!changed.has(t)) {
    const before = { ...process.env };
    t.after(() => {
      for (const name of Object.keys(process.env)) if (!(name in before)) delete process.env[name];
      Object.assign(process.env, before);
    });
    changed.add(t);
  }
  for (const [name, value] of Object.entries(variables)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
}

/** Makes a profile `tests` the only thing in AWS's files, which are in the folder that it resolves to. */
async function useProfile(t: TestContext, lines: string[]): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "datamon-profile-"));
  t.after(() => rm(directory, { recursive: true }));
  await writeFile(join(directory, "config"), ["[profile tests]", ...lines, ""].join("\n"));
  await writeFile(join(directory, "credentials"), "");
  setEnvironment(t, {
    AWS_CONFIG_FILE: join(directory, "config"),
    AWS_SHARED_CREDENTIALS_FILE: join(directory, "credentials"),
    AWS_PROFILE: undefined,
    SCRIPT: join(directory, "script.cjs"),
  });
  return directory;
}

/** A server that answers all alike, as those that the tests have do not. */
async function serve(t: TestContext, answer: RequestListener): Promise<string> {
  const server = createServer(answer).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}
