/** Names of Gemma's weights elsewhere, both ways. */
import {
  denseTensors,
  llamaConfigFromSection,
  type LlamaVariant,
  sectionFromLlamaConfig,
  separateQkv,
} from "../dense.ts";
import type { HuggingFaceFormat, WeightFormat } from "../family.ts";
import { internEvoNames, internEvoQkv, llamaNames, llamaQkv } from "../llama2/weights.ts";

const variant: LlamaVariant = {
  activations: ["gelu_pytorch_tanh", "gelu"],
  freeHeadDim: true,
  tiedHead: true,
  unitOffset: true,
};

export const huggingFace: HuggingFaceFormat = {
  matches: (config) => config.model_type === "gemma",
  toSection: (config) => ({
    ...sectionFromLlamaConfig(config, variant),
    head_dim: config.head_dim ?? null,
    add_unit_offset: true,
    use_swiglu: false,
    // Files from before `hidden_activation` say "gelu" and mean the tanh form.
    gelu_approximate: config.hidden_activation === "gelu" ? "none" : "tanh",
  }),
  toConfig(section) {
    const activation = section.gelu_approximate === "tanh" ? "gelu_pytorch_tanh" : "gelu";
    return {
      ...llamaConfigFromSection(section, { ...variant, activations: [activation] }),
      hidden_activation: activation,
      attention_bias: !section.no_bias,
      model_type: "gemma",
      architectures: ["GemmaForCausalLM"],
    };
  },
  tensors: (section) => denseTensors(section, llamaNames, separateQkv(section, llamaQkv)),
};

export const internEvo: WeightFormat = {
  tensors: (section) =>
    denseTensors(
      section,
      { ...internEvoNames, embedding: "embed_tokens.weight" },
      separateQkv(section, internEvoQkv),
    ),
};
