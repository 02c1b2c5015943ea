/** Names of InternLM2's weights elsewhere, both ways. */
import { denseTensors, fusedQkv, groupedRows, llamaConfigFromSection, sectionFromLlamaConfig } from "../dense.ts";
import type { HuggingFaceFormat, ModelSection, WeightFormat } from "../family.ts";

const tensors = (prefix: string) => (section: ModelSection) =>
  denseTensors(section, {
    embedding: `${prefix}tok_embeddings.weight`,
    head: "output.weight",
    norm: `${prefix}norm`,
    layer: `${prefix}layers`,
    attentionNorm: "attention_norm",
    ffnNorm: "ffn_norm",
    attentionOutput: "attention.wo",
    gate: "feed_forward.w1",
    up: "feed_forward.w3",
    down: "feed_forward.w2",
  }, fusedQkv(section, "attention.wqkv", groupedRows(section)));

export const huggingFace: HuggingFaceFormat = {
  matches: (config) => config.model_type === "internlm2",
  toSection: sectionFromLlamaConfig,
  toConfig: (section) => ({
    ...llamaConfigFromSection(section),
    model_type: "internlm2",
    architectures: ["InternLM2ForCausalLM"],
    bias: !section.no_bias,
  }),
  tensors: tensors("model."),
};

export const internEvo: WeightFormat = { tensors: tensors("") };
