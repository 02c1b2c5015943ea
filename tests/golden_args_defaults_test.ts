/**
 * The defaults and checks of the run record against InternEvo 0.3.4. The schema follows 0.5.3 where the two differ, and
 * mends what is marked as a fault; both are recognised by a property of the case, asserted with Troupe's own value, and
 * explained in docs/differences/config.md.
 */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { ConfigError, resolveConfig } from "../src/config/mod.ts";
import { type Field, fieldsOf, isSection, recordTree, type Section } from "../src/config/record.ts";
import { readGoldenJson } from "./golden_dir.ts";

type Tree = Record<string, unknown>;
interface Case {
  label: string;
  world: number;
  rank: number;
  input_changes_to_base: { set: Tree; removed: string[] };
  output: { changes_to_input?: { set: Tree }; error?: string; message?: string };
}
const golden = readGoldenJson<{
  base_input: Tree;
  cases: Case[];
  official_configs_after_check: { official_config: string; world: number; output: { config?: Tree } }[];
}>("internevo", "args_defaults.json");

const known = new Map([...fieldsOf()].map((field) => [field.path, field]));

/** Errors of 0.3.4 that are none for Troupe. */
const acceptedErrors: { reason: string; applies: (error: string, message: string, input: Tree) => boolean }[] = [
  {
    reason: "there is no torch whose version could be too old",
    applies: (_, message) => /requires torch>=/.test(message),
  },
  {
    reason: "packing and the attention kernel are independent (as in 0.5.3)",
    applies: (_, message) => /use_packed_dataset should be set same value as use_flash_attn/.test(message),
  },
  {
    reason: "a number stands for the size of any parallel section",
    applies: (error, message) => error === "AttributeError" && /'int' object/.test(message),
  },
  {
    reason: "tensor.mode has a default (as in 0.5.3)",
    applies: (error, message) => error === "KeyError" && message === "'mode'",
  },
  {
    reason: "a missing section has its defaults",
    applies: (error, message) => error === "TypeError" && /'NoneType' object/.test(message),
  },
  {
    reason: "what is missing has a default here",
    applies: (error, message) => error === "AttributeError" && entriesNamed(message).some(hasDefaults),
  },
  {
    reason: "weights are divided over data-parallel ranks beside stages and experts",
    applies: (_, message) => /^FSDP (is not supportted when pipeline size|does not support num_experts)/.test(message),
  },
  {
    reason: "gradients and parameters of experts may travel during the passes, both",
    applies: (_, message) => /^not support overlap and moe at the same time$/.test(message),
  },
  { reason: "no package of experts could be missing", applies: (error) => error === "SystemExit" },
  {
    reason: "types may be written without torch.",
    applies: (_error, message, input) =>
      message === "" && /^(float32|float16|bfloat16|half|tf32)$/.test(String(at(input, "model.dtype"))),
  },
];

/** Values of 0.3.4 that Troupe has otherwise, when the input does not give them. */
const otherDefaults: Record<string, { value: unknown; reason: string }> = {
  "data.fixed_random_dataset_seqlen": { value: true, reason: "the default of 0.5.3" },
  "model.dtype": { value: "float32", reason: "float32 is what every device computes; InternEvo takes float16" },
};

/** What 0.3.4 finds only later, when it builds the model, and Troupe in the record. */
const foundEarlier: { path: string; reason: string; applies: (input: Tree) => boolean }[] = [
  {
    path: "model.num_layers",
    reason: "there are fewer layers than stages and chunks",
    applies: (input) =>
      Number(at(input, "model.num_layers")) <
        Number(at(input, "parallel.pipeline.size") ?? at(input, "parallel.pipeline")) *
          Number(at(input, "model.num_chunks")),
  },
];

/** Names that 0.3.4 has otherwise. */
const renamed: Record<string, [path: string, convert: (value: unknown) => unknown]> = {
  "tensorboard.queue_max_length": ["monitor.tensorboard.queue_max_length", (value) => value],
  "model.moe_use_residual": ["model.num_shared_experts", Number],
};

for (const [index, { label, world, rank, input_changes_to_base, output }] of golden.cases.entries()) {
  Deno.test(`resolveConfig() treats the record of case ${index} (${label}, world ${world}, rank ${rank}) as InternEvo`, () => {
    const input = changed(golden.base_input, input_changes_to_base);
    const options = { worldSize: world, allowRefused: true };
    if (output.error !== undefined) {
      const accepted = acceptedErrors.find(({ applies }) => applies(output.error!, output.message ?? "", input));
      if (accepted !== undefined) {
        console.log(`accepted although InternEvo raises ${output.error}: ${accepted.reason}`);
        resolveConfig(input, options);
      } else {
        const error = assertThrows(() => resolveConfig(input, options), ConfigError) as ConfigError;
        assert(error.problems.length > 0);
      }
      return;
    }
    const earlier = foundEarlier.find(({ applies }) => applies(input));
    if (earlier !== undefined) {
      console.log(`refused although InternEvo's check passes: ${earlier.reason}`);
      const error = assertThrows(() => resolveConfig(input, options), ConfigError) as ConfigError;
      assertEquals(error.problems.map(({ path }) => path), [earlier.path]);
      return;
    }
    const expected = changed(input, { set: output.changes_to_input!.set, removed: [] });
    assertSame(resolveConfig(input, options) as unknown as Tree, expected, input);
  });
}

for (const { official_config, world, output } of golden.official_configs_after_check) {
  Deno.test(`resolveConfig() leaves the checked settings of ${official_config} as they are`, () => {
    assert(output.config !== undefined, "the sample has no settings");
    const { kept, unknown } = withoutUnknown(output.config, recordTree);
    if (unknown.length > 0) console.log(`not in the record: ${unknown.join(", ")}`);
    assertSame(resolveConfig(kept, { worldSize: world, allowRefused: true }) as unknown as Tree, kept, kept);
  });
}

/** Every field that both know has the expected value. */
function assertSame(actual: Tree, expected: Tree, input: Tree): void {
  let compared = 0;
  for (const [oldPath, oldValue] of leaves(expected)) {
    const [path, convert] = renamed[oldPath] ?? [oldPath, (value: unknown) => value];
    if (oldPath !== path && at(expected, path) !== undefined) {
      console.log(`skipped ${oldPath}: ${path} is given too, and it is the one that counts`);
      continue;
    }
    if (known.has(`${path}.size`)) {
      assertEquals(at(actual, `${path}.size`), oldValue, path);
      compared++;
      continue;
    }
    if (!known.has(path)) {
      console.log(`skipped ${path}: a setting of 0.3.4 that 0.5.3 does not have, or has under another name`);
      continue;
    }
    const other = at(input, path) === undefined ? otherDefaults[path] : undefined;
    if (other !== undefined) console.log(`${path} is ${JSON.stringify(other.value)}: ${other.reason}`);
    assertEquals(at(actual, path), other === undefined ? plainValue(path, convert(oldValue)) : other.value, path);
    compared++;
  }
  assert(compared > 0, "nothing was compared");
}

function plainValue(path: string, value: unknown): unknown {
  if (value === "inf") return null;
  if (path === "model.dtype") return String(value).replace("torch.", "").replace("half", "float16");
  return value;
}

function* leaves(tree: Tree, prefix = ""): Generator<[string, unknown]> {
  for (const [key, value] of Object.entries(tree)) {
    const path = prefix + key;
    if (isMapping(value) && !known.has(path)) yield* leaves(value, `${path}.`);
    else yield [path, value];
  }
}

/** The input without the names that no field or older spelling has. */
function withoutUnknown(tree: Tree, section: Section): { kept: Tree; unknown: string[] } {
  const kept: Tree = {};
  const unknown: string[] = [];
  for (const [key, value] of Object.entries(tree)) {
    const path = section.path === "" ? key : `${section.path}.${key}`;
    const entry = section.entries.get(key);
    if (entry !== undefined && isSection(entry) && isMapping(value)) {
      const inner = withoutUnknown(value, entry);
      kept[key] = inner.kept;
      unknown.push(...inner.unknown);
    } else if (entry !== undefined || Object.keys(renamed).some((old) => old === path || old.startsWith(`${path}.`))) {
      kept[key] = value;
    } else {
      unknown.push(path);
    }
  }
  return { kept, unknown };
}

function changed(tree: Tree, { set, removed }: { set: Tree; removed: string[] }): Tree {
  const copy = structuredClone(tree);
  for (const path of removed) {
    const { holder, key } = holderOf(copy, path);
    delete holder[key];
  }
  for (const [path, value] of Object.entries(set)) {
    const { holder, key } = holderOf(copy, path);
    holder[key] = structuredClone(value);
  }
  return copy;
}

function holderOf(tree: Tree, path: string): { holder: Tree; key: string } {
  const keys = path.split(".");
  const key = keys.pop()!;
  const holder = keys.reduce((inner, name) => (inner[name] ??= {}) as Tree, tree);
  return { holder, key };
}

function at(tree: Tree, path: string): unknown {
  return path.split(".").reduce<unknown>((value, key) => isMapping(value) ? value[key] : undefined, tree);
}

function isMapping(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The sections and fields of the record that have this name, wherever they are. */
function entriesNamed(name: string, section = recordTree): (Section | Field)[] {
  return [...section.entries].flatMap(([key, entry]) => [
    ...(key === name ? [entry] : []),
    ...(isSection(entry) ? entriesNamed(name, entry) : []),
  ]);
}

/** Fields that may have to be written have an example. */
function hasDefaults(entry: Section | Field): boolean {
  const fields = isSection(entry) ? [...fieldsOf(entry)] : [entry];
  return fields.every((field) => field.note.example === undefined);
}
