import { z } from "zod";
import { anyMapping, bool, float, int, refused, text, works } from "../field.ts";

/** The three types that parameters and arithmetic can have. `tf32` is stored, and here also computed, as float32. */
const dtype = z.preprocess(
  (value) => typeof value === "string" ? dtypeNames[value.replace(/^torch\./, "")] ?? value : value,
  z.enum(["float32", "float16", "bfloat16"]),
);
const dtypeNames: Record<string, string> = {
  float32: "float32",
  tf32: "float32",
  float16: "float16",
  half: "float16",
  bfloat16: "bfloat16",
};

const notFused = "changes nothing: projections are held apart";

const fraction = z.preprocess((value) => value === true ? 1 : value === false ? 0 : value, float({ min: 0, max: 1 }));
const std = () => float({ min: 0 });
const perFamily = (internlm: string, others = "0.02") => ({ derived: `${internlm} (INTERNLM), ${others}` });

/** What is computed: sizes, types and details of the model. */
export const modelSchema = z.strictObject({
  num_layers: works(int({ min: 1, max: 4096 }), "Decoder blocks in the whole model.", { example: 32 }),
  hidden_size: works(
    int({ min: 1, max: 2 ** 20 }),
    "Width of the stream between the blocks.",
    perFamily("768", "2048"),
  ),
  num_attention_heads: works(int({ min: 1 }), "Query heads; they share hidden_size evenly.", perFamily("12", "32")),
  num_kv_attention_heads: works(
    int({ min: 1 }),
    "Key and value heads; each serves the same number of query heads. INTERNLM has as many as query heads.",
    { derived: "num_attention_heads" },
  ),
  vocab_size: works(int({ min: 1, max: 2 ** 31 - 1 }).default(50304), "Entries of the vocabulary."),
  mlp_ratio: works(
    float({ above: 0 }).default(4),
    "Inner width of the feed-forward part as a multiple of hidden_size, before rounding up to multiple_of.",
  ),
  multiple_of: works(int({ min: 1 }).default(256), "The inner width of the feed-forward part is a multiple of this."),
  num_chunks: works(
    int({ min: 1 }).default(1),
    "Model chunks of each pipeline stage, for the interleaved schedule. One stage has one.",
    { derived: "1 (2 with ZBV)" },
  ),
  checkpoint: works(fraction, "Fraction of the layers whose activations are recomputed in the backward pass.", {
    derived: "0; 1 for the QWEN2, GEMMA and BAICHUAN2 families",
  }),
  dtype: works(
    dtype.default("float32"),
    "Type of parameters and arithmetic: float32, tf32 (computed as float32), float16, bfloat16; torch.float32, torch.half " +
      "and the like are the same. What is stored has this type; arithmetic, sums and statistics are float32, and so are the " +
      "gradients of parameters, the master weights and the optimizer's state.",
  ),
  matmul_precision: works(
    z.enum(["float32", "split", "packed"]).default("float32"),
    "How products are computed: float32; split: those of float32 tensors on matrix units, each element as the sum of two " +
      "float16 (an error of 2e-6), where the device shows such units (./troupe dawn), elsewhere as float32; packed: those of " +
      "float16 tensors as pairs, 32 terms summed in float16 at a time (an error of 9e-4, three times that of storing " +
      "the result in float16), where the device shows no matrix units.",
  ),
  norm_type: works(z.enum(["rmsnorm", "layernorm"]).default("rmsnorm"), "Kind of normalisation."),
  layer_norm_epsilon: works(float({ above: 0 }).default(1e-5), "Added to the variance in a normalisation."),
  apply_post_layer_norm: refused(bool().default(false), "Normalise after each part instead of before it."),
  embed_split_hidden: works(
    bool().default(true),
    "Whether an embedding table split over tensor-parallel ranks is split by width, or by vocabulary; one that is the " +
      "head too is always split by vocabulary. Any layout loads any checkpoint.",
  ),
  embed_grad_scale: works(
    float({ min: 0 }).default(0.1),
    "Factor on the gradient that reaches the embedding; 1 for none.",
  ),
  parallel_output: works(bool().default(true), "Leave the logits split over the vocabulary on tensor-parallel ranks."),
  use_flash_attn: works(bool().default(true), "Compute attention in one fused kernel.", {
    notice: "changes nothing: attention is always one fused kernel, and exact",
  }),
  qk_interleaved: works(
    bool(),
    "Rotary embedding turns neighbours (true) or the two halves of a head against each other (false).",
    { derived: "the opposite of adapt_hf if that is given, else false" },
  ),
  adapt_hf: works(bool().nullable().default(null), "Older name for the opposite of qk_interleaved."),
  no_bias: works(bool().default(false), "Leave out the biases of the attention projections. INTERNLM always has them."),
  enable_qkv_fusion: works(
    bool().default(true),
    "Hold query, key and value projections as one matrix; results are the same.",
    { notice: notFused },
  ),
  mlp_layer_fusion: works(bool().default(false), "Hold gate and up projections as one matrix; results are the same.", {
    notice: notFused,
  }),
  use_swiglu: works(bool(), "Gate of the feed-forward part: SiLU (true) or GELU (false).", {
    derived: "true; false for GEMMA",
  }),
  gelu_approximate: works(
    z.enum(["none", "tanh"]).default("none"),
    "With use_swiglu false: GELU exact, or by the hyperbolic tangent as in Gemma's own weights (Troupe's own field).",
  ),
  tie_word_embeddings: works(
    bool().default(false),
    "The output head is the embedding table (Troupe's own field; GEMMA's published weights are so, and small ones of others).",
  ),
  attn_drop_rate: refused(float({ min: 0, max: 1 }).default(0), "Dropout on attention probabilities."),
  drop_rate: works(float({ min: 0, max: 1 }).default(0), "Dropout on the stream: block input and attention output."),
  max_position_embeddings: works(int({ min: 1 }).default(2048), "Length beyond which dynamic NTK stretches positions."),
  use_dynamic_ntk_rope: works(
    bool().default(false),
    "Stretch rotary embedding on sequences longer than that (INTERNLM).",
  ),
  rope_base: works(float({ above: 0 }).default(10000), "Base of the rotary embedding's frequencies."),
  use_fp32_rope: works(bool().default(true), "Rotate in float32, whatever dtype is.", {
    notice: "changes nothing: rotation is always in float32",
  }),
  residual_in_fp32: works(bool().default(false), "Keep the stream between blocks in float32, whatever dtype is."),
  dropout_selective_checkpoint: works(
    bool().default(true),
    "Recompute dropout and normalisation by themselves; results are the same.",
    { notice: "changes nothing: the plan decides what is recomputed" },
  ),
  use_scaled_init: works(bool().default(true), "Shrink the initial output projections with their layer's depth."),
  init_type: works(z.enum(["normal", "uniform"]).default("normal"), "Distribution of the initial weights."),
  embedding_init_std: works(std(), "Initial deviation of the embedding.", perFamily("0.0052")),
  attn_wqkv_init_std: works(std(), "Initial deviation of query, key and value projections.", perFamily("0.006")),
  attn_other_init_std: works(
    std(),
    "Initial deviation of attention's output projection.",
    perFamily("0.006, or 0.0015 without use_scaled_init"),
  ),
  ffn_uplayer_init_std: works(std(), "Initial deviation of gate and up projections.", perFamily("0.006")),
  ffn_other_init_std: works(
    std(),
    "Initial deviation of the down projection.",
    perFamily("0.006, or 0.0015 without use_scaled_init"),
  ),
  out_head_init_std: works(std(), "Initial deviation of the output head.", perFamily("0.0052")),
  norm_head: works(bool().default(false), "Scale each row of the output head to length one."),
  is_reward: refused(bool().default(false), "A reward model's head: one number instead of logits."),
  head_dim: works(
    int({ min: 2 }).nullable().default(null),
    "Width of a head where it is not hidden_size / heads (GEMMA).",
  ),
  add_unit_offset: works(bool().default(false), "RMS normalisation multiplies by 1 + weight (GEMMA)."),
  qkv_bias: works(
    bool().nullable().default(null),
    "Biases of q, k and v, in QWEN2, QWEN2MOE and MIXTRALMOE; null is true.",
  ),
  o_bias: works(
    bool().nullable().default(null),
    "Bias of attention's output projection, in the same families; null is false.",
  ),
  mlp_bias: refused(bool().nullable().default(null), "Biases in the feed-forward part (same families)."),
  use_sliding_window: refused(bool().default(false), "Attention sees only the newest keys."),
  sliding_window: refused(int({ min: 1 }).nullable().default(null), "How many keys that is.", {
    onlyWith: "model.use_sliding_window",
  }),
  max_window_layers: refused(int({ min: 0 }).default(0), "The first layer with a window.", {
    onlyWith: "model.use_sliding_window",
  }),
  rope_type: refused(text().default("normal"), "Kind of rotary embedding (QWEN2 families)."),
  rope_scaling_factor: refused(float({ above: 0 }).default(1), "Factor of that rotary embedding."),
  extra_pred_tokens: refused(int({ min: 0 }).default(0), "Further heads that predict later tokens."),
  num_experts: works(
    int({ min: 1 }).default(1),
    "Experts of each mixture-of-experts layer, in the families that have them; 1 for none.",
  ),
  top_k: works(int({ min: 1 }), "Experts that each token goes to.", { derived: "1 (with MegaBlock: moe.top_k)" }),
  num_shared_experts: works(
    int({ min: 0 }).default(0),
    "Experts that every token goes to, as one layer of so many times an expert's width.",
  ),
  moe_type: works(
    z.enum(["GShard", "Dropless", "MegaBlock", "MegaBlock-Dropless"]).default("GShard"),
    "Kind of layer: GShard (every expert has the same room, what finds none is dropped) or Dropless; MegaBlock and " +
      "MegaBlock-Dropless are the same two by that library's rules, set in the section moe.",
  ),
  moe_layer_kwargs: works(
    anyMapping(),
    "Settings of that layer. GShard: capacity_factor, eval_capacity_factor, min_capacity, noisy_gate_policy (Jitter, " +
      "RSample), drop_tokens, use_rts, use_fused_gating. Dropless: capacity_factor, drop_policy (probs, position), " +
      "noisy_gate_policy, and norm_topk_prob, Troupe's own: whether a token's weights are divided by their sum.",
    { derived: "none (with MegaBlock: those of the section moe)" },
  ),
  inject_info: refused(anyMapping().nullable().default(null), "Train a model built elsewhere by replacing its layers."),
  options: works(anyMapping().default({}), "Settings of a model from runtime.plugins, handed to it as they are."),
}).describe("The model");

/** Extra settings that only `moe_type: MegaBlock…` reads. */
export const moeSchema = z.strictObject({
  top_k: works(int({ min: 1 }).default(2), "Experts that each token goes to."),
  capacity_factor: works(float({ above: 0 }).default(1), "Room of an expert over an even share (MegaBlock)."),
  drop_tokens: works(bool().default(true), "Drop what does not fit (MegaBlock)."),
  parallel_mode: works(z.enum(["tensor", "weight"]).default("tensor"), "How dropless experts are split.", {
    notice:
      "changes nothing: parallel.tensor.mode, parallel.expert and parallel.expert_weight say how experts are split",
  }),
}).describe("Mixture of experts of the MegaBlock kinds");
