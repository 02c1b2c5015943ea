/** Names of InternLM2's weights elsewhere, both ways. */
import { denseTensors, fusedQkv, groupedRows, llamaConfigFromSection, sectionFromLlamaConfig } from "../dense.ts";
import type { HuggingFaceFormat, ModelSection, WeightFormat } from "../family.ts";
import { internEvoNames } from "../llama2/weights.ts";

/** Hugging Face's file has InternEvo's names under a prefix, the head's excepted. */
const tensors = (prefix: string) => (section: ModelSection) => {
  const { embedding, norm, layer } = internEvoNames;
  const names = { ...internEvoNames, embedding: prefix + embedding, norm: prefix + norm, layer: prefix + layer };
  return denseTensors(section, names, fusedQkv(section, "attention.wqkv", groupedRows(section)));
};

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
