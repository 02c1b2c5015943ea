/** InternLM (v1): multi-head attention with biases on query, key, value and output; rotary base that may follow the batch. */
import type { Graph, Tensor } from "../../graph/graph.ts";
import { decoder } from "../../nn/decoder.ts";
import type { ModelInputs } from "../../nn/inputs.ts";
import type { DecoderSettings } from "../../nn/settings.ts";
import { denseSettings } from "../dense.ts";
import type { ModelSection } from "../family.ts";

export function model(graph: Graph, inputs: ModelInputs, section: ModelSection): Tensor {
  const settings = denseSettings(section);
  const beyond = dynamicRotary(section)?.beyond;
  const rope: DecoderSettings["rope"] = beyond === undefined
    ? settings.rope
    : { ...settings.rope, dynamicBeyond: beyond };
  return decoder(graph, inputs, { ...settings, kvHeads: settings.heads, rope });
}

export function dynamicRotary(section: ModelSection) {
  if (!section.use_dynamic_ntk_rope) return undefined;
  return {
    beyond: section.max_position_embeddings,
    base: section.rope_base,
    headDim: section.hidden_size / section.num_attention_heads,
  };
}
