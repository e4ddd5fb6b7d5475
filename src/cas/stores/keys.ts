import { DatamonError } from "../errors.ts";

/** True for what may stand between two slashes of a key: visible ASCII, and neither `.` nor `..`. */
export function isSegment(name: string): boolean {
  return /^[!-.0-~]+$/.test(name) && name !== "." && name !== "..";
}

/** True for the key of an object. Other things that a bucket or directory may hold are none of ours. */
export function isKey(key: string): boolean {
  return !key.startsWith(".") && key.split("/").every(isSegment);
}

/** Throws a `usage` error for what cannot be a key. */
export function checkKey(key: string, url: string): void {
  if (!isKey(key)) throw new DatamonError("usage", `${JSON.stringify(key)} cannot be an object's key in ${url}`);
}
