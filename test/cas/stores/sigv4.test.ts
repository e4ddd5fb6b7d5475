import assert from "node:assert/strict";
import { test } from "node:test";
import { type Credentials, EMPTY_PAYLOAD, encodeUri, Signer, type Unsigned } from "../../../src/cas/stores/sigv4.ts";

/** The account, the bucket and the moment of the examples in Amazon's documentation. */
const CREDENTIALS = {
  accessKeyId: "AKIAIOSFODNN7EXAMPLE",
  secretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
};
const BUCKET = "https://examplebucket.s3.amazonaws.com";
const MOMENT = new Date("2013-05-24T00:00:00Z");

interface Example {
  readonly name: string;
  readonly request: Omit<Unsigned, "url"> & { readonly path: string };
  readonly signed: string;
  readonly signature: string;
}

// "Signature Calculations for the Authorization Header", in the API reference of Amazon S3.
const EXAMPLES: Example[] = [
  {
    name: "GET Object",
    request: { method: "GET", path: "/test.txt", headers: { range: "bytes=0-9" }, payload: EMPTY_PAYLOAD },
    signed: "host;range;x-amz-content-sha256;x-amz-date",
    signature: "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
  },
  {
    name: "PUT Object",
    request: {
      method: "PUT",
      path: `/${encodeUri("test$file.text")}`,
      headers: { date: "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY" },
      payload: "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
    },
    signed: "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
    signature: "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
  },
  {
    name: "GET Bucket Lifecycle",
    request: { method: "GET", path: "/?lifecycle", headers: {}, payload: EMPTY_PAYLOAD },
    signed: "host;x-amz-content-sha256;x-amz-date",
    signature: "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
  },
  {
    name: "Get Bucket (List Objects)",
    request: { method: "GET", path: "/?prefix=J&max-keys=2", headers: {}, payload: EMPTY_PAYLOAD },
    signed: "host;x-amz-content-sha256;x-amz-date",
    signature: "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
  },
];

for (const { name, request, signed, signature } of EXAMPLES) {
  test(`signs as in the example ${name}`, () => {
    const { path, ...rest } = request;
    const headers = new Signer("us-east-1", "s3").sign({ ...rest, url: new URL(BUCKET + path) }, CREDENTIALS, MOMENT);
    const credential = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request";
    assert.equal(
      headers.authorization,
      `AWS4-HMAC-SHA256 Credential=${credential}, SignedHeaders=${signed}, Signature=${signature}`,
    );
    assert.deepEqual(Object.keys(headers).sort(), ["authorization", ...signed.split(";")].sort());
  });
}

test("signs anew where the day, the secret or the token is another", () => {
  const request = { method: "GET", url: new URL(`${BUCKET}/test.txt`), headers: {}, payload: EMPTY_PAYLOAD };
  const one = new Signer("us-east-1", "s3");
  const ways: [Credentials, Date][] = [
    [CREDENTIALS, MOMENT],
    [CREDENTIALS, new Date("2013-05-25T00:00:00Z")],
    [{ ...CREDENTIALS, secretAccessKey: "another" }, MOMENT],
    [{ ...CREDENTIALS, sessionToken: "token" }, MOMENT],
  ];
  const signatures = [...ways, ...ways].map((way) => one.sign(request, ...way).authorization);
  // As one would that has no key yet.
  const fresh = ways.map((way) => new Signer("us-east-1", "s3").sign(request, ...way).authorization);
  assert.deepEqual(signatures, [...fresh, ...fresh]);
  assert.equal(new Set(signatures).size, ways.length);
  assert.equal(one.sign(request, ...ways[3]!)["x-amz-security-token"], "token");
});

test("sorts parameters by their names, and then by their values", () => {
  const sign = (query: string) =>
    new Signer("us-east-1", "s3").sign(
      { method: "GET", url: new URL(`${BUCKET}/?${query}`), headers: {}, payload: EMPTY_PAYLOAD },
      CREDENTIALS,
      MOMENT,
    ).authorization;
  assert.equal(sign("a-b=1&a=2&a=1"), sign("a=1&a=2&a-b=1"));
  assert.notEqual(sign("a=1&b=2"), sign("a=2&b=1"));
});
