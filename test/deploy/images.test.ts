/** The Dockerfiles and manifests of deploy/, checked by others' tools and by what reads them here. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { parseAllDocuments } from "yaml";
import { loadConfig } from "../../src/meta/index.ts";
import { readFuseParams } from "../../src/pods/fuse/params.ts";
import { postgresParams } from "../../src/pods/postgres/params.ts";
import { splitWords } from "../../src/pods/words.ts";
import { CHECKOUT } from "../e2e/support.ts";
import { toolPath } from "../support/tools.ts";

const IMAGES = join(CHECKOUT, "deploy", "docker");
const MANIFESTS = join(CHECKOUT, "deploy", "kubernetes");

const manifests = readdirSync(MANIFESTS).filter((name) => name.endsWith(".yaml"));
// biome-ignore lint/suspicious/noExplicitAny: what the schemas check
const documents: any[] = manifests.flatMap((name) =>
  parseAllDocuments(readFileSync(join(MANIFESTS, name), "utf8")).map((document) => document.toJS()),
);

function missing(name: string): string | false {
  return toolPath(name) === undefined && `${name} is not installed, and there is no Python to install it with`;
}

test("hadolint finds nothing in the Dockerfiles", { skip: missing("hadolint") }, async () => {
  const files = readdirSync(IMAGES).map((name) => join(IMAGES, name));
  assert.equal(files.length, 4);
  await promisify(execFile)(toolPath("hadolint") as string, ["--failure-threshold", "info", ...files]);
});

test("the manifests are those of Kubernetes' schemas", { skip: missing("kubernetes-validate") }, async () => {
  const program = toolPath("kubernetes-validate") as string;
  const env = { ...process.env, PYTHONPATH: dirname(dirname(program)) };
  const files = manifests.map((name) => join(MANIFESTS, name));
  const { stdout, stderr } = await promisify(execFile)(program, ["--strict", ...files], { env });
  assert.equal((stdout + stderr).match(/ passed for resource /g)?.length, documents.length);
});

test("every container runs an image of deploy/docker or the application's, with requests that fit its limits", () => {
  const ours = readdirSync(IMAGES).map((name) => `registry.example.org/datamon-${name.replace(".Dockerfile", "")}:`);
  let count = 0;
  for (const { initContainers = [], containers } of podsOf(documents)) {
    for (const { image, resources } of [...initContainers, ...containers]) {
      if (image.includes("/datamon-"))
        assert.ok(
          ours.some((prefix) => image.startsWith(prefix)),
          image,
        );
      assert.ok(bytes(resources.requests.memory) <= bytes(resources.limits.memory), image);
      count++;
    }
  }
  assert.ok(count >= 9);
});

test("the parameters in the manifests are understood", async () => {
  const maps = documents.filter(({ kind }) => kind === "ConfigMap");
  const params = maps.map(({ data }) => data["fuse-params.yaml"]).filter((text) => text !== undefined);
  assert.equal(params.length, 1);
  assert.equal(readFuseParams(params[0]).commands.length, 2);

  const folder = mkdtempSync(join(tmpdir(), "datamon-deploy-"));
  const before = process.env.DATAMON_CONFIG;
  try {
    process.env.DATAMON_CONFIG = join(folder, "datamon.yaml");
    writeFileSync(process.env.DATAMON_CONFIG, maps.find(({ data }) => "datamon.yaml" in data).data["datamon.yaml"]);
    assert.equal((await loadConfig()).blob, "gs://example-datamon/blob");
  } finally {
    if (before === undefined) delete process.env.DATAMON_CONFIG;
    else process.env.DATAMON_CONFIG = before;
    rmSync(folder, { recursive: true });
  }

  let databases = 0;
  let commands = 0;
  for (const { initContainers = [], containers } of podsOf(documents)) {
    for (const { env = [], args = [] } of [...initContainers, ...containers]) {
      const variables = Object.fromEntries(env.map(({ name, value }: Record<string, string>) => [name, value]));
      if ("dm_pg_opts" in variables) databases += (await postgresParams(variables)).databases.length;
      for (const [at, arg] of args.entries()) if (args[at - 1] === "-d") commands += Math.sign(splitWords(arg).length);
    }
  }
  assert.deepEqual({ databases, commands }, { databases: 2, commands: 2 });
});

/** The specs of all pods that the manifests start. */
// biome-ignore lint/suspicious/noExplicitAny: what the schemas check
function podsOf(all: any[]): any[] {
  const templates = all.map(({ spec }) => spec?.template ?? spec?.jobTemplate?.spec.template);
  return templates.filter((template) => template !== undefined).map(({ spec }) => spec);
}

function bytes(quantity: string): number {
  const [, number, unit] = /^(\d+)(Mi|Gi)$/.exec(quantity) ?? [];
  return Number(number) * (unit === "Gi" ? 1024 : 1);
}
