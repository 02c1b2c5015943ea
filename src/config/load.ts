/** Reads a run record from YAML files: `extends`, and the changes of `--set`. */
import { dirname, resolve } from "node:path";
import { ConfigError, type ConfigProblem } from "./error.ts";
import { isTree, respell, type Tree } from "./spelling.ts";
import { parseYaml, parseYamlFile } from "./yaml_text.ts";

export interface LoadOptions {
  /** Changes such as `model.num_layers=4`, applied in order after the files. Values are YAML, or arithmetic. */
  readonly set?: readonly string[];
}

/**
 * What the user wrote, from one file and those it extends: fields of a file replace those of the file it extends, and
 * `set` replaces both. Nothing is checked yet but the files themselves; `resolveConfig` does the rest.
 *
 * @throws {ConfigError} If a file cannot be read or is not YAML, if files extend each other in a circle, or if a change
 * is not of the form `field=value`.
 */
export async function loadConfig(file: string, { set = [] }: LoadOptions = {}): Promise<Record<string, unknown>> {
  return applyChanges(await readFile(file, []), set);
}

/** A record with changes of the form `section.field=value` made in order. */
export function applyChanges(record: Record<string, unknown>, changes: readonly string[]): Record<string, unknown> {
  return changes.reduce<Tree>((changed, change) => merge(changed, parseChange(change)), record);
}

async function readFile(file: string, extending: readonly string[]): Promise<Tree> {
  const path = resolve(file);
  if (extending.includes(path)) {
    throw problem(extending[0], `extends itself: ${[...extending, path].join(" -> ")}; one of them must not extend`);
  }
  if (file.endsWith(".py")) {
    throw problem(file, "is a Python file; write the same sections and fields as YAML");
  }
  let content: unknown;
  try {
    content = parseYamlFile(await Deno.readFile(path)) ?? {};
  } catch (error) {
    const by = extending.length > 0 ? ` (extended by ${extending.at(-1)})` : "";
    throw problem(file, `cannot be read${by}: ${reason(error)}`, error);
  }
  if (!isTree(content)) throw problem(file, 'holds no mapping of sections, such as "model: {…}"');
  const { extends: base, ...own } = content;
  const { tree, problems } = respelled(own, file);
  if (problems.length > 0) throw new ConfigError(problems);
  if (base === undefined || base === null) return tree;
  if (typeof base !== "string") {
    throw problem(file, `extends: ${JSON.stringify(base)} is not the path of one file, such as extends: base.yaml`);
  }
  return merge(await readFile(resolve(dirname(path), base), [...extending, path]), tree);
}

function respelled(record: unknown, where: string): { tree: Tree; problems: readonly ConfigProblem[] } {
  try {
    return respell(record);
  } catch (error) {
    throw problem(where, reason(error), error);
  }
}

/** The other's values over the one's; mappings are merged, everything else is replaced. */
function merge(one: Tree, other: Tree): Tree {
  const merged: Tree = Object.assign(Object.create(null), one);
  for (const [key, value] of Object.entries(other)) {
    const present = merged[key];
    merged[key] = isTree(present) && isTree(value) ? merge(present, value) : value;
  }
  return merged;
}

function parseChange(change: string): Tree {
  const [, path, text] = change.match(/^([^=]+)=(.*)$/s) ?? [];
  const keys = path?.trim().split(".") ?? [];
  if (keys.length === 0 || keys.some((key) => key === "")) {
    throw problem(`--set ${change}`, "is not of the form section.field=value, such as model.num_layers=4");
  }
  let value: unknown;
  try {
    value = parseYaml(text) ?? null;
  } catch (error) {
    throw problem(`--set ${change}`, `has a value that cannot be read: ${reason(error)}`, error);
  }
  const tree = keys.reduceRight<unknown>((inner, key) => Object.assign(Object.create(null), { [key]: inner }), value);
  return respelled(tree, `--set ${change}`).tree;
}

function problem(path: string, message: string, cause?: unknown): ConfigError {
  const error = new ConfigError([{ path, message }]);
  if (cause !== undefined) error.cause = cause;
  return error;
}

/** The first line of an error, without the operating system's details. */
function reason(error: unknown): string {
  if (error instanceof Deno.errors.NotFound) return "there is no such file";
  if (error instanceof Deno.errors.IsADirectory || /os error 21/.test(String(error))) return "it is a folder";
  return error instanceof Error ? error.message.split("\n")[0]! : String(error);
}
