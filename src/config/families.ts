/** What the model types of InternEvo differ in as far as the run record goes: their constructors' defaults. */

export interface FamilyDefaults {
  readonly hidden_size: number;
  readonly num_attention_heads: number;
  /** Fraction of the layers that are recomputed. */
  readonly checkpoint: number;
  /** Standard deviations of the initial weights; `small` is for the output projections without scaled init. */
  readonly init: { embedding: number; wqkv: number; other: number; small: number; uplayer: number; head: number };
  /** Multi-head attention with biases: no grouped keys and values, no `no_bias`, no `norm_head`. */
  readonly multiHead: boolean;
}

const fixedInit = { embedding: 0.0052, wqkv: 0.006, other: 0.006, small: 0.0015, uplayer: 0.006, head: 0.0052 };
const evenInit = { embedding: 0.02, wqkv: 0.02, other: 0.02, small: 0.02, uplayer: 0.02, head: 0.02 };

const internlm = { hidden_size: 768, num_attention_heads: 12, checkpoint: 0, init: fixedInit, multiHead: true };
const internlm2 = { hidden_size: 2048, num_attention_heads: 32, checkpoint: 0, init: evenInit, multiHead: false };
const recomputed = { ...internlm2, checkpoint: 1 };

const families: Readonly<Record<string, FamilyDefaults>> = {
  INTERNLM: internlm,
  INTERNLM2: internlm2,
  INTERNLM2_PUBLIC: internlm2,
  INTERNLM3: internlm2,
  LLAMA2: internlm2,
  INTERNLM_MoE: internlm,
  QWEN2: recomputed,
  BAICHUAN2: { ...recomputed, init: { ...fixedInit, other: 0.0015 } },
  GEMMA: recomputed,
  QWEN2MOE: recomputed,
  MIXTRALMOE: { ...internlm, multiHead: false },
  LLAVA: internlm2,
};

/** Every model type that InternEvo names. */
export const knownModelTypes: readonly string[] = Object.keys(families);

/** The model types that Troupe trains without a plugin. */
export const workingModelTypes: readonly string[] = [
  "INTERNLM",
  "INTERNLM2",
  "INTERNLM2_PUBLIC",
  "LLAMA2",
  "QWEN2",
  "GEMMA",
  "INTERNLM_MoE",
  "MIXTRALMOE",
  "QWEN2MOE",
];

/** Those of them that have mixtures of experts. */
export const typesWithExperts: readonly string[] = ["INTERNLM_MoE", "MIXTRALMOE", "QWEN2MOE"];

/** Defaults of a model type; one that a plugin brings gets INTERNLM2's. */
export function familyDefaults(modelType: string): FamilyDefaults {
  return Object.hasOwn(families, modelType) ? families[modelType] : internlm2;
}
