/** Names of Mixtral's weights elsewhere, both ways. */
import { denseTensors, llamaConfigFromSection, sectionFromLlamaConfig, separateQkv, whole } from "../dense.ts";
import type { HuggingFaceFormat, ModelSection, WeightFormat } from "../family.ts";
import { internEvoExperts } from "../internlm_moe/weights.ts";
import { internlmNames } from "../internlm/weights.ts";
import { llamaNames, llamaQkv } from "../llama2/weights.ts";
import { type ExpertNames, expertTensors, moeSizes, refuseSettings, stackedTensors } from "../moe.ts";
import { biases } from "../qwen2/model.ts";

/** As published: a tensor for each matrix of each expert. */
const published: ExpertNames = {
  router: "block_sparse_moe.gate",
  gate: "block_sparse_moe.experts.{e}.w1",
  up: "block_sparse_moe.experts.{e}.w3",
  down: "block_sparse_moe.experts.{e}.w2",
};

const tensorsWith = (section: ModelSection, ffn: NonNullable<Parameters<typeof denseTensors>[4]>) =>
  denseTensors(section, llamaNames, separateQkv(section, llamaQkv, biases(section)), biases(section), ffn);

/** Written as transformers 5 does, with the experts of a layer stacked; read so, and as published. */
export const huggingFace: HuggingFaceFormat = {
  matches: (config) => config.model_type === "mixtral",
  toSection(config) {
    const { no_bias: _, ...section } = sectionFromLlamaConfig(config);
    if (config.sliding_window !== undefined && config.sliding_window !== null) {
      throw new RangeError(`Cannot read config.json: sliding_window is ${config.sliding_window}, null is needed`);
    }
    const jitter = Number(config.router_jitter_noise ?? 0);
    if (jitter !== 0 && jitter !== 0.01) {
      throw new RangeError(`Cannot read config.json: router_jitter_noise is ${jitter}, 0 or 0.01 is needed`);
    }
    return {
      ...section,
      qkv_bias: false,
      o_bias: false,
      num_experts: config.num_local_experts ?? 8,
      top_k: config.num_experts_per_tok ?? 2,
      moe_type: "Dropless",
      ...(jitter === 0 ? {} : { moe_layer_kwargs: { noisy_gate_policy: "Jitter" } }),
    };
  },
  toConfig(section) {
    const kwargs = section.moe_layer_kwargs, { qkv, output } = biases(section);
    refuseSettings("Mixtral's", {
      "num_experts": [section.num_experts, section.num_experts > 1 ? section.num_experts : "more"],
      "qkv_bias": [qkv, false],
      "o_bias": [output, false],
      "moe_type": [section.moe_type, "Dropless"],
      "num_shared_experts": [section.num_shared_experts, 0],
      "moe_layer_kwargs.capacity_factor": [kwargs.capacity_factor ?? null, null],
      "moe_layer_kwargs.norm_topk_prob": [kwargs.norm_topk_prob ?? true, true],
    });
    return {
      ...llamaConfigFromSection(section),
      model_type: "mixtral",
      architectures: ["MixtralForCausalLM"],
      num_local_experts: section.num_experts,
      num_experts_per_tok: section.top_k,
      router_jitter_noise: kwargs.noisy_gate_policy === "Jitter" ? 0.01 : 0,
      sliding_window: null,
    };
  },
  tensors: (section) => {
    const { experts, hidden } = moeSizes(section);
    return tensorsWith(section, (prefix, canonical) => [
      whole(`${prefix}.mlp.gate.weight`, `${canonical}.ffn.router.weight`, [experts, hidden]),
      ...stackedTensors(section, { prefix: `${prefix}.mlp.experts`, canonical }),
    ]);
  },
  otherTensors: (section) => [
    tensorsWith(section, (prefix, canonical) => expertTensors(section, published, { prefix, canonical })),
  ],
};

export const internEvo: WeightFormat = {
  tensors: (section) =>
    denseTensors(
      section,
      { ...internlmNames, attentionOutput: "mixer.wo" },
      separateQkv(section, { q: "mixer.wq", k: "mixer.wk", v: "mixer.wv" }, biases(section)),
      biases(section),
      section.num_experts === 1
        ? undefined
        : (prefix, canonical) => expertTensors(section, internEvoExperts("mlp"), { prefix, canonical }),
    ),
};
