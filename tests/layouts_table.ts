/** Every way of dividing a model that is tested: `layouts_test.ts` trains each as on one rank, `verify_layouts.ts` replays references. */
import type { Division, TinyRun } from "./layouts.ts";

export const runs = {
  internlm2: { model_type: "INTERNLM2" },
  internlm: { model_type: "INTERNLM" },
  llama2: { model_type: "LLAMA2", model: { num_kv_attention_heads: 2 } },
  qwen2: { model_type: "QWEN2", model: { num_kv_attention_heads: 2, qkv_bias: true } },
  gemma: { model_type: "GEMMA", model: { num_kv_attention_heads: 1, head_dim: 16, tie_word_embeddings: true } },
  "internlm2 with norm_head": { model_type: "INTERNLM2", model: { norm_head: true } },
  // Fewer stages than layers, so that the table is far from the head that it serves as.
  "gemma of 4 layers": {
    model_type: "GEMMA",
    model: { num_layers: 4, hidden_size: 16, num_kv_attention_heads: 1, head_dim: 16, tie_word_embeddings: true },
  },
  "llama2 of 4 layers, head tied": {
    model_type: "LLAMA2",
    model: { num_layers: 4, hidden_size: 16, num_kv_attention_heads: 2, tie_word_embeddings: true },
  },
  "internlm2 of 8 layers": { model_type: "INTERNLM2", model: { num_layers: 8, hidden_size: 16 }, microBatches: 4 },
  mixtral: {
    model_type: "MIXTRALMOE",
    model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
  },
  "mixtral, 4 micro-batches": {
    model_type: "MIXTRALMOE",
    model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
    microBatches: 4,
  },
  // Each rank finds the balance of its own tokens: where ranks share a micro-batch, the mean of theirs is another number.
  "mixtral without balance": {
    model_type: "MIXTRALMOE",
    model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
    moeLossCoefficient: 0,
  },
  "qwen2 moe": {
    model_type: "QWEN2MOE",
    model: { num_experts: 4, top_k: 2, num_shared_experts: 2, moe_type: "Dropless" },
  },
  // Room is counted in the tokens of a micro-batch: it does not change with the ranks, as these share no micro-batch.
  "internlm moe, GShard": {
    model_type: "INTERNLM_MoE",
    model: {
      num_experts: 4,
      top_k: 2,
      num_shared_experts: 1,
      moe_layer_kwargs: { noisy_gate_policy: "Jitter", min_capacity: 2 },
    },
  },
} satisfies Record<string, TinyRun>;
export type RunName = keyof typeof runs;

/** A layout, and what is trained in it. */
export interface Layout extends Division {
  /** @default the first run */
  readonly runs?: readonly RunName[];
  /** Wider where a layout rounds elsewhere; it says why. */
  readonly tolerances?: { readonly loss: number; readonly gradNorm: number; readonly because: string };
}

const families: readonly RunName[] = ["internlm2", "internlm", "llama2", "qwen2", "gemma", "internlm2 with norm_head"];
const deep: readonly RunName[] = ["internlm2 of 8 layers"];
const tensor = (mode: string, size: number, more: Record<string, unknown> = {}) => ({
  tensor: { mode, size },
  ...more,
});
const isp = (size: number, weight: number, more: Record<string, unknown> = {}) =>
  tensor("isp", size, { weight: { size: weight }, ...more });
const half = { dtype: "bfloat16" };
const pipeline = (size: number, more: Record<string, unknown> = {}) => ({ pipeline: { size, ...more } });
const overlap = { interleaved_overlap: true }, zeroBubble = { mode: "ZBH1" };

export const layouts: Record<string, Layout> = {
  "mtp 2": { ranks: 2, parallel: tensor("mtp", 2), runs: families },
  "mtp 4": { ranks: 4, parallel: tensor("mtp", 4), runs: ["internlm2", "llama2", "gemma"] },
  "mtp 2, table by vocabulary, logits gathered": {
    ranks: 2,
    parallel: tensor("mtp", 2),
    model: { embed_split_hidden: false, parallel_output: false },
  },
  "mtp 2 x data 2": { ranks: 4, parallel: tensor("mtp", 2) },
  "msp 2": { ranks: 2, parallel: tensor("msp", 2), runs: families },
  "msp 4": { ranks: 4, parallel: tensor("msp", 4) },
  "msp 2, table by vocabulary": { ranks: 2, parallel: tensor("msp", 2), model: { embed_split_hidden: false } },
  "msp 2, all layers recomputed": { ranks: 2, parallel: tensor("msp", 2), model: { checkpoint: 1 } },
  "fsp 2": { ranks: 2, parallel: tensor("fsp", 2), runs: families },
  "fsp 4": { ranks: 4, parallel: tensor("fsp", 4), runs: ["internlm2", "qwen2"] },
  "fsp 2 x data 2, one layer recomputed": { ranks: 4, parallel: tensor("fsp", 2), model: { checkpoint: 0.5 } },
  "isp 2": { ranks: 2, parallel: isp(2, 1), runs: families },
  "isp 4": { ranks: 4, parallel: isp(4, 1), runs: ["internlm2", "gemma"] },
  "isp weight 2": { ranks: 2, parallel: isp(1, 2), runs: families },
  "isp weight 4, more ranks than rows": { ranks: 4, parallel: isp(1, 4) },
  "isp 2, weight 2, one layer recomputed": {
    ranks: 2,
    parallel: isp(2, 2),
    model: { checkpoint: 0.5 },
    runs: families,
  },
  "isp 2, weight 4": { ranks: 4, parallel: isp(2, 4) },
  "isp 4, weight 2": { ranks: 4, parallel: isp(4, 2) },
  "isp 2, weight 2 x data 4, state over 4": { ranks: 8, parallel: isp(2, 2, { zero1: { size: 4 } }), runs: deep },
  "mtp 2 x 2 stages": { ranks: 4, parallel: tensor("mtp", 2, { pipeline: { size: 2 } }), runs: families },
  "msp 2 x 2 stages": { ranks: 4, parallel: tensor("msp", 2, { pipeline: { size: 2 } }) },
  "fsp 2 x 2 stages of 2 chunks, recomputed": {
    ranks: 4,
    parallel: tensor("fsp", 2, { pipeline: { size: 2, interleaved_overlap: true } }),
    model: { num_chunks: 2, checkpoint: 0.5 },
    runs: deep,
  },
  "isp 2, weight 2 x 2 stages, ZB-H1": {
    ranks: 4,
    parallel: isp(2, 2, { pipeline: { size: 2, mode: "ZBH1" } }),
    runs: deep,
  },
  "msp 2 x 2 stages x data 2, state and tensors over 2, recomputed": {
    ranks: 8,
    parallel: tensor("msp", 2, { pipeline: { size: 2 }, zero1: { size: 2 } }),
    model: { checkpoint: 0.5 },
    hybrid_zero_optimizer: { use_split_tensor_optim: true },
    runs: deep,
  },
  "mtp 2 x 4 stages": { ranks: 8, parallel: tensor("mtp", 2, { pipeline: { size: 4 } }), runs: deep },
  "8 stages": { ranks: 8, parallel: { pipeline: { size: 8 } }, runs: deep },
  "2 stages": { ranks: 2, parallel: pipeline(2), runs: families },
  "3 stages of 2 and 3 layers": { ranks: 3, parallel: pipeline(3), runs: deep },
  "4 stages": {
    ranks: 4,
    parallel: pipeline(4),
    runs: ["internlm2 of 8 layers", "gemma of 4 layers", "llama2 of 4 layers, head tied"],
  },
  "2 stages of 2 chunks": { ranks: 2, parallel: pipeline(2, overlap), model: { num_chunks: 2 }, runs: deep },
  "4 stages of 2 chunks, messages not overlapped": {
    ranks: 4,
    parallel: pipeline(4),
    model: { num_chunks: 2 },
    runs: deep,
  },
  "2 stages of 4 chunks, half recomputed": {
    ranks: 2,
    parallel: pipeline(2, overlap),
    model: { num_chunks: 4, checkpoint: 0.5 },
    runs: deep,
  },
  "2 stages, ZB-H1": { ranks: 2, parallel: pipeline(2, zeroBubble), runs: families },
  "4 stages, ZB-H1": { ranks: 4, parallel: pipeline(4, zeroBubble), runs: deep },
  "2 stages, ZB-H1, all recomputed": {
    ranks: 2,
    parallel: pipeline(2, zeroBubble),
    model: { checkpoint: 1 },
    runs: deep,
  },
  "2 stages x data 2": { ranks: 4, parallel: pipeline(2), runs: ["internlm2", "gemma"] },
  "2 stages, bfloat16": { ranks: 2, parallel: pipeline(2), model: half },
  "fsdp over 2": { ranks: 2, parallel: { zero1: { fsdp: true } }, runs: ["internlm2", "gemma"] },
  "fsdp over 2, mtp 2": {
    ranks: 4,
    parallel: tensor("mtp", 2, { zero1: { fsdp: true } }),
    runs: ["internlm2", "gemma"],
  },
  "fsdp over 2, msp 2": { ranks: 4, parallel: tensor("msp", 2, { zero1: { fsdp: true } }), runs: ["llama2", "gemma"] },
  "fsdp over 2 of 4, fsp 2, recomputed": {
    ranks: 8,
    parallel: tensor("fsp", 2, { zero1: { fsdp: true, size: 2 } }),
    model: { checkpoint: 0.5 },
    runs: deep,
  },
  "fsdp over 2, 2 stages": {
    ranks: 4,
    parallel: { ...pipeline(2), zero1: { fsdp: true } },
    runs: ["internlm2", "gemma"],
  },
  "fsdp over 2, expert 2": { ranks: 2, parallel: { zero1: { fsdp: true }, expert: 2 }, runs: ["mixtral", "qwen2 moe"] },
  "fsdp over 2 of 4, one layer recomputed": {
    ranks: 4,
    parallel: { zero1: { fsdp: true, size: 2 } },
    model: { checkpoint: 0.5 },
  },
  "isp 2, weight 2, bfloat16": { ranks: 2, parallel: isp(2, 2), model: half },
  "msp 2, bfloat16": {
    ranks: 2,
    parallel: tensor("msp", 2),
    model: half,
    // Rounding terms or their sums alone makes no difference. One rank in bfloat16 is 3.3e-3 (gradient norms: 2.1e-2) from
    // float32 itself, msp 1.6e-3 (5.5e-3) from one rank; isp and pipelines add nothing up between ranks, and are exact.
    tolerances: { loss: 3.3e-3, gradNorm: 1.2e-2, because: "sums between ranks are rounded elsewhere" },
  },
  "expert 2": { ranks: 2, parallel: { expert: 2 }, runs: ["mixtral", "qwen2 moe", "internlm moe, GShard"] },
  "expert 4": {
    ranks: 4,
    parallel: { expert: 4 },
    runs: ["mixtral, 4 micro-batches", "qwen2 moe", "internlm moe, GShard"],
  },
  "expert 2 x data 2, one layer recomputed": {
    ranks: 4,
    parallel: { expert: 2 },
    model: { checkpoint: 0.5 },
    runs: ["mixtral, 4 micro-batches", "internlm moe, GShard"],
  },
  "experts whole on data 2": { ranks: 2, parallel: { expert: 1 }, runs: ["mixtral"] },
  "expert 2, fewer micro-batches than ranks": {
    ranks: 4,
    parallel: { expert: 2 },
    runs: ["mixtral"],
  },
  "mtp 2 x expert 2": {
    ranks: 4,
    parallel: tensor("mtp", 2, { expert: 2 }),
    runs: ["mixtral", "qwen2 moe", "internlm moe, GShard"],
  },
  "msp 2 x expert 2": { ranks: 4, parallel: tensor("msp", 2, { expert: 2 }), runs: ["mixtral", "qwen2 moe"] },
  "fsp 2 x expert 2": { ranks: 4, parallel: tensor("fsp", 2, { expert: 2 }), runs: ["internlm moe, GShard"] },
  "mtp 2, tokens divided, expert 2": {
    ranks: 2,
    parallel: tensor("mtp", 2, { expert: { size: 2, no_tp: true } }),
    runs: ["mixtral without balance"],
  },
  "mtp 2, tokens divided, expert 4": {
    ranks: 4,
    parallel: tensor("mtp", 2, { expert: { size: 4, no_tp: true } }),
    runs: ["mixtral without balance"],
  },
  "msp 2, tokens divided, experts whole": {
    ranks: 2,
    parallel: tensor("msp", 2, { expert: { size: 1, no_tp: true } }),
    runs: ["mixtral without balance"],
  },
  "fsp 2, tokens divided, expert 2 x data 2": {
    ranks: 4,
    parallel: tensor("fsp", 2, { expert: { size: 2, no_tp: true } }),
    runs: ["mixtral without balance"],
  },
  "isp 2, expert 2": {
    ranks: 2,
    parallel: tensor("isp", 2, { expert: 2 }),
    runs: ["mixtral without balance"],
  },
  "isp 2, weight 2, expert 4": {
    ranks: 4,
    parallel: tensor("isp", 2, { weight: { size: 2 }, expert: 4 }),
    runs: ["mixtral without balance"],
  },
  "isp 2, expert weight 2": {
    ranks: 2,
    parallel: tensor("isp", 2, { weight: { size: 2 }, expert: 1, expert_weight: 2 }),
    runs: ["mixtral without balance"],
  },
  "isp weight 2, expert 2, expert weight 2, gathered ahead": {
    ranks: 4,
    parallel: tensor("isp", 1, {
      weight: { size: 2, overlap: true },
      expert: 2,
      expert_weight: { size: 2, overlap: true },
    }),
    runs: ["mixtral, 4 micro-batches", "internlm moe, GShard"],
  },
  "isp weight 2, expert 2": {
    ranks: 2,
    parallel: tensor("isp", 1, { weight: { size: 2 }, expert: 2 }),
    runs: ["mixtral", "qwen2 moe"],
  },
  "pipeline 2 x expert 2": {
    ranks: 4,
    parallel: { pipeline: { size: 2 }, expert: 2 },
    runs: ["qwen2 moe", "internlm moe, GShard"],
  },
};
