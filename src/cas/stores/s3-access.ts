import type { S3ClientConfig } from "@aws-sdk/client-s3";
import { type BucketAddress, senseless } from "./address.ts";
import { CONNECT_MS, STALL_MS } from "./failure.ts";
import { type Credentials, Signer, type Unsigned } from "./sigv4.ts";

/** Some servers know no regions; requests are signed for one nevertheless. */
const REGION_OF_OTHERS = "us-east-1";

/** What a store's URL and the environment say of where the bucket is, and who asks. */
export interface Settings {
  readonly bucket: string;
  readonly endpoint: string | undefined;
  readonly region: string | undefined;
  readonly profile: string | undefined;
  readonly pathStyle: boolean;
}

/** How a bucket is reached. */
export interface Access {
  /** What stands before the keys of its objects, up to and with the slash. */
  readonly base: string;
  readonly region: string;
  /** Without https, Amazon wants to see by the signature that a body is what was sent. */
  readonly signsBodies: boolean;
  /** The headers of a request with its signature, by credentials that are renewed before they run out. */
  sign(request: Unsigned): Promise<Record<string, string | number>>;
}

/**
 * Parameters of the URL come before AWS's usual environment. Throws `usage` where they make no sense.
 */
export function settingsOf({ url, bucket, parameters }: BucketAddress): Settings {
  const [endpoint, profile] = ["endpoint", "profile"].map((name) => parameters.get(name));
  const { AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION } = process.env;
  const other = endpoint !== undefined || Boolean(AWS_ENDPOINT_URL_S3 || AWS_ENDPOINT_URL);
  const pathStyle = parameters.get("path-style") ?? String(other);
  if (pathStyle !== "true" && pathStyle !== "false") throw senseless(url, "path-style is true or false");
  if (endpoint !== undefined && !/^https?:\/\/[^/]/.test(endpoint)) {
    throw senseless(url, "endpoint is a URL such as https://s3.example.org");
  }
  // Where a profile is named, it has the word.
  const usual = AWS_REGION || (profile === undefined && AWS_DEFAULT_REGION) || (other && REGION_OF_OTHERS) || undefined;
  return { bucket, endpoint, profile, region: parameters.get("region") ?? usual, pathStyle: pathStyle === "true" };
}

/**
 * Finds out how the bucket is reached: by itself where the settings and the environment say everything,
 * else with the SDK, which takes a tenth of a second to load. Rejects with the SDK's errors.
 */
export async function accessTo(settings: Settings): Promise<Access> {
  return plainAccess(settings) ?? (await sdkAccess(settings));
}

/** Access to a server that is named, with credentials from the environment, as the SDK would find it, too. */
function plainAccess({ bucket, endpoint, region, profile, pathStyle }: Settings): Access | undefined {
  const { AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_IGNORE_CONFIGURED_ENDPOINT_URLS, AWS_PROFILE } = process.env;
  const { AWS_ACCESS_KEY_ID: accessKeyId, AWS_SECRET_ACCESS_KEY: secretAccessKey, AWS_SESSION_TOKEN } = process.env;
  const server = endpoint ?? (AWS_IGNORE_CONFIGURED_ENDPOINT_URLS ? "" : AWS_ENDPOINT_URL_S3 || AWS_ENDPOINT_URL || "");
  const plain = pathStyle && profile === undefined && !AWS_PROFILE && /^https?:\/\/[^/?#]+(\/[^?#]*)?$/.test(server);
  if (!plain || region === undefined || !accessKeyId || !secretAccessKey) return undefined;
  const credentials = { accessKeyId, secretAccessKey, sessionToken: AWS_SESSION_TOKEN || undefined };
  const base = `${server.replace(/\/+$/, "")}/${encodeURIComponent(bucket)}/`;
  return access(base, region, "s3", async () => credentials);
}

/** The SDK tells by a request that it signs and is kept from sending. */
async function sdkAccess({ bucket, endpoint, region, profile, pathStyle }: Settings): Promise<Access> {
  const { HeadObjectCommand, S3Client } = await import("@aws-sdk/client-s3");
  const config: S3ClientConfig = {
    maxAttempts: 1,
    // Failures are told by errors; on the console they would only disturb.
    logger: { trace: ignore, debug: ignore, info: ignore, warn: ignore, error: ignore },
    forcePathStyle: pathStyle,
    // Credentials may have to be asked for.
    requestHandler: { connectionTimeout: CONNECT_MS, socketTimeout: STALL_MS },
    ...(profile === undefined ? {} : { profile }),
    // An endpoint in the environment is found by the SDK itself.
    ...(endpoint === undefined ? {} : { endpoint }),
    ...(region === undefined ? {} : { region }),
  };
  const client = new S3Client(config);
  const command = new HeadObjectCommand({ Bucket: bucket, Key: PROBE });
  let signed: SignedRequest | undefined;
  const keep = () => async (args: { request: unknown }) => {
    signed = args.request as SignedRequest;
    return { response: {}, output: { $metadata: {} } };
  };
  command.middlewareStack.add(keep, { step: "deserialize", name: "keep", priority: "high" });
  await client.send(command);
  const { protocol, hostname, port, path, headers } = signed!;
  const scope = /^AWS4-HMAC-SHA256 Credential=[^,]*\/\d{8}\/([^/,]+)\/([^/,]+)\/aws4_request,/.exec(
    headers.authorization ?? "",
  );
  if (scope === null) throw new Error("requests to this bucket are signed in a way that Datamon does not know");
  const [, itsRegion = "", service = ""] = scope;
  const base = `${protocol}//${hostname}${port === undefined ? "" : `:${port}`}${path.slice(0, -PROBE.length)}`;
  return access(base, itsRegion, service, client.config.credentials);
}

function access(base: string, region: string, service: string, credentials: () => Promise<Credentials>): Access {
  const signer = new Signer(region, service);
  return {
    base,
    region,
    signsBodies: /^http:\/\/[^/]*\.amazonaws\.com(\.cn)?[:/]/i.test(base),
    sign: async (request) => signer.sign(request, await credentials()),
  };
}

/** The key that the SDK is asked about. */
const PROBE = "key";

interface SignedRequest {
  readonly protocol: string;
  readonly hostname: string;
  readonly port?: number;
  readonly path: string;
  readonly headers: Readonly<Record<string, string | undefined>>;
}

function ignore(): void {}
