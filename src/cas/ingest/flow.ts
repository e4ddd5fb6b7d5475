import { setImmediate } from "node:timers/promises";
import { DatamonError } from "../errors.ts";
import { Condition } from "./condition.ts";
import { Fifo } from "./fifo.ts";

/** After so many inputs other work of this thread gets its turn. */
const TURN = 128;

/** An input that was accepted. */
export interface Pending<R> {
  /** How much of the window had passed when it came; never less than the one before had. */
  readonly span: number;
  /** Its result, once that is known. */
  result(): R | undefined;
}

/** The work between inputs and results. */
export interface Stages<I, R> {
  /** Begins with the next input. Inputs wait for it. */
  accept(input: I): Pending<R> | Promise<Pending<R>>;
  /** No input comes until results have gone out: what has come so far must not wait for more. */
  pause(): void;
  /** No input comes any more. */
  end(): void;
  /** True where nothing remains to be done once all results have gone out. */
  idle(): boolean;
  /** Called last, however it ends; `completed` where it was not cut short. */
  stop(completed: boolean): Promise<void>;
}

/**
 * Inputs come in, work on them goes on in any order, results go out in the order of the inputs. No
 * more inputs are under way at one time than the window allows.
 */
export class Flow<R> {
  readonly #window: number;
  readonly #pending = new Fifo<Pending<R>>();
  readonly #changed = new Condition();
  readonly #room = new Condition();
  #failure: { readonly error: unknown } | undefined;
  #ended = false;
  #stopped = false;

  /** @param window how far the span of the newest input may be beyond that of the oldest without a result */
  constructor(window: number) {
    this.#window = window;
  }

  /** True where results are not wanted any more. */
  get stopped(): boolean {
    return this.#stopped || this.#failure !== undefined;
  }

  /** To be called whenever a result may be known or the stages idle. */
  changed(): void {
    this.#changed.notify();
  }

  /** Ends it all: the iteration throws `error`. */
  fail(error: unknown): void {
    this.#failure ??= { error };
    this.#changed.notify();
    this.#room.notify();
  }

  /** The results. Throws what `fail` was told, what the inputs throw, or `interrupted` on the signal. */
  async *run<I>(
    inputs: AsyncIterable<I>,
    stages: Stages<I, R>,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<R, void, undefined> {
    const interrupt = (): void => this.fail(new DatamonError("interrupted", "the operation was interrupted"));
    if (signal?.aborted === true) interrupt();
    signal?.addEventListener("abort", interrupt);
    let completed = false;
    try {
      if (!this.stopped) this.#take(inputs, stages).catch((error) => this.fail(error));
      for (;;) {
        if (this.#failure !== undefined) throw this.#failure.error;
        const result = this.#pending.first?.result();
        if (result !== undefined) {
          this.#pending.shift();
          this.#room.notify();
          yield result;
        } else if (this.#ended && this.#pending.length === 0 && stages.idle()) {
          completed = true;
          return;
        } else {
          await this.#changed.wait();
        }
      }
    } finally {
      this.#stopped = true;
      this.#room.notify();
      signal?.removeEventListener("abort", interrupt);
      await stages.stop(completed);
    }
  }

  async #take<I>(inputs: AsyncIterable<I>, stages: Stages<I, R>): Promise<void> {
    let turn = 0;
    for await (const input of inputs) {
      if (this.stopped) return;
      const accepted = stages.accept(input);
      this.#pending.push(accepted instanceof Promise ? await accepted : accepted);
      if (this.#isFull()) stages.pause();
      while (this.#isFull() && !this.stopped) await this.#room.wait();
      if (++turn % TURN === 0) await setImmediate();
      if (this.stopped) return;
    }
    this.#ended = true;
    stages.end();
    this.#changed.notify();
  }

  #isFull(): boolean {
    const { first, last } = this.#pending;
    return first !== undefined && last !== undefined && last.span - first.span >= this.#window;
  }
}
