/**
 * Reverse-mode differentiation, with recomputation. Turns the forward nodes of a graph into a list of backward nodes
 * that end in accumulators, one for each parameter.
 *
 * Recomputation (activation checkpointing: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost") is a
 * rewrite: before the backward pass of a chosen layer, its forward nodes are replayed, and gradients read the replayed
 * values. What the backward pass then reads from the forward pass is the layer's input alone. The replay runs the same
 * kernels on the same data, so losses do not change by a bit.
 */
import type { Graph, Node, Tensor } from "./graph.ts";
import { accumulateInto, addInto } from "./operators.ts";

export interface Differentiated {
  readonly graph: Graph;
  readonly forward: readonly Node[];
  readonly backward: readonly Node[];
  /** Accumulator of each parameter's gradient, by canonical name. */
  readonly gradients: ReadonlyMap<string, Tensor>;
}

/**
 * @param graph a traced graph with at least one root; its node list is taken over as the forward pass
 * @param recompute whether a layer's activations are recomputed instead of saved
 * @throws {TypeError} when there is no root, or a parameter gets no gradient
 */
export function differentiate(
  graph: Graph,
  { recompute = () => false }: { recompute?: (layer: number) => boolean } = {},
): Differentiated {
  const forward = graph.nodes.splice(0);
  if (!forward.some((node) => node.operator.root)) throw new TypeError("Cannot differentiate: the graph has no loss");

  const gradients = new Map<string, Tensor>();
  for (const [name, { tensor }] of graph.parameters) gradients.set(name, graph.tensor(tensor, "gradient", name));

  const needsGradient = new Set<Tensor>();
  for (const node of forward) {
    if (node.operator.gradient && node.inputs.some((input) => input.kind === "parameter" || needsGradient.has(input))) {
      node.outputs.forEach((output) => needsGradient.add(output));
    }
  }

  const gradientOf = new Map<Tensor, Tensor>();
  const replayed = new Map<Tensor, Tensor>();
  const replayedLayers = new Set<number>();
  const current = (tensor: Tensor) => replayed.get(tensor) ?? tensor;
  const replay = (layer: number) => {
    replayedLayers.add(layer);
    for (const node of forward) {
      if (node.layer !== layer) continue;
      const outputs = graph.inLayer(layer, () => graph.apply(node.operator, node.inputs.map(current), node.attributes));
      node.outputs.forEach((output, index) => replayed.set(output, outputs[index]!));
    }
  };

  for (const node of forward.toReversed()) {
    const outputGradients = node.outputs.map((output) => gradientOf.get(output));
    if (!node.operator.gradient || !(node.operator.root || outputGradients.some(Boolean))) continue;
    if (node.layer !== undefined && recompute(node.layer) && !replayedLayers.has(node.layer)) replay(node.layer);
    const seen = { ...node, inputs: node.inputs.map(current), outputs: node.outputs.map(current) };
    const inputGradients = graph.inLayer(node.layer, () => node.operator.gradient!(seen, outputGradients));
    node.inputs.forEach((input, index) => {
      const gradient = inputGradients[index];
      if (!gradient) return;
      if (input.kind === "parameter") {
        graph.inLayer(node.layer, () => graph.apply(accumulateInto, [gradients.get(input.name)!, gradient], {}));
      } else if (needsGradient.has(input)) {
        const known = gradientOf.get(input);
        gradientOf.set(input, known ? graph.inLayer(node.layer, () => addInto(known, gradient)) : gradient);
      }
    });
  }

  const backward = fuseAccumulators(withoutDeadNodes(graph.nodes.splice(0)));
  const reached = new Set(backward.flatMap((node) => [...node.inputs, ...node.outputs]));
  for (const [name, gradient] of gradients) {
    if (!reached.has(gradient)) throw new TypeError(`Cannot differentiate: no gradient reaches parameter ${name}`);
  }
  return { graph, forward, backward, gradients };
}

/** Drops nodes whose results nothing reads, such as the tail of a replayed layer. */
function withoutDeadNodes(nodes: readonly Node[]): Node[] {
  const used = new Set<Tensor>(), kept: Node[] = [];
  for (const node of nodes.toReversed()) {
    if (node.outputs.length > 0 && !node.outputs.some((output) => used.has(output))) continue;
    node.inputs.forEach((input) => used.add(input));
    kept.push(node);
  }
  return kept.reverse();
}

/** Lets a producer that can accumulate write straight into the gradient, where the accumulator is its only reader. */
function fuseAccumulators(nodes: readonly Node[]): Node[] {
  const producers = new Map<Tensor, number>(), uses = new Map<Tensor, number>();
  nodes.forEach((node, index) => {
    node.outputs.forEach((output) => producers.set(output, index));
    node.inputs.forEach((input) => uses.set(input, (uses.get(input) ?? 0) + 1));
  });
  const result: (Node | undefined)[] = [...nodes];
  nodes.forEach((node, index) => {
    if (node.operator !== accumulateInto) return;
    const [accumulator, value] = node.inputs as [Tensor, Tensor];
    const at = producers.get(value);
    const producer = at === undefined ? undefined : result[at];
    if (!producer?.operator.accumulates || producer.outputs.length !== 1 || uses.get(value) !== 1) return;
    result[at!] = { ...producer, outputs: [accumulator], attributes: { ...producer.attributes, accumulate: true } };
    result[index] = undefined;
  });
  return result.filter((node) => node !== undefined);
}
