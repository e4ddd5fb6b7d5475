/** What the worker thread of a mount and the main thread tell each other. */

import type { ErrorCode } from "../../../cas/index.ts";
import type { NamespaceSpec } from "../../namespace.ts";
import type { Miss } from "./dispatch.ts";

/** What the worker is started with. */
export interface WorkerTask {
  readonly spec: NamespaceSpec;
  readonly cacheDirectory: string;
  readonly cacheSize: number | undefined;
  /** Shared between the threads: two flags, 0 or 1. */
  readonly state: Int32Array;
}

/** Flag by which the main thread makes the worker end after the request it is at. */
export const STOPPING = 0;
/** Flag by which the worker says that it reads no more requests. */
export const STOPPED = 1;

/** To the worker, once: the descriptor to serve. */
export interface ServeMessage {
  readonly fd: number;
}

/** An error in a form that can be cloned between threads. */
export interface PlainError {
  readonly code: ErrorCode | undefined;
  readonly message: string;
  readonly hint: string | undefined;
}

/** From the worker. */
export type WorkerMessage =
  /** Namespace and cache are open; a descriptor is waited for. */
  | { readonly kind: "opened" }
  /** Namespace or cache could not be opened. */
  | { readonly kind: "failed"; readonly error: PlainError }
  /** The kernel has asked its first question. */
  | { readonly kind: "started" }
  | { readonly kind: "miss"; readonly miss: Miss }
  | { readonly kind: "interrupt"; readonly uniqueLow: number; readonly uniqueHigh: number }
  | { readonly kind: "error"; readonly request: string; readonly subject: string; readonly error: PlainError }
  /** The mount is gone and the namespace closed. */
  | { readonly kind: "closed" };
