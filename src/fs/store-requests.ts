/** What was asked of remote stores, in the form that is told. */

import * as z from "zod/mini";
import type { StoreMetrics } from "../cas/index.ts";

const number = z.number();

/** Requests of one kind, each try by itself; bytes of bodies, and milliseconds of those that succeeded. */
export const storeRequestsSchema = z.object({
  request: z.string(),
  count: number,
  failures: number,
  bytes: number,
  meanMs: number,
  slowestMs: number,
});

export type StoreRequests = z.infer<typeof storeRequestsSchema>;

/** The kinds of requests of which there were some; none where nothing was counted. */
export function storeRequests(sent: StoreMetrics | undefined): StoreRequests[] {
  return Object.entries(sent ?? {})
    .filter(([, { requests }]) => requests > 0)
    .map(([request, { requests: count, failures, bytes, time, slowest: slowestMs }]) => {
      return { request, count, failures, bytes, meanMs: time / Math.max(1, count - failures), slowestMs };
    });
}
