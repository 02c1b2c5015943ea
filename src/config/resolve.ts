/**
 * From what the user wrote to the complete record: spelling, types, defaults, derived values, rules between fields and
 * the refusal of what is not built, with every problem found on the way reported together.
 *
 * The record under construction computes each field when it is first read. A field with a bad value throws a private
 * signal instead; derived values and rules that run into it are left out, and everything else is still checked.
 */
import type { z } from "zod";
import { derivedValues, Needed } from "./derived.ts";
import { ConfigError } from "./error.ts";
import { mostSimilar, nearest } from "./nearest.ts";
import {
  boundsOf,
  choicesOf,
  defaultOf,
  expectation,
  type Field,
  fieldsOf,
  isSection,
  recordTree,
  type Section,
} from "./record.ts";
import { rules } from "./rules.ts";
import type { ResolvedConfig } from "./schema/mod.ts";
import { isTree, respell, type Tree, typeName } from "./spelling.ts";

export interface ResolveOptions {
  /** Ranks in all. @default {runtime.nproc} */
  readonly worldSize?: number;
  /** Resolve a record that asks for what is not built yet, for planning and comparison. @default {false} */
  readonly allowRefused?: boolean;
  /** Names that plugins have registered. Without it, and with plugins in the record, any `model_type` passes. */
  readonly modelTypes?: readonly string[];
  /** Told, once each, about settings that are accepted but have no effect. */
  readonly onNotice?: (line: string) => void;
}

/** Thrown when a field is read whose value is already known to be wrong. */
class UnknownValue extends Error {}

/**
 * The complete record of a run.
 *
 * @param input What the user wrote: the content of a YAML file, or an object.
 * @returns Plain, deeply frozen data; resolving it again gives the same.
 * @throws {ConfigError} With everything that is wrong.
 *
 * @example
 * ```ts
 * import { resolveConfig } from "./mod.ts";
 * const config = resolveConfig({
 *   model_type: "INTERNLM2",
 *   model: { num_layers: 2, hidden_size: 64, num_attention_heads: 4, vocab_size: 512, mlp_ratio: "8/3" },
 *   data: { seq_len: 128, micro_bsz: 2, total_steps: 10 },
 *   adam: { lr: 1e-3 },
 *   ckpt: { enable_save_ckpt: false },
 * });
 * console.assert(config.data.packed_length === 256);
 * ```
 */
export function resolveConfig(input: unknown, options: ResolveOptions = {}): ResolvedConfig {
  const { tree, problems, notices } = respell(input);
  const fail = (path: string, message: string) => {
    problems.push({ path, message });
  };

  const written = readWritten(tree, fail);
  const cells = new Map([...fieldsOf()].map((field) => [field.path, cell(field)]));
  const record = lazyRecord(recordTree) as ResolvedConfig;

  for (const read of cells.values()) skippingUnknown(read);
  skippingUnknown(() => {
    const context = {
      worldSize: options.worldSize ?? record.runtime.nproc,
      modelTypes: options.modelTypes,
    };
    for (const rule of rules) skippingUnknown(() => rule(record, fail, context));
  });
  for (const field of fieldsOf()) skippingUnknown(() => checkStatus(field));
  if (problems.length > 0) throw new ConfigError(problems);

  if (options.onNotice) { for (const line of new Set(notices)) options.onNotice(line); }
  return materialise(recordTree);

  /** Reads one field, computing it at the first call. */
  function cell(field: Field): () => unknown {
    let state: { value: unknown } | "unknown" | undefined;
    return () => {
      state ??= compute(field);
      if (state === "unknown") throw new UnknownValue(field.path);
      return state.value;
    };
  }

  function compute(field: Field): { value: unknown } | "unknown" {
    const { path, schema } = field;
    let given: unknown;
    if (written.has(path)) {
      const entry = written.get(path);
      if (entry === UNREADABLE) return "unknown";
      const parsed = schema.safeParse(entry);
      if (!parsed.success) {
        const [issue] = parsed.error.issues;
        const at = [path, ...issue.path].join(".");
        const seen = issue.path.reduce((value: unknown, key) => (value as Tree)?.[String(key)], entry);
        const nested = issue.path.length > 0 || issue.code === "unrecognized_keys";
        fail(at, nested ? insideWrong(issue, seen) : wrongValue(field, entry));
        return "unknown";
      }
      given = parsed.data;
    }
    const rule = derivedValues[path];
    try {
      if (rule !== undefined) {
        const value = rule.value(record, given);
        if (given !== undefined && rule.overrules && given !== value) {
          notices.push(`${path}: ${show(given)} becomes ${show(value)}: ${rule.overrules}`);
        }
        return { value };
      }
    } catch (error) {
      if (error instanceof Needed) fail(path, error.message);
      else if (!(error instanceof UnknownValue)) throw error;
      return "unknown";
    }
    if (given !== undefined) return { value: given };
    const fallback = defaultOf(field);
    if (fallback !== undefined) return { value: fallback };
    fail(path, `missing; ${expectation(schema)} is needed, such as ${show(field.note.example)}`);
    return "unknown";
  }

  /** A value that the user wrote for something that is not built stops the run; a default never does. */
  function checkStatus(field: Field): void {
    const { path, note } = field;
    if (!written.has(path)) return;
    const value = cells.get(path)!();
    const standard = standardValue(field);
    const differs = !equal(value, standard);
    if (note.notice && differs) notices.push(`${path}: ${show(value)} ${note.notice}`);
    if (options.allowRefused) return;
    if (note.status === "works") {
      const reason = note.only?.includes(value) === false
        ? `Troupe does not do this yet; ${note.only.map(show).join(" or ")} works`
        : note.refuse?.(value);
      if (reason !== undefined) fail(path, `${show(value)} is refused: ${reason} (${brief(note.help)})`);
    } else if (differs && !isIdle(note.onlyWith)) {
      fail(
        path,
        `${show(value)} is refused: Troupe does not do this yet; ${show(standard)} works (${brief(note.help)})` +
          (note.instead === undefined ? "" : `; ${note.instead}`),
      );
    }
  }

  /** The value the field would have if the user had not written it. */
  function standardValue(field: Field): unknown {
    const rule = derivedValues[field.path];
    if (rule === undefined) return defaultOf(field);
    try {
      return rule.value(record, undefined);
    } catch (error) {
      if (error instanceof Needed) return undefined;
      throw error;
    }
  }

  /** Whether a field that only matters with another one has nothing to do. */
  function isIdle(governor: string | undefined): boolean {
    if (governor === undefined) return false;
    const field = [...fieldsOf()].find(({ path }) => path === governor)!;
    return equal(cells.get(governor)!(), standardValue(field));
  }

  function lazyRecord(section: Section): Tree {
    const target: Tree = {};
    for (const [key, entry] of section.entries) {
      if (isSection(entry)) target[key] = lazyRecord(entry);
      else Object.defineProperty(target, key, { get: cells.get(entry.path)!, enumerable: true });
    }
    return target;
  }

  function materialise<T>(section: Section): T {
    const target: Tree = {};
    for (const [key, entry] of section.entries) {
      target[key] = isSection(entry) ? materialise(entry) : deepFreeze(structuredClone(cells.get(entry.path)!()));
    }
    return Object.freeze(target) as T;
  }
}

/** Stands for the fields of a section whose value is no mapping. */
const UNREADABLE = Symbol("unreadable");

/** The written values by path; sections that are no mappings and names that do not exist are reported. */
function readWritten(tree: Tree, fail: (path: string, message: string) => void): Map<string, unknown> {
  const written = new Map<string, unknown>();
  visit(recordTree, tree);
  return written;

  function visit(section: Section, values: Tree): void {
    for (const [key, value] of Object.entries(values)) {
      const entry = section.entries.get(key);
      if (entry === undefined) {
        fail(section.path === "" ? key : `${section.path}.${key}`, unknownField(section, key, value));
      } else if (!isSection(entry)) {
        written.set(entry.path, value);
      } else if (isTree(value)) {
        visit(entry, value);
      } else if (value !== null) { // an empty section is written as nothing
        const [first] = entry.entries.keys();
        fail(entry.path, `${show(value)} is ${typeName(value)}; a mapping of fields is needed, such as {${first}: …}`);
        for (const field of fieldsOf(entry)) written.set(field.path, UNREADABLE);
      }
    }
  }
}

function unknownField(section: Section, key: string, value: unknown): string {
  const seen = isTree(value) ? "" : `${show(value)}: `;
  const close = nearest(key, section.entries.keys());
  if (close !== undefined) return `${seen}there is no such field; ${close} is the nearest`;
  const paths = [...fieldsOf()].map(({ path }) => path);
  const elsewhere = paths.find((path) => path.split(".").at(-1) === key) ??
    [...recordTree.entries.keys()].find((name) => name === key);
  if (elsewhere !== undefined) return `${seen}there is no such field here; ${elsewhere} is the nearest`;
  return `${seen}there is no such field; ${mostSimilar(key, [...section.entries.keys()])} is the nearest of ${
    section.path || "the record"
  }`;
}

function wrongValue(field: Field, value: unknown): string {
  const { schema, note } = field;
  const candidates: unknown[] = [];
  if (typeof value === "string") {
    const choices = choicesOf(schema);
    const close = nearest(value, choices);
    if (close !== undefined) candidates.push(close);
    candidates.push(value.toLowerCase() === "true" ? true : value.toLowerCase() === "false" ? false : undefined);
  }
  if (typeof value === "number") candidates.push(Math.round(value), ...boundsOf(schema), String(value));
  const standard = defaultOf(field);
  // That nothing would work too is no help.
  candidates.push(
    ...(standard === null ? [note.example, standard] : [standard, note.example]),
    ...choicesOf(schema),
    ...boundsOf(schema),
    1,
    0.5,
    "text",
  );
  const works = candidates.find((candidate) => candidate !== undefined && schema.safeParse(candidate).success);
  return `${show(value)} is not ${expectation(schema)}; ${show(works)} would work`;
}

/** What is wrong inside a field that is a mapping or a list. */
function insideWrong(issue: z.core.$ZodIssue, seen: unknown): string {
  if (issue.code === "invalid_type") return `${show(seen)} is not a ${issue.expected}`;
  if (issue.code === "unrecognized_keys") return `${show(seen)}: it takes no ${issue.keys.join(", ")}`;
  return `${show(seen)}: ${lowerFirst(issue.message)}`;
}

function skippingUnknown(run: () => void): void {
  try {
    run();
  } catch (error) {
    if (!(error instanceof UnknownValue)) throw error;
  }
}

function show(value: unknown): string {
  const text = typeof value === "number" ? String(value) : JSON.stringify(value) ?? "nothing";
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}

/** The first clause of a field's description. */
const brief = (help: string) => help.split(/[.:;](?: |$)/)[0];

const lowerFirst = (text: string) => text.charAt(0).toLowerCase() + text.slice(1);

function equal(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null) {
    Object.values(value).forEach(deepFreeze);
    Object.freeze(value);
  }
  return value;
}
