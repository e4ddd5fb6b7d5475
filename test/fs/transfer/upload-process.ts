/** Uploads `<root>/tree` into the stores below `root`, for tests that kill it; see `Workplace`. */
import { Workplace } from "./support.ts";

const [root = "", label] = process.argv.slice(2);
const place = await Workplace.at(root);
const { bundle } = await place.upload({ label });
console.log(bundle.id);
