/** Repos, bundles, labels and catalogs: what the metadata store holds. */
export { newBundleId } from "./bundle-id.ts";
export * from "./bundles.ts";
export { Catalog, type WalkEntry } from "./catalog/catalog.ts";
export { type Difference, diffCatalogs } from "./catalog/diff.ts";
export {
  type Attributes,
  type CatalogSummary,
  type CatalogTotals,
  type Dentry,
  type Inode,
  type Kind,
  kindOf,
  ROOT_INO,
} from "./catalog/model.ts";
export { CatalogWriter } from "./catalog/writer.ts";
export { fetchCatalog, keepCatalog, putCatalog } from "./catalogs.ts";
export { type CheckOptions, checkStores, type Finding } from "./check/check.ts";
export * from "./config.ts";
export * from "./context.ts";
export * from "./labels.ts";
export { createRepo, deleteRepo, getRepo, listRepos, type Repo } from "./repos.ts";
export * from "./resolve.ts";
