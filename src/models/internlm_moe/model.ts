/** InternLM with experts: multi-head attention with biases, mixtures in place of the feed-forward layers. */
import type { Graph, Tensor } from "../../graph/graph.ts";
import { decoder } from "../../nn/decoder.ts";
import type { ModelInputs } from "../../nn/inputs.ts";
import { denseSettings, drawn } from "../dense.ts";
import type { ModelSection } from "../family.ts";
import { withExperts } from "../moe.ts";

/** Deviation of a router's initial weights, InternEvo's for all that has no setting of its own. */
export const routerStd = 0.0015;

export function model(graph: Graph, inputs: ModelInputs, section: ModelSection): Tensor {
  const settings = denseSettings(section);
  const routerInitialization = drawn(section, routerStd);
  return decoder(
    graph,
    inputs,
    withExperts({ ...settings, kvHeads: settings.heads }, section, { joins: "softmax", routerInitialization }),
  );
}
