import assert from "node:assert/strict";
import { test } from "node:test";
import { readError, readListing } from "../../../src/cas/stores/s3-answers.ts";

const HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n';

function listing(...elements: string[]): Buffer {
  return Buffer.from(
    `${HEAD}<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">${elements.join("")}</ListBucketResult>`,
  );
}

function contents(key: string): string {
  return `<Contents><Key>${key}</Key><Size>1</Size></Contents>`;
}

test("reads a listing as Amazon S3 writes it", () => {
  const body = listing(
    "<Name>bucket</Name><Prefix/><KeyCount>2</KeyCount><MaxKeys>2</MaxKeys>",
    "<IsTruncated>true</IsTruncated>\n  <NextContinuationToken>1ueG&amp;cyw==</NextContinuationToken>",
    "<Contents>\n  <Key>my-image.jpg</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>",
    "<ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>434234</Size><StorageClass>STANDARD</StorageClass>",
    "<Owner><ID>1</ID><DisplayName>Key</DisplayName></Owner></Contents>\n",
    "<Contents><Key>a &amp; b &lt;c&gt; &#x1;&#955;</Key><Size>0</Size></Contents>",
  );
  assert.deepEqual(readListing(body), {
    objects: [
      {
        key: "my-image.jpg",
        size: 434234,
        etag: '"fba9dede5f27731c9771645a39863328"',
        modified: Date.UTC(2009, 9, 12, 17, 50, 30),
      },
      { key: "a & b <c> \u0001λ", size: 0, etag: "", modified: 0 },
    ],
    next: "1ueG&cyw==",
  });
});

test("decodes keys where the listing says that they are encoded", () => {
  const key = "a%2Fb+c%2B%CE%BB%01";
  const keys = (body: Buffer) => readListing(body).objects.map((object) => object.key);
  assert.deepEqual(keys(listing("<EncodingType>url</EncodingType>", contents(key))), ["a/b c+λ\u0001"]);
  assert.deepEqual(keys(listing(contents(key))), [key]);
});

test("refuses a listing that it does not understand, rather than to leave something out", () => {
  const whole = listing("<IsTruncated>false</IsTruncated>", contents("a"), contents("b"));
  assert.equal(readListing(whole).objects.length, 2);
  const senseless = [
    Buffer.alloc(0),
    Buffer.from("<html>Welcome</html>"),
    Buffer.from(whole.toString().replaceAll("ListBucketResult", "s3:ListBucketResult")),
    Buffer.from(whole.toString().replace("<Contents>", '<Contents type="object">')),
    Buffer.from(whole.toString().replace("<Key>a</Key>", "<Key><![CDATA[a]]></Key>")),
    Buffer.from(whole.toString().replace("<Size>1</Size>", "")),
    listing("<IsTruncated>true</IsTruncated>", contents("a")),
  ];
  for (const body of senseless) assert.throws(() => readListing(body), Error, body.toString());
  // Wherever it was cut off.
  for (let end = 0; end < whole.length; end++) assert.throws(() => readListing(whole.subarray(0, end)), Error);
});

test("reads what an error is called and why it came", () => {
  const body = `${HEAD}<Error><Code>NoSuchKey</Code><Message>There is no &quot;a&quot;</Message></Error>`;
  assert.deepEqual(readError(Buffer.from(body)), { code: "NoSuchKey", message: 'There is no "a"' });
  assert.deepEqual(readError(Buffer.alloc(0)), { code: undefined, message: undefined });
  assert.deepEqual(readError(Buffer.from("<html>Bad gateway</html>")), { code: undefined, message: undefined });
});
