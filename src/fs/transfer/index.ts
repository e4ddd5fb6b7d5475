/** Local trees: uploading, downloading, comparing and updating folders. */
export { openBundleCatalog } from "./base-tree.ts";
export { Breath } from "./breath.ts";
export { countTree } from "./count.ts";
export { type DiffEntry, type DiffOptions, type DiffSide, diffBundles, diffTree } from "./diff.ts";
export {
  type DownloadFileOptions,
  type DownloadOptions,
  type DownloadResult,
  downloadBundle,
  downloadFile,
  type Progress,
  type TransferOptions,
} from "./download.ts";
export { parseFileList } from "./selection.ts";
export { type UpdateOptions, type UpdateResult, updateTree } from "./update.ts";
export { type UploadOptions, type UploadResult, uploadTree } from "./upload.ts";
export { type LocalStat, LocalTree } from "./walk.ts";
