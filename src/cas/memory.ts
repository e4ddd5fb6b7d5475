/** Where the memory for large objects comes from, for who gives it back when nobody looks at them any more. */
export interface Memory {
  /** A buffer of so many bytes of any content. */
  take(length: number): Buffer;
  /** Takes back a buffer, or a part of one. What was not taken here is left alone. */
  give(part: Buffer): void;
}
