/**
 * A user's model of several layers, each with a mixture of experts, as a module of `runtime.plugins`: what is before a token
 * is told it by its neighbour's embedding, there is no attention. Stages, experts and every other way of dividing it follow
 * from the layers that it names and from where its parameters may live.
 */
import type { Graph, Tensor } from "../src/graph/graph.ts";
import { add, embedding, gate, linear, rmsNorm } from "../src/graph/operators.ts";
import type { ModelFamily, ModelSection } from "../src/models/family.ts";
import { moeSharding } from "../src/models/moe.ts";
import { registerModule } from "../src/models/registry.ts";
import type { ModelInputs } from "../src/nn/inputs.ts";
import { mixtureOfExperts } from "../src/nn/moe.ts";
import { replicated, split } from "../src/parallel/layout.ts";

function model(graph: Graph, inputs: ModelInputs, section: ModelSection): Tensor {
  const { num_layers, vocab_size, hidden_size, num_experts, top_k, layer_norm_epsilon: epsilon } = section;
  const normal = { kind: "normal", std: 0.3 } as const, ones = { kind: "constant", value: 1 } as const;
  const p = (name: string, ...shape: number[]) => graph.parameter(name, shape, normal);
  const norm = (x: Tensor, name: string) => rmsNorm(x, graph.parameter(name, [hidden_size], ones), { epsilon });
  const moe = {
    experts: num_experts,
    choices: top_k,
    ffnSize: 2 * hidden_size,
    order: "token",
    normalize: "all",
    counted: top_k,
    routerInitialization: normal,
  } as const;
  const initialization = { ffnUp: normal, ffnDown: () => normal };
  let x = add(
    embedding(inputs.ids, p("words.weight", vocab_size, hidden_size), { gradientScale: 1 }),
    embedding(inputs.positions, p("places.weight", vocab_size, hidden_size), { gradientScale: 1 }),
  );
  for (let layer = 0; layer < num_layers; layer++) {
    x = graph.inLayer(layer, () => {
      const name = `layers.${layer}`, seen = norm(x, `${name}.norm1.weight`);
      const mixed = gate(linear(seen, p(`${name}.mix.gate.weight`, hidden_size, hidden_size)), seen, "silu");
      const r = add(x, linear(mixed, p(`${name}.mix.out.weight`, hidden_size, hidden_size)));
      const settings = { hiddenSize: hidden_size, activation: "silu", initialization, moe } as const;
      return add(r, mixtureOfExperts(graph, norm(r, `${name}.norm2.weight`), inputs, layer, settings));
    });
  }
  return linear(norm(x, "norm.weight"), p("head.weight", vocab_size, hidden_size));
}

const experts = Object.fromEntries(Object.entries(moeSharding).filter(([name]) => /router|experts/.test(name)));
const sharding = {
  "words.weight": split(1, "tensor"),
  "places.weight": replicated(),
  "layers.*.norm1.weight": replicated(),
  "layers.*.norm2.weight": replicated(),
  "layers.*.mix.gate.weight": split(0, "tensor"),
  "layers.*.mix.out.weight": split(1, "tensor"),
  ...experts,
  "norm.weight": replicated(),
  "head.weight": split(0, "tensor"),
} as const;

const family: ModelFamily = { model, sharding };
registerModule("DEEP_PLACES", family);
