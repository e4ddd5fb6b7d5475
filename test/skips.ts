import type { TestEvent } from "node:test/reporters";

/** A test reporter that prints the name of each skipped test on a line of its own. */
export default async function* skips(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  for await (const event of source) {
    if (event.type === "test:pass" && event.data.skip !== undefined) yield `${event.data.name}\n`;
  }
}
