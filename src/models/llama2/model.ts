/** Llama 2: grouped-query attention with separate query, key and value. */
import type { Graph, Tensor } from "../../graph/graph.ts";
import { decoder } from "../../nn/decoder.ts";
import type { ModelInputs } from "../../nn/inputs.ts";
import { denseSettings } from "../dense.ts";
import type { ModelSection } from "../family.ts";

export const model = (graph: Graph, inputs: ModelInputs, section: ModelSection): Tensor =>
  decoder(graph, inputs, denseSettings(section));
