/** Names of the weights of Qwen2 with experts elsewhere, both ways. */
import { denseTensors, llamaConfigFromSection, sectionFromLlamaConfig, separateQkv, whole } from "../dense.ts";
import type { HuggingFaceFormat, ModelSection } from "../family.ts";
import { llamaNames, llamaQkv } from "../llama2/weights.ts";
import { type ExpertNames, expertTensors, moeSizes, refuseSettings, sharedTensors, stackedTensors } from "../moe.ts";
import { biases } from "../qwen2/model.ts";

const shared: ExpertNames["shared"] = {
  gate: "mlp.shared_expert.gate_proj",
  up: "mlp.shared_expert.up_proj",
  down: "mlp.shared_expert.down_proj",
  join: "mlp.shared_expert_gate",
};
/** As published: a tensor for each matrix of each expert. */
const published: ExpertNames = {
  router: "mlp.gate",
  gate: "mlp.experts.{e}.gate_proj",
  up: "mlp.experts.{e}.up_proj",
  down: "mlp.experts.{e}.down_proj",
};

const tensorsWith = (section: ModelSection, ffn: NonNullable<Parameters<typeof denseTensors>[4]>) =>
  denseTensors(
    section,
    llamaNames,
    separateQkv(section, llamaQkv, biases(section)),
    biases(section),
    (prefix, canonical) => [
      ...ffn(prefix, canonical),
      ...sharedTensors(section, { shared }, { prefix, canonical }, "sigmoid"),
    ],
  );

/** Written as published, with a tensor for each matrix of each expert; read so, and with experts stacked. */
export const huggingFace: HuggingFaceFormat = {
  matches: (config) => config.model_type === "qwen2_moe",
  toSection(config) {
    const own = Number(config.moe_intermediate_size), together = Number(config.shared_expert_intermediate_size ?? 0);
    if (!(own > 0) || together % own !== 0) {
      throw new RangeError(
        `Cannot read config.json: shared_expert_intermediate_size is ${together}, a multiple of ` +
          `moe_intermediate_size, ${config.moe_intermediate_size}, is needed`,
      );
    }
    const everyLayer = (config.decoder_sparse_step ?? 1) === 1 &&
      ((config.mlp_only_layers ?? []) as unknown[]).length === 0;
    if (!everyLayer) throw new RangeError("Cannot read config.json: some layers have no experts; all are needed to");
    const { no_bias: _, ...section } = sectionFromLlamaConfig({ ...config, intermediate_size: own });
    return {
      ...section,
      num_experts: config.num_experts ?? 60,
      top_k: config.num_experts_per_tok ?? 4,
      num_shared_experts: together / own,
      moe_type: "Dropless",
      moe_layer_kwargs: { norm_topk_prob: config.norm_topk_prob === true },
    };
  },
  toConfig(section) {
    const kwargs = section.moe_layer_kwargs, { qkv, output } = biases(section);
    refuseSettings("Qwen2's with experts", {
      "num_experts": [section.num_experts, section.num_experts > 1 ? section.num_experts : "more"],
      "qkv_bias": [qkv, true],
      "o_bias": [output, false],
      "moe_type": [section.moe_type, "Dropless"],
      "moe_layer_kwargs.capacity_factor": [kwargs.capacity_factor ?? null, null],
      "moe_layer_kwargs.noisy_gate_policy": [kwargs.noisy_gate_policy ?? null, null],
    });
    const { ffn, shared } = moeSizes(section);
    return {
      ...llamaConfigFromSection(section),
      model_type: "qwen2_moe",
      architectures: ["Qwen2MoeForCausalLM"],
      num_experts: section.num_experts,
      num_experts_per_tok: section.top_k,
      moe_intermediate_size: ffn,
      shared_expert_intermediate_size: shared,
      norm_topk_prob: kwargs.norm_topk_prob ?? true,
      decoder_sparse_step: 1,
      mlp_only_layers: [],
    };
  },
  tensors: (section) =>
    tensorsWith(section, (prefix, canonical) => expertTensors(section, published, { prefix, canonical })),
  otherTensors: (section) => {
    const { experts, hidden } = moeSizes(section);
    return [
      tensorsWith(section, (prefix, canonical) => [
        whole(`${prefix}.mlp.gate.weight`, `${canonical}.ffn.router.weight`, [experts, hidden]),
        ...stackedTensors(section, { prefix: `${prefix}.mlp.experts`, canonical }),
      ]),
    ];
  },
};
