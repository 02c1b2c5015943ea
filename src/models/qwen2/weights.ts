/** Names of Qwen2's weights elsewhere, both ways. */
import { denseTensors, llamaConfigFromSection, sectionFromLlamaConfig, separateQkv } from "../dense.ts";
import type { HuggingFaceFormat, WeightFormat } from "../family.ts";
import { internEvoNames, internEvoQkv, llamaNames, llamaQkv } from "../llama2/weights.ts";
import { biases } from "./model.ts";

/** Biases are on query, key and value; the file has no word for it. */
export const huggingFace: HuggingFaceFormat = {
  matches: (config) => config.model_type === "qwen2",
  toSection(config) {
    const { no_bias: _, ...section } = sectionFromLlamaConfig(config);
    return section;
  },
  toConfig(section) {
    const { qkv, output } = biases(section);
    if (!qkv || output) {
      throw new RangeError(
        `Cannot write config.json: model.qkv_bias is ${qkv} and model.o_bias ${output}, and Qwen2's file can only tell ` +
          "of true and false",
      );
    }
    return { ...llamaConfigFromSection(section), model_type: "qwen2", architectures: ["Qwen2ForCausalLM"] };
  },
  tensors: (section) =>
    denseTensors(section, llamaNames, separateQkv(section, llamaQkv, biases(section)), biases(section)),
};

export const internEvo: WeightFormat = {
  tensors: (section) =>
    denseTensors(
      section,
      { ...internEvoNames, embedding: "embed_tokens.weight" },
      separateQkv(section, internEvoQkv, biases(section)),
      biases(section),
    ),
};
