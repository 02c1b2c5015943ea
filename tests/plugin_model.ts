/**
 * A user's model, as a module of `runtime.plugins`: what follows a token is told from it and the one before it, through
 * one hidden layer. It is written for one device, and differentiated, planned and trained like the built-in ones.
 */
import type { Graph, Tensor } from "../src/graph/graph.ts";
import { add, embedding, gate, linear } from "../src/graph/operators.ts";
import type { ModelFamily, ModelSection } from "../src/models/family.ts";
import { registerModule } from "../src/models/registry.ts";
import type { ModelInputs } from "../src/nn/inputs.ts";
import { replicated, split } from "../src/parallel/layout.ts";

function model(
  graph: Graph,
  { ids, positions }: ModelInputs,
  { vocab_size, hidden_size, options }: ModelSection,
): Tensor {
  const std = Number(options.init_std ?? 0.1);
  const p = (name: string, ...shape: number[]) => graph.parameter(name, shape, { kind: "normal", std });
  const x = add(
    embedding(ids, p("words.weight", vocab_size, hidden_size), { gradientScale: 1 }),
    embedding(positions, p("places.weight", vocab_size, hidden_size), { gradientScale: 1 }),
  );
  const hidden = gate(linear(x, p("gate.weight", hidden_size, hidden_size)), x, "silu");
  return linear(hidden, p("head.weight", vocab_size, hidden_size));
}

/** What may be divided, and how, for every way of training on many ranks. */
const sharding = {
  "words.weight": split(1, "tensor"),
  "places.weight": replicated(),
  "gate.weight": split(0, "tensor"),
  "head.weight": split(0, "tensor"),
};

const family: ModelFamily = { model, sharding };
registerModule("PLACES", family);
