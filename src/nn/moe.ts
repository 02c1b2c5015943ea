/**
 * A mixture of experts in place of a feed-forward layer, written for one device:
 *
 * ```text
 * p = softmax(x Wgᵀ);  each token goes to the k experts of highest p;  y = Σ_j w_j expert_j(x)  (+ shared expert)
 * ```
 *
 * Gates of GShard (Lepikhin et al. 2020) give every expert the same room and drop what finds none; dropless ones (Jiang et
 * al. 2024, "Mixtral of Experts") give each as many rows as chose it.
 *
 * Shapes: T tokens, H hidden, E experts, F an expert's inner size, k choices a token, C rows of an expert's room.
 */
import type { Normalization } from "../../kernels/moe_router/mod.ts";
import type { Graph, Initialization, Tensor } from "../graph/graph.ts";
import {
  balance,
  choose,
  dispatch,
  expertLinear,
  expertOffsets,
  fromExperts,
  fromRows,
  jitter,
  rowScale,
  softmax,
  toExperts,
  toRows,
  uniform,
  weigh,
} from "../graph/moe_operators.ts";
import { add, cast, gate, linear } from "../graph/operators.ts";
import type { ModelInputs } from "./inputs.ts";
import type { DecoderSettings } from "./settings.ts";

/** Room of an expert, and who keeps a place where it is short. */
export interface CapacitySettings {
  /** Room over an even share of the tokens, in training and in evaluation; choices a token included. */
  readonly factor: number;
  readonly evaluationFactor: number;
  /** Rows that an expert has at least. */
  readonly least: number;
  /** `first`: those that stand first; `probability`: those of highest probability; `random`: drawn in training. */
  readonly keeps: "first" | "probability" | "random";
}

export interface MoeSettings {
  readonly experts: number;
  readonly choices: number;
  /** Inner size of an expert. */
  readonly ffnSize: number;
  /** Absent: nothing is dropped. */
  readonly capacity?: CapacitySettings;
  readonly order: "token" | "choice";
  readonly normalize: Normalization;
  /** Choices of a token that count as load in the auxiliary loss. */
  readonly counted: number;
  /** In training: `jitter` multiplies what the router sees by 0.99 to 1.01; a number: choices from that one on are drawn. */
  readonly noise?: "jitter" | number;
  /** Inner size of the expert that every token goes to; it joins by a logistic gate, or shares weights with the others. */
  readonly shared?: { readonly ffnSize: number; readonly joins: "sigmoid" | "softmax" };
  readonly routerInitialization: Initialization;
}

const jitterWidth = 0.01;
const zeros: Initialization = { kind: "constant", value: 0 };

/** Random numbers of an interval, (0, 1) if left out, for one of a layer's purposes. */
export type Draw = (
  purpose: "jitter" | "choice" | "priority",
  shape: readonly number[],
  interval?: { readonly low: number; readonly high: number },
) => Tensor;

/** Streams of a layer of its own, apart from those of its dropouts. */
function drawByCounter({ dropoutCounter }: ModelInputs, layer: number): Draw {
  const places = { jitter: 0, choice: 1, priority: 2 };
  return (purpose, shape, interval = { low: 0, high: 1 }) =>
    uniform(dropoutCounter!, { shape, stream: 0x4000_0000 + 4 * layer + places[purpose], ...interval });
}

/** x `[T, H]` → `[T, H]`, without the residual. Adds to the model's auxiliary losses. */
export function mixtureOfExperts(
  graph: Graph,
  x: Tensor,
  inputs: ModelInputs,
  layer: number,
  { hiddenSize, activation, initialization, moe }:
    & Pick<DecoderSettings, "hiddenSize" | "activation">
    & {
      readonly initialization: Pick<DecoderSettings["initialization"], "ffnUp" | "ffnDown">;
      readonly moe: MoeSettings;
    },
  draw: Draw = drawByCounter(inputs, layer),
): Tensor {
  const { experts, choices, ffnSize, capacity, order, normalize, counted, noise, shared } = moe;
  const name = `layers.${layer}.ffn`, training = !!inputs.dropoutCounter;
  const router = (part: string, out: number) =>
    graph.parameter(`${name}.${part}.weight`, [out, hiddenSize], moe.routerInitialization, "f32");
  const seen = noise === "jitter" && training
    ? jitter(x, draw("jitter", x.shape, { low: 1 - jitterWidth, high: 1 + jitterWidth }))
    : x;
  const logits = linear(seen, router("router", experts), { type: "f32" }); // [T, E]
  const probability = softmax(logits);
  const drawn = typeof noise === "number" && training;
  const choice = choose(logits, {
    choices,
    ...(drawn ? { noise: draw("choice", logits.shape), noiseFrom: noise } : {}),
  }); // [T, k]

  const room = capacity && {
    factor: training ? capacity.factor : capacity.evaluationFactor,
    least: capacity.least,
  };
  const priority = capacity?.keeps === "probability"
    ? probability
    : capacity?.keeps === "random" && training
    ? draw("priority", logits.shape)
    : undefined;
  const places = dispatch(choice, { experts, order, room, priority });
  const weight = weigh({ probability, choice, slot: places.slot }, { normalize }); // [T, k]
  if (inputs.auxiliary && training) {
    inputs.auxiliary.add(balance({ probability, choice, weight: inputs.auxiliary.weight() }, { counted }));
  }

  const stacked = (part: string, shape: readonly [number, number], init: Initialization) =>
    graph.parameter(`${name}.experts.${part}.weight`, [experts, ...shape], init);
  const offset = expertOffsets(places), own = toExperts(toRows(x, places), places);
  const gated = gate(
    expertLinear(own, stacked("gate", [ffnSize, hiddenSize], initialization.ffnUp), offset),
    expertLinear(own, stacked("up", [ffnSize, hiddenSize], initialization.ffnUp), offset),
    activation,
  );
  const done = expertLinear(gated, stacked("down", [hiddenSize, ffnSize], initialization.ffnDown(layer)), offset);
  const mixed = fromRows(fromExperts(done, places), places, weight);
  if (!shared) return mixed;

  const dense = (input: Tensor, part: string, out: number, init: Initialization) =>
    linear(input, graph.parameter(`${name}.shared.${part}.weight`, [out, input.shape[1]!], init));
  const alike = dense(
    gate(
      dense(x, "gate", shared.ffnSize, initialization.ffnUp),
      dense(x, "up", shared.ffnSize, initialization.ffnUp),
      activation,
    ),
    "down",
    hiddenSize,
    initialization.ffnDown(layer),
  );
  if (shared.joins === "sigmoid") {
    const share = linear(x, router("shared_gate", 1), { type: "f32" });
    return add(mixed, rowScale(alike, share, { way: 0, sigmoid: true }));
  }
  const bias = graph.parameter(`${name}.shared_gate.bias`, [2], zeros, "f32");
  const shares = softmax(linear(cast(x, "f32"), router("shared_gate", 2), { bias, type: "f32" }));
  return add(
    rowScale(mixed, shares, { way: 0, sigmoid: false }),
    rowScale(alike, shares, { way: 1, sigmoid: false }),
  );
}
