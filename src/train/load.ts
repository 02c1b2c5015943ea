/** What a run begins from when it is not its own newest checkpoint: another run's, whole or in part. */
import { parse } from "@std/yaml";
import {
  type Checkpoint,
  listCheckpoints,
  loadContents,
  type LoadPath,
  type LoadPlan,
  newestUsable,
  openCheckpoint,
  parseStoragePath,
  planLoad,
  verifyCheckpoint,
} from "../checkpoint/mod.ts";
import type { ResolvedConfig } from "../config/mod.ts";

/** What the record's `ckpt` section asks to begin from. */
export function loadPlanOf({ ckpt }: ResolvedConfig): LoadPlan {
  return planLoad({
    autoResume: ckpt.auto_resume,
    loadCkptInfo: ckpt.load_ckpt_info?.path ? ckpt.load_ckpt_info : null,
    loadCkptFolder: ckpt.load_ckpt_folder,
    loadModelOnlyFolder: ckpt.load_model_only_folder,
    loadOptimizer: ckpt.load_optimizer,
  });
}

/**
 * Opens the checkpoint that the user named: its folder, or a folder of several, of which the newest usable is taken.
 * Every byte is checked.
 *
 * @param onSkipped gets a sentence for each one that cannot be used
 * @throws an error that says what the folder is instead
 */
export async function openGivenCheckpoint(path: string, onSkipped?: (sentence: string) => void): Promise<Checkpoint> {
  const folder = parseStoragePath(path), named = `Cannot load ${folder}`;
  let names: string[];
  try {
    names = [...Deno.readDirSync(folder)].map(({ name }) => name);
  } catch (error) {
    throw new Error(`${named}: ${(error as Error).message}`, { cause: error });
  }
  if (names.includes("config.json") && names.some((name) => name.endsWith(".safetensors"))) {
    throw new Error(`${named}: it is a Hugging Face folder; ckpt_type: hf in ckpt.load_ckpt_info would work`);
  }
  if (!names.includes("manifest.json") && listCheckpoints(folder).length > 0) {
    const newest = await newestUsable(folder, onSkipped ? { onSkipped } : {});
    if (newest) return newest;
    throw new Error(`${named}: it holds no usable checkpoint`);
  }
  await verifyCheckpoint(folder);
  return openCheckpoint(folder);
}

/** Fields that change what a model computes and leave no trace in the shapes of its tensors. */
const unseen = [
  "num_attention_heads",
  "num_kv_attention_heads",
  "norm_type",
  "layer_norm_epsilon",
  "norm_head",
  "add_unit_offset",
  "use_swiglu",
  "gelu_approximate",
  "qk_interleaved",
  "rope_base",
  "use_dynamic_ntk_rope",
  "top_k",
  "moe_type",
  "moe_layer_kwargs",
  "options",
] as const;

/** Sentences on fields in which the record differs from the one that the checkpoint's run had. */
export function recordDifferences(checkpoint: Checkpoint, config: ResolvedConfig): string[] {
  let then: { model_type?: unknown; model?: Record<string, unknown> } | null;
  try {
    then = parse(checkpoint.manifest.config) as typeof then;
  } catch {
    return []; // a record is kept for people; tensors and state do not need it
  }
  const names = [...unseen, ...(config.model.use_dynamic_ntk_rope ? ["max_position_embeddings"] as const : [])];
  const pairs: [string, unknown, unknown][] = [
    ["model_type", then?.model_type, config.model_type],
    ...names.map((name): [string, unknown, unknown] => [`model.${name}`, then?.model?.[name], config.model[name]]),
  ];
  return pairs.filter(([, was, is]) => was !== undefined && ordered(was) !== ordered(is)).map(([name, was, is]) =>
    `${name} was ${JSON.stringify(was)} in the run of checkpoint ${checkpoint.directory}, and is ${JSON.stringify(is)}`
  );
}

/** As JSON, the same however the fields of a mapping are ordered. */
const ordered = (value: unknown) =>
  JSON.stringify(value, (_, part) => {
    if (typeof part !== "object" || part === null || Array.isArray(part)) return part;
    return Object.fromEntries(Object.keys(part).sort().map((key) => [key, part[key]]));
  });

/** "the model, optimizer and scheduler". */
export function describeContent(content: LoadPath["content"]): string {
  if (content.length === loadContents.length) return "everything";
  if (content.length === 1) return `the ${content[0]}`;
  return `the ${content.slice(0, -1).join(", ")} and ${content.at(-1)}`;
}
