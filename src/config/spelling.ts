/**
 * Takes the spellings that records may use to the one that the schema knows: Python's None, True and False as text,
 * a bare number for a parallel section, and older or shorter names of fields.
 */
import type { ConfigProblem } from "./error.ts";

/** A tree of plain data without prototypes, so that no key of a record can mean anything but itself. */
export type Tree = { [key: string]: unknown };

export function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

/** A deep copy of plain data, with `None`, `True` and `False` read as Python would. */
function plain(value: unknown, depth = 0): unknown {
  if (depth > 32) throw new RangeError("The record is nested more than 32 levels deep, or contains itself");
  if (value === "None") return null;
  if (value === "True") return true;
  if (value === "False") return false;
  if (Array.isArray(value)) return value.map((item) => plain(item, depth + 1));
  if (!isTree(value)) return value;
  const tree: Tree = Object.create(null);
  for (const key of Object.keys(value)) if (value[key] !== undefined) tree[key] = plain(value[key], depth + 1);
  return tree;
}

interface Alias {
  readonly from: string;
  readonly to: string;
  readonly convert?: (value: unknown) => unknown;
  /** The other name is the one that counts where both are written. */
  readonly yields?: boolean;
}

const aliases: readonly Alias[] = [
  { from: "pipeline.schedule", to: "parallel.pipeline.schedule" },
  { from: "tensorboard.queue_max_length", to: "monitor.tensorboard.queue_max_length", yields: true },
  { from: "hybrid_zero_optimizer.zero_overlap_communication", to: "hybrid_zero_optimizer.overlap_sync_grad" },
  {
    from: "model.moe_use_residual",
    to: "model.num_shared_experts",
    convert: (value) => typeof value === "boolean" ? Number(value) : value,
  },
];

const sizedSections = ["zero1", "tensor", "pipeline", "weight", "expert", "expert_weight"];

/** A copy of the input in the schema's spelling. Names given twice under two spellings are reported. */
export function respell(input: unknown): { tree: Tree; problems: ConfigProblem[]; notices: string[] } {
  const problems: ConfigProblem[] = [];
  const notices: string[] = [];
  const root = plain(input);
  if (!isTree(root)) {
    problems.push({
      path: "(record)",
      message: `${typeName(root)} is not a mapping of sections, such as "model: {…}"`,
    });
    return { tree: Object.create(null), problems, notices };
  }
  const { parallel, model } = root;
  if (isTree(parallel)) {
    for (const name of sizedSections) {
      if (typeof parallel[name] === "number" || typeof parallel[name] === "string") {
        parallel[name] = { size: parallel[name] };
      }
    }
  }
  for (const { from, to, convert = (value: unknown) => value, yields } of aliases) {
    const [section, field] = from.split(".");
    const holder = root[section];
    if (!isTree(holder) || !(field in holder)) continue;
    const value = convert(holder[field]);
    delete holder[field];
    if (Object.keys(holder).length === 0 && !to.startsWith(`${section}.`)) delete root[section];
    const target = reach(root, to.split(".").slice(0, -1));
    const name = to.split(".").at(-1)!;
    if (target === undefined) continue;
    if (name in target && yields) continue;
    if (name in target && target[name] !== value) {
      problems.push({ path: from, message: `means the same as ${to}, which is given too; keep one of them` });
    } else {
      target[name] = value;
    }
  }
  if (isTree(model) && typeof model.dtype === "string" && /^(torch\.)?tf32$/.test(model.dtype)) {
    notices.push("model.dtype: tf32 is computed as float32");
  }
  return { tree: root, problems, notices };
}

/** The mapping at a path, made where there is none; undefined where something else stands in the way. */
function reach(root: Tree, path: readonly string[]): Tree | undefined {
  let tree = root;
  for (const key of path) {
    tree[key] ??= Object.create(null);
    const next = tree[key];
    if (!isTree(next)) return undefined;
    tree = next;
  }
  return tree;
}

export function typeName(value: unknown): string {
  if (value === null || value === undefined) return "nothing";
  if (Array.isArray(value)) return "a list";
  return typeof value === "string" ? "text" : typeof value === "object" ? "a mapping" : `a ${typeof value}`;
}
