/** Something that others wait for to change. */
export class Condition {
  #waiting: (() => void)[] = [];

  /** Resolves at the next `notify`; what is waited for has to be looked at again then. */
  wait(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  notify(): void {
    if (this.#waiting.length === 0) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }
}
