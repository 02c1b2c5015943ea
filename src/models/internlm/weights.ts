/** Names of InternLM's weights elsewhere, both ways. */
import {
  type DenseNames,
  denseSizes,
  denseTensors,
  fusedQkv,
  llamaConfigFromSection,
  rowRange,
  sectionFromLlamaConfig,
  separateQkv,
} from "../dense.ts";
import type { HuggingFaceFormat, ModelSection, WeightFormat } from "../family.ts";
import { llamaNames } from "../llama2/weights.ts";

/** Every query head has its own key and value, whatever the section says. */
export const multiHead = (section: ModelSection): ModelSection => ({
  ...section,
  num_kv_attention_heads: section.num_attention_heads,
});

/** Either InternLM's own `config.json`, or a Llama whose attention has biases and no grouped heads. */
export const huggingFace: HuggingFaceFormat = {
  matches: (config) =>
    config.model_type === "internlm" ||
    (config.model_type === "llama" && config.attention_bias === true &&
      (config.num_key_value_heads ?? config.num_attention_heads) === config.num_attention_heads),
  toSection(config) {
    const { num_kv_attention_heads: _, ...section } = sectionFromLlamaConfig(config);
    return { ...section, no_bias: false };
  },
  toConfig: (section) => ({
    ...llamaConfigFromSection(multiHead(section)),
    model_type: "internlm",
    architectures: ["InternLMForCausalLM"],
    bias: true,
  }),
  tensors: (section) =>
    denseTensors(
      multiHead(section),
      llamaNames,
      separateQkv(multiHead(section), {
        q: "self_attn.q_proj",
        k: "self_attn.k_proj",
        v: "self_attn.v_proj",
      }),
    ),
};

/** InternEvo's names. */
export const internlmNames: DenseNames = {
  embedding: "embedding.weight",
  head: "head.weight",
  norm: "norm",
  layer: "blocks",
  attentionNorm: "norm1",
  ffnNorm: "norm2",
  attentionOutput: "mixer.out_proj",
  gate: "mlp.w1",
  up: "mlp.w3",
  down: "mlp.w2",
};

/** Rows of the fused tensor: all queries, all keys, all values. */
export const internEvo: WeightFormat = {
  tensors(given) {
    const section = multiHead(given), { qRows } = denseSizes(section);
    return denseTensors(
      section,
      internlmNames,
      fusedQkv(section, "mixer.Wqkv", {
        q: rowRange(0, qRows),
        k: rowRange(qRows, qRows),
        v: rowRange(2 * qRows, qRows),
      }),
    );
  },
};
