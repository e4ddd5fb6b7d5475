import { DatamonError } from "./errors.ts";
import type { ObjectStore } from "./store.ts";

/**
 * Opens the object store at `url`, such as `file:///data/store`. Nothing is made until the first
 * put. A scheme of a store that is planned gives `unsupported`, any other `usage`.
 */
export async function openStore(url: string): Promise<ObjectStore> {
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(url)?.[1]?.toLowerCase();
  switch (scheme) {
    case "file": {
      const { LocalStore } = await import("./stores/local.ts");
      return await LocalStore.open(url);
    }
    case "gs":
    case "s3":
      throw new DatamonError("unsupported", `${url}: stores of the kind ${scheme}:// are not yet supported`, {
        hint: "Use a local store, such as file:///data/datamon.",
      });
    default:
      throw new DatamonError("usage", `${url} is not the URL of a store`, {
        hint: "Write it like file:///data/datamon.",
      });
  }
}
