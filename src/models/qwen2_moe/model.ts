/** Qwen2 with experts: biases on query, key and value, and a shared expert that joins by a gate of its own. */
import type { Graph, Tensor } from "../../graph/graph.ts";
import { decoder } from "../../nn/decoder.ts";
import type { ModelInputs } from "../../nn/inputs.ts";
import { denseSettings, drawn } from "../dense.ts";
import type { ModelSection } from "../family.ts";
import { withExperts } from "../moe.ts";
import { biases } from "../qwen2/model.ts";

export const model = (graph: Graph, inputs: ModelInputs, section: ModelSection): Tensor =>
  decoder(
    graph,
    inputs,
    withExperts(denseSettings(section, biases(section)), section, {
      joins: "sigmoid",
      routerInitialization: drawn(section, 0.02),
    }),
  );
