import type Database from "better-sqlite3";

/** Rows that go into a table with one statement: with more, a call still takes no less for each of them. */
const TOGETHER = 32;

/** A value that a column takes. */
type Value = number | bigint | Buffer | null;

/**
 * Inserts rows into a table, in order, many with one statement: a call for each takes longer than the insertion.
 * A row is in the table after `flush`, and may not be before; its buffers must stay as they are until then.
 */
export class RowInserter {
  readonly #columns: number;
  readonly #together: number;
  readonly #one: Database.Statement<unknown[]>;
  readonly #many: Database.Statement<unknown[]>;
  #values: Value[] = [];

  /** @param atOnce whether each row is to be inserted when it comes */
  constructor(database: Database.Database, table: string, columns: number, atOnce: boolean) {
    const row = `(${Array(columns).fill("?").join(", ")})`;
    this.#columns = columns;
    this.#together = atOnce ? 1 : TOGETHER;
    this.#one = database.prepare(`INSERT INTO ${table} VALUES ${row}`);
    this.#many = database.prepare(`INSERT INTO ${table} VALUES ${Array(this.#together).fill(row).join(", ")}`);
  }

  add(...row: Value[]): void {
    const values = this.#values;
    for (const value of row) values.push(value);
    if (values.length < this.#together * this.#columns) return;
    this.#values = [];
    this.#many.run(values);
  }

  /** Inserts what waits. */
  flush(): void {
    const values = this.#values;
    if (values.length === 0) return;
    this.#values = [];
    for (let at = 0; at < values.length; at += this.#columns) this.#one.run(values.slice(at, at + this.#columns));
  }
}
