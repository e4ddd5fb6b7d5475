/** What Amazon S3, and servers that speak its protocol, answer in XML. */

/** An object as a listing has it. */
export interface ListedObject {
  readonly key: string;
  readonly size: number;
  readonly etag: string;
  /** Milliseconds since 1970. */
  readonly modified: number;
}

export interface Listing {
  readonly objects: ListedObject[];
  /** Where the next page goes on; undefined at the end. */
  readonly next: string | undefined;
}

/** A page of ListObjectsV2. Throws where it is none that makes sense, and nothing is skipped. */
export function readListing(body: Buffer): Listing {
  const xml = body.toString();
  if (!/<\/ListBucketResult>\s*$/.test(xml)) throw new Error("it is not a listing");
  const encoded = textIn(xml, "EncodingType") === "url";
  const objects = [...xml.matchAll(/<Contents>(.*?)<\/Contents>/gs)].map(([, item = ""]) => {
    const key = needed(item, "Key");
    return {
      key: encoded ? decodeURIComponent(key.replaceAll("+", " ")) : key,
      size: Number(needed(item, "Size")),
      etag: textIn(item, "ETag") ?? "",
      modified: Date.parse(textIn(item, "LastModified") ?? "") || 0,
    };
  });
  if (xml.split("<Contents").length - 1 !== objects.length) throw new Error("its objects are in another form");
  const next = textIn(xml, "IsTruncated") === "true" ? needed(xml, "NextContinuationToken") : undefined;
  return { objects, next };
}

/** The name and the explanation of an error, where the answer has them. */
export function readError(body: Buffer): { code: string | undefined; message: string | undefined } {
  const xml = body.toString();
  return { code: textIn(xml, "Code"), message: textIn(xml, "Message") };
}

function needed(xml: string, tag: string): string {
  const text = textIn(xml, tag);
  if (text === undefined) throw new Error(`it has no ${tag}`);
  return text;
}

/** The text of the first element of this name. */
function textIn(xml: string, tag: string): string | undefined {
  const start = xml.indexOf(`<${tag}>`);
  const end = xml.indexOf("<", start + 1);
  if (start < 0 || !xml.startsWith(`</${tag}>`, end)) return undefined;
  return xml.slice(start + tag.length + 2, end).replace(/&(?:#x([0-9a-f]+)|#(\d+)|(\w+));/gi, decoded);
}

const ENTITIES: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

function decoded(all: string, hex?: string, decimal?: string, name = ""): string {
  if (hex !== undefined) return String.fromCodePoint(Number.parseInt(hex, 16));
  return decimal === undefined ? (ENTITIES[name] ?? all) : String.fromCodePoint(Number(decimal));
}
