/** What the worker thread of a mount and the main thread tell each other. */

import type { SharedContent } from "../../../cache/index.ts";
import type { ErrorCode, Hash } from "../../../cas/index.ts";
import type { NamespaceSpec } from "../../namespace.ts";
import type { OpenMode } from "../../open-mode.ts";
import type { Handover } from "../../supervision/supervision.ts";
import type { WorkerCounts } from "./counts.ts";
import type { Miss } from "./dispatch.ts";
import type { Session } from "./negotiate.ts";

/** What the worker is started with. */
export interface WorkerTask {
  readonly spec: NamespaceSpec;
  readonly cacheDirectory: string;
  readonly cacheSize: number | undefined;
  readonly openMode: OpenMode;
  /** What another daemon would have to know is handed over. */
  readonly supervised: boolean;
  /** Shared between the threads: flags, 0 or 1. */
  readonly state: Int32Array;
  /** Shared between the threads: what the worker counts. */
  readonly counts: WorkerCounts;
  /** Shared between the threads: what the main thread has in memory. */
  readonly memory: SharedContent;
}

/** Flag by which the main thread makes the worker end after the request it is at. */
export const STOPPING = 0;
/** Flag by which the worker says that it reads no more requests. */
export const STOPPED = 1;

/** Flag by which the main thread says that it has posted a command. */
export const COMMANDED = 2;
/** How many flags there are. */
export const FLAGS = 3;

/** A command and its number, which the answer has, too: one that nobody waits for any more is not done. */
export interface Commanded {
  readonly id: number;
  readonly command: Command;
}

/** To the worker while it serves, one at a time. */
export type Command =
  /** Freeze the namespace; answered with "hold" where others write to files by themselves. */
  | { readonly kind: "freeze" }
  /** They could not be stopped: let them go on. Answered in the place of "freeze", where that is not. */
  | { readonly kind: "release" }
  | { readonly kind: "rebase"; readonly catalog: string | undefined; readonly bundle: string | undefined };

/** The worker's answer to a command. */
export type Answer =
  /** What the namespace answered: whether anything was frozen, or whether the base was replaced. */
  | { readonly kind: "done"; readonly changed: boolean }
  /** These are to be held; the next answer comes when they are. */
  | { readonly kind: "hold"; readonly token: string; readonly inos: readonly number[] }
  | { readonly kind: "refused"; readonly error: PlainError };

/** To the worker, once: the descriptor to serve. */
export interface ServeMessage {
  readonly fd: number;
  /** Of a connection that another daemon served: what it handed over. */
  readonly inherited: Handover | undefined;
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
  /** The kernel has asked its first question, or sends those again that a dead daemon did not answer. */
  | { readonly kind: "started"; readonly session: Session }
  | { readonly kind: "miss"; readonly miss: Miss }
  /** A reader came to a blob that nobody read through this mount before. */
  | { readonly kind: "reached"; readonly ino: number; readonly offset: number; readonly blob: Hash }
  /** A large file was opened that is not whole in the cache. */
  | { readonly kind: "want"; readonly ino: number }
  | { readonly kind: "interrupt"; readonly uniqueLow: number; readonly uniqueHigh: number }
  | { readonly kind: "answer"; readonly id: number; readonly answer: Answer }
  | { readonly kind: "error"; readonly request: string; readonly subject: string; readonly error: PlainError }
  /** The mount is gone and the namespace closed. */
  | { readonly kind: "closed" };
