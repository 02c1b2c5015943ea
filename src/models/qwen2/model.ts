/** Qwen2: grouped-query attention with biases on query, key and value, and none on the output. */
import type { Graph, Tensor } from "../../graph/graph.ts";
import { decoder } from "../../nn/decoder.ts";
import type { ModelInputs } from "../../nn/inputs.ts";
import { type Biases, denseSettings } from "../dense.ts";
import type { ModelSection } from "../family.ts";

export const biases = (section: ModelSection): Biases => ({
  qkv: section.qkv_bias ?? true,
  output: section.o_bias ?? false,
});

export const model = (graph: Graph, inputs: ModelInputs, section: ModelSection): Tensor =>
  decoder(graph, inputs, denseSettings(section, biases(section)));
