import { hostname, userInfo } from "node:os";
import { BlobStore, newStoreMetrics, type ObjectStore, openStore, type StoreMetrics } from "../cas/index.ts";
import type { Config } from "./config.ts";

/** Who makes something. */
export interface Contributor {
  name: string;
  email: string;
}

/** The stores that commands work on, and for whom. */
export interface Context {
  readonly metadata: ObjectStore;
  readonly blobs: BlobStore;
  /** As the configuration tells; undefined where it tells neither name nor email. */
  readonly contributor: Contributor | undefined;
  readonly config: Config;
  /** What was asked of remote stores and how it went; undefined where nobody counts. */
  readonly requests?: StoreMetrics;
}

/**
 * Opens the stores that `config` names. Nothing is made or fetched yet.
 *
 * @param onTrouble is told in a sentence, again and again, when one of several stores does not answer, or
 *   fails, or holds something wrong
 */
export async function openContext(
  config: Config,
  onTrouble?: (url: string, message: string) => void,
): Promise<Context> {
  const { name, email, credential, copies } = config;
  const requests = newStoreMetrics();
  const options = { credential, copies, onTrouble, metrics: requests };
  const [metadata, blob] = await Promise.all([openStore(config.metadata, options), openStore(config.blob, options)]);
  const contributor =
    name === undefined && email === undefined ? undefined : { ...loginIdentity(), ...defined({ name, email }) };
  return { metadata, blobs: new BlobStore(blob), contributor, config, requests };
}

/**
 * Who is to be recorded as the maker: what is `given`, else what the configuration says, else the
 * login name with `user@host` as the email, so that nobody has to configure anything to begin.
 */
export function contributorOf(context: Context, given: Partial<Contributor> = {}): Contributor {
  return { ...loginIdentity(), ...context.contributor, ...defined(given) };
}

function loginIdentity(): Contributor {
  const name = loginName();
  return { name, email: `${name}@${hostname()}` };
}

function loginName(): string {
  const { USER } = process.env;
  if (USER !== undefined && USER !== "") return USER;
  try {
    return userInfo().username;
  } catch {
    // A container's user id need not have a name.
    return `uid-${process.getuid?.() ?? "unknown"}`;
  }
}

function defined(values: Partial<Contributor>): Partial<Contributor> {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
}
