/** Gemma: scaled embedding, norms that multiply by one plus their weight, a GELU gate, and heads of any width. */
import type { Graph, Tensor } from "../../graph/graph.ts";
import { decoder } from "../../nn/decoder.ts";
import type { ModelInputs } from "../../nn/inputs.ts";
import { denseSettings } from "../dense.ts";
import type { ModelSection } from "../family.ts";

export const model = (graph: Graph, inputs: ModelInputs, section: ModelSection): Tensor =>
  decoder(graph, inputs, { ...denseSettings(section), embeddingScale: Math.sqrt(section.hidden_size) });
