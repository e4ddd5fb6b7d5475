/** Where the memory for large objects comes from, for who gives it back when nobody looks at them any more. */
export interface Memory {
  /** A buffer of so many bytes of any content. */
  take(length: number): Buffer;
  /** Takes back a buffer, or a part of one. What was not taken here is left alone. */
  give(part: Buffer): void;
}

/** What is taken for one answer, so that it can be given back whatever comes of that. */
export class Loan implements Memory {
  readonly #memory: Memory;
  readonly #taken: Buffer[] = [];

  constructor(memory: Memory) {
    this.#memory = memory;
  }

  take(length: number): Buffer {
    const buffer = this.#memory.take(length);
    this.#taken.push(buffer);
    return buffer;
  }

  give(part: Buffer): void {
    const index = this.#taken.findIndex((buffer) => isIn(part, buffer));
    if (index >= 0) for (const buffer of this.#taken.splice(index, 1)) this.#memory.give(buffer);
  }

  /** Gives back all but the buffer that `kept` is a part of. */
  end(kept: Buffer | undefined): void {
    for (const buffer of this.#taken.splice(0)) {
      if (kept === undefined || !isIn(kept, buffer)) this.#memory.give(buffer);
    }
  }
}

function isIn(part: Buffer, whole: Buffer): boolean {
  const offset = part.byteOffset - whole.byteOffset;
  return part.buffer === whole.buffer && offset >= 0 && offset < whole.length;
}
