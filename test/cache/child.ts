/** A process with a cache of its own, for tests with several of them: node child.ts DIRECTORY SIZE-LIMIT */
import assert from "node:assert/strict";
import { DiskCache } from "../../src/cache/index.ts";
import { bytesOf, insertPiece, largeFile, type Request, sample } from "./support.ts";

const [, , directory = "", sizeLimit] = process.argv;
// What others may do with the cache's files is not for the umask to say.
process.umask(0o077);
const cache = DiskCache.open(directory, { sizeLimit: Number(sizeLimit) });

process.on("message", (request: Request) => {
  process.send?.(answer(request), () => {
    if (request.do === "end") process.disconnect();
  });
});
process.send?.("ready");

function answer(request: Request): unknown {
  switch (request.do) {
    case "insert": {
      let taken = 0;
      for (let seed = request.from; seed < request.to; seed++) {
        const { hash, content } = sample(seed, request.size);
        if (cache.insert(hash, content)) taken++;
      }
      return taken;
    }
    case "check": {
      let resident = 0;
      for (let seed = request.from; seed < request.to; seed++) {
        const { hash, content } = sample(seed, request.size);
        const found = cache.load(hash);
        if (found === undefined) continue;
        assert.ok(found.equals(content), `wrong bytes for sample ${seed}`);
        resident++;
      }
      return resident;
    }
    case "assemble": {
      const file = largeFile(request.from, request.count, request.size);
      return file.layout.pieces.filter((_, index) => insertPiece(cache, file, index)).length;
    }
    case "read": {
      const file = largeFile(request.from, request.count, request.size);
      return file.layout.pieces.filter(({ blob }, index) => {
        const found = cache.load(blob);
        assert.ok(found === undefined || found.equals(bytesOf(file, index)), "wrong bytes");
        return found !== undefined;
      }).length;
    }
    case "status":
      return cache.status();
    case "end":
      cache.close();
      return "closed";
  }
}
