/** Mixtral: grouped-query attention, mixtures in place of the feed-forward layers. */
import type { Graph, Tensor } from "../../graph/graph.ts";
import { decoder } from "../../nn/decoder.ts";
import type { ModelInputs } from "../../nn/inputs.ts";
import { denseSettings, drawn } from "../dense.ts";
import type { ModelSection } from "../family.ts";
import { routerStd } from "../internlm_moe/model.ts";
import { withExperts } from "../moe.ts";
import { biases } from "../qwen2/model.ts";

export const model = (graph: Graph, inputs: ModelInputs, section: ModelSection): Tensor =>
  decoder(
    graph,
    inputs,
    withExperts(denseSettings(section, biases(section)), section, {
      joins: "softmax",
      routerInitialization: drawn(section, routerStd),
    }),
  );
