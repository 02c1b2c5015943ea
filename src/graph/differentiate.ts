/**
 * Reverse-mode differentiation, with recomputation. Turns the forward nodes of a graph into a list of backward nodes
 * that end in accumulators, one for each parameter.
 *
 * Recomputation (activation checkpointing: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost") is a
 * rewrite: before the backward pass of a chosen layer, its forward nodes are replayed, and gradients read the replayed
 * values. What the backward pass then reads from the forward pass is the layer's input alone. The replay runs the same
 * kernels on the same data, so losses do not change by a bit.
 */
import { fuseAccumulators, fuseSums } from "./fuse.ts";
import type { Graph, Node, Tensor } from "./graph.ts";
import { accumulateInto, addInto } from "./operators.ts";

export interface Differentiated {
  readonly graph: Graph;
  readonly forward: readonly Node[];
  readonly backward: readonly Node[];
  /** Accumulator of each parameter's gradient, by canonical name. */
  readonly gradients: ReadonlyMap<string, Tensor>;
  /** Inputs that only the backward pass reads: the gradients given to it. */
  readonly given: ReadonlySet<Tensor>;
  /** Gradient of each input that was asked for. */
  readonly inputGradients: ReadonlyMap<Tensor, Tensor>;
}

export interface DifferentiateOptions {
  /** Whether a layer's activations are recomputed instead of saved. @default none are */
  readonly recompute?: (layer: number) => boolean;
  /** Tensors whose gradient comes from outside, as an input of the graph: what a part hands to the next one. */
  readonly outputGradients?: ReadonlyMap<Tensor, Tensor>;
  /** Inputs of the graph whose gradient is wanted: what a part was handed by the one before. */
  readonly wanted?: readonly Tensor[];
}

/**
 * @param graph a traced graph with a root, or with gradients given to some of its tensors; its node list is taken over
 * as the forward pass
 * @throws {TypeError} when there is neither, or a parameter or a wanted input gets no gradient
 */
export function differentiate(
  graph: Graph,
  { recompute = () => false, outputGradients = new Map(), wanted = [] }: DifferentiateOptions = {},
): Differentiated {
  const forward = graph.nodes.splice(0);
  if (!forward.some((node) => node.operator.root) && outputGradients.size === 0) {
    throw new TypeError("Cannot differentiate: the graph has no loss");
  }

  const gradients = new Map<string, Tensor>();
  // Whatever a parameter is read as: many small terms are added up here.
  for (const [name, { tensor: { shape } }] of graph.parameters) {
    gradients.set(name, graph.tensor({ shape, type: "f32" }, "gradient", name));
  }

  const needsGradient = new Set<Tensor>(wanted);
  for (const node of forward) {
    if (node.operator.gradient && node.inputs.some((input) => input.kind === "parameter" || needsGradient.has(input))) {
      node.outputs.forEach((output) => needsGradient.add(output));
    }
  }

  const gradientOf = new Map<Tensor, Tensor>(outputGradients);
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

  const transient = new Map(forward.filter((node) => node.transient).map((node) => [node.outputs[0]!, node]));
  /** Nodes that turn out to serve no gradient are dropped in the end. */
  const makeAgain = (tensor: Tensor) => {
    const node = transient.get(tensor);
    if (!node || replayed.has(tensor)) return;
    const [again] = graph.inLayer(
      node.layer,
      () => graph.apply(node.operator, node.inputs.map(current), node.attributes),
    );
    replayed.set(tensor, again!);
  };

  for (const node of forward.toReversed()) {
    const received = node.outputs.map((output) => gradientOf.get(output));
    if (!node.operator.gradient || !(node.operator.root || received.some(Boolean))) continue;
    if (node.layer !== undefined && recompute(node.layer) && !replayedLayers.has(node.layer)) replay(node.layer);
    node.inputs.forEach(makeAgain);
    const seen = { ...node, inputs: node.inputs.map(current), outputs: node.outputs.map(current) };
    const inputGradients = graph.inLayer(node.layer, () => node.operator.gradient!(seen, received));
    node.inputs.forEach((input, index) => {
      const gradient = inputGradients[index];
      if (!gradient) return;
      if (input.kind === "parameter") {
        const { name, names = [name], firstRow, shape } = input, wholes = names.map((each) => gradients.get(each)!);
        const whole = wholes.length === 1 ? wholes[0]! : graph.sideBySide(wholes);
        const sum = firstRow === undefined ? whole : graph.rows(whole, firstRow, shape[0]!);
        graph.inLayer(node.layer, () => graph.apply(accumulateInto, [sum, gradient], {}));
      } else if (needsGradient.has(input)) {
        const known = gradientOf.get(input);
        gradientOf.set(input, known ? graph.inLayer(node.layer, () => addInto(known, gradient)) : gradient);
      }
    });
  }

  const wantedGradients = new Map(wanted.map((input) => {
    const gradient = gradientOf.get(input);
    if (!gradient) throw new TypeError(`Cannot differentiate: no gradient reaches input ${input.name}`);
    return [input, gradient];
  }));
  const kept = new Set(wantedGradients.values());
  const backward = fuseAccumulators(fuseSums(withoutDeadNodes(graph.nodes.splice(0), kept), kept));
  const reached = new Set(
    backward.flatMap((node) => [...node.inputs, ...node.outputs])
      .flatMap(({ kind, name, names = [name] }) => kind === "gradient" ? names : []),
  );
  for (const name of gradients.keys()) {
    if (!reached.has(name)) throw new TypeError(`Cannot differentiate: no gradient reaches parameter ${name}`);
  }
  return {
    graph,
    forward,
    backward,
    gradients,
    given: new Set(outputGradients.values()),
    inputGradients: wantedGradients,
  };
}

/** Drops nodes whose results nothing reads, such as the tail of a replayed layer. */
function withoutDeadNodes(nodes: readonly Node[], wanted: ReadonlySet<Tensor>): Node[] {
  const used = new Set<Tensor>(wanted), kept: Node[] = [];
  for (const node of nodes.toReversed()) {
    if (node.outputs.length > 0 && !node.outputs.some((output) => used.has(output))) continue;
    node.inputs.forEach((input) => used.add(input));
    kept.push(node);
  }
  return kept.reverse();
}
