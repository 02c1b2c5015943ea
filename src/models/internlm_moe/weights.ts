/** Names of the weights of InternLM with experts elsewhere. */
import { denseSizes, denseTensors, fusedQkv, rowRange } from "../dense.ts";
import type { WeightFormat } from "../family.ts";
import { internlmNames, multiHead } from "../internlm/weights.ts";
import { type ExpertNames, expertTensors } from "../moe.ts";

/** InternEvo's names of a mixture, under the feed-forward layer's. */
export const internEvoExperts = (ffn: string): ExpertNames => ({
  router: `${ffn}.moe_layer.gate.wg`,
  gate: `${ffn}.moe_layer.experts.wrapped_experts.{e}.w1`,
  up: `${ffn}.moe_layer.experts.wrapped_experts.{e}.w3`,
  down: `${ffn}.moe_layer.experts.wrapped_experts.{e}.w2`,
  shared: {
    gate: `${ffn}.residual_mlp.w1`,
    up: `${ffn}.residual_mlp.w3`,
    down: `${ffn}.residual_mlp.w2`,
    join: `${ffn}.coefficient`,
  },
});

export const internEvo: WeightFormat = {
  tensors(given) {
    const section = multiHead(given), { qRows } = denseSizes(section);
    const qkv = fusedQkv(section, "mixer.Wqkv", {
      q: rowRange(0, qRows),
      k: rowRange(qRows, qRows),
      v: rowRange(2 * qRows, qRows),
    });
    if (section.num_experts === 1) return denseTensors(section, internlmNames, qkv);
    return denseTensors(
      section,
      internlmNames,
      qkv,
      undefined,
      (prefix, canonical) => expertTensors(section, internEvoExperts("mlp"), { prefix, canonical }),
    );
  },
};
