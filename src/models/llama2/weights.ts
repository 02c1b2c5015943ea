/** Names of Llama's weights elsewhere, both ways. */
import {
  type DenseNames,
  denseTensors,
  llamaConfigFromSection,
  sectionFromLlamaConfig,
  separateQkv,
} from "../dense.ts";
import type { HuggingFaceFormat, WeightFormat } from "../family.ts";

export const llamaNames: DenseNames = {
  embedding: "model.embed_tokens.weight",
  head: "lm_head.weight",
  norm: "model.norm",
  layer: "model.layers",
  attentionNorm: "input_layernorm",
  ffnNorm: "post_attention_layernorm",
  attentionOutput: "self_attn.o_proj",
  gate: "mlp.gate_proj",
  up: "mlp.up_proj",
  down: "mlp.down_proj",
};

export const llamaQkv = { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" } as const;

/** InternEvo's names, which its families with separate query, key and value share but for the embedding. */
export const internEvoNames: DenseNames = {
  embedding: "tok_embeddings.weight",
  head: "output.weight",
  norm: "norm",
  layer: "layers",
  attentionNorm: "attention_norm",
  ffnNorm: "ffn_norm",
  attentionOutput: "attention.wo",
  gate: "feed_forward.w1",
  up: "feed_forward.w3",
  down: "feed_forward.w2",
};

export const internEvoQkv = { q: "attention.wq", k: "attention.wk", v: "attention.wv" } as const;

export const huggingFace: HuggingFaceFormat = {
  matches: (config) => config.model_type === "llama",
  toSection: sectionFromLlamaConfig,
  toConfig: (section) => ({
    ...llamaConfigFromSection(section),
    model_type: "llama",
    architectures: ["LlamaForCausalLM"],
    attention_bias: !section.no_bias,
    mlp_bias: false,
  }),
  tensors: (section) =>
    denseTensors(
      section,
      llamaNames,
      separateQkv(section, llamaQkv),
    ),
};

export const internEvo: WeightFormat = {
  tensors: (section) => denseTensors(section, internEvoNames, separateQkv(section, internEvoQkv)),
};
