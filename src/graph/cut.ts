/**
 * Cuts a traced graph into the pieces that the stages of a pipeline hold. The model is written and sharded whole; a piece
 * is a graph of its own with some of its nodes. What one piece makes and a later one reads crosses every boundary between
 * them: it leaves a piece as a passed output and enters the next as an input, in one order on both sides.
 */
import { differentiate } from "./differentiate.ts";
import { copyLeaf, Graph, type Node, type Tensor } from "./graph.ts";
import { joinProducts } from "./join_products.ts";
import type { ChunkGraph, Outputs } from "./plan.ts";

/** Layers `first` up to, not including, `end`. */
export interface LayerSpan {
  readonly first: number;
  readonly end: number;
}

export interface Piece {
  readonly graph: Graph;
  /** Values from the piece before, in order of their making: inputs named `stage_input 0`, `stage_input 1`… */
  readonly entering: readonly Tensor[];
  /** Values for the piece behind, in order of their making. */
  readonly leaving: readonly Tensor[];
  /** Whether a gradient flows back against each value of `entering` and `leaving`. */
  readonly enteringDiffers: readonly boolean[];
  readonly leavingDiffers: readonly boolean[];
  /** Tensors of the whole graph as they are called in this piece: those that its nodes read or make. */
  readonly tensors: ReadonlyMap<Tensor, Tensor>;
}

/** Names in a piece's segments: what it is handed, what it hands on, and the gradient of that. */
const enteringName = (index: number): string => `stage_input ${index}`;
const leavingName = (index: number): string => `stage_output ${index}`;
const gradientName = (index: number): string => `stage_output_gradient ${index}`;

/** Pieces of the model, counted from the front, that read each parameter. */
export type Readers = ReadonlyMap<string, ReadonlySet<number>>;

/**
 * Nodes that belong to no layer go with the first piece where they stand before all layers (the embedding), else with the
 * piece of the node before them; behind the last layer that is the last piece (norm, head, loss).
 *
 * @param spans layers of all pieces, in order, together all layers of the model
 * @param wanted which pieces to make
 * @throws {RangeError} for a node of a layer that no span holds
 */
export function cut(
  graph: Graph,
  spans: readonly LayerSpan[],
  wanted: readonly number[],
): { pieces: Piece[]; readers: Readers } {
  const pieceOf = new Map<Node, number>(), madeIn = new Map<Tensor, number>(), lastRead = new Map<Tensor, number>();
  let piece = 0;
  const lastLayer = Math.max(-1, ...graph.nodes.map(({ layer = -1 }) => layer));
  let left = graph.nodes.filter(({ layer }) => layer === lastLayer).length;
  for (const node of graph.nodes) {
    if (node.layer !== undefined) {
      piece = spans.findIndex(({ first, end }) => first <= node.layer! && node.layer! < end);
      if (piece < 0) throw new RangeError(`Cannot cut: no piece holds layer ${node.layer}`);
      if (node.layer === lastLayer) left--;
    } else if (left === 0) piece = spans.length - 1;
    pieceOf.set(node, piece);
    for (const input of node.inputs) {
      const made = madeIn.get(input);
      if (made !== undefined && made > piece) {
        throw new RangeError(`Cannot cut: ${node.operator.name} of piece ${piece} reads what piece ${made} makes`);
      }
      lastRead.set(input, Math.max(piece, lastRead.get(input) ?? 0));
    }
    node.outputs.forEach((output) => madeIn.set(output, piece));
  }
  const readers = new Map<string, Set<number>>();
  for (const [node, piece] of pieceOf) {
    for (const { kind, name } of node.inputs) {
      if (kind === "parameter") readers.set(name, (readers.get(name) ?? new Set()).add(piece));
    }
  }
  const differs = differentiable(graph.nodes);
  /** Values that cross from piece `boundary` to the next. */
  const crossing = (boundary: number) =>
    [...madeIn].filter(([value, made]) => made <= boundary && (lastRead.get(value) ?? -1) > boundary)
      .map(([value]) => value);

  const pieces = wanted.map((index) => {
    const own = new Graph(graph.types), tensors = new Map<Tensor, Tensor>();
    const entering = crossing(index - 1), leaving = crossing(index);
    entering.forEach((value, place) => tensors.set(value, own.input(enteringName(place), value)));
    const here = (tensor: Tensor): Tensor => {
      const known = tensors.get(tensor);
      if (known) return known;
      const made = copyLeaf(own, tensor);
      tensors.set(tensor, made);
      return made;
    };
    for (const node of graph.nodes) {
      if (pieceOf.get(node) !== index) continue;
      const { operator, inputs, attributes, layer, transient = false } = node;
      const outputs = own.inLayer(layer, () => own.apply(operator, inputs.map(here), attributes, { transient }));
      node.outputs.forEach((output, place) => tensors.set(output, outputs[place]!));
    }
    return {
      graph: own,
      entering: entering.map(here),
      leaving: leaving.map(here),
      enteringDiffers: entering.map((value) => differs.has(value)),
      leavingDiffers: leaving.map((value) => differs.has(value)),
      tensors,
    };
  });
  return { pieces, readers };
}

/** A pass over the whole model before it is cut: its pieces, and what the host reads of it. */
export interface CutPass {
  readonly piece: Piece;
  /** Tensors of the whole graph; a piece yields those that it makes. */
  readonly outputs: Outputs;
}

/** A piece as the planner takes it: differentiated, with its ends joined to the pieces beside it. */
export function chunkOf(
  { training, evaluation, recompute, split = false, join }: {
    readonly training: CutPass;
    readonly evaluation: CutPass;
    /** Whether a layer's activations are recomputed instead of saved. */
    readonly recompute?: (layer: number) => boolean;
    /** Cut the backward pass in two. @default {false} */
    readonly split?: boolean;
    /** Let products of one tensor be one, where a binding holds what it moves. @default they stay apart */
    readonly join?: { readonly largest: number; readonly alignment: number };
  },
): ChunkGraph {
  const made = ({ piece, outputs }: CutPass): Outputs => {
    const own = new Set(piece.graph.nodes.flatMap((node) => node.outputs));
    const named = Object.entries(outputs).map(([name, tensor]) => [name, piece.tensors.get(tensor)] as const);
    return Object.fromEntries(named.filter(([, tensor]) => tensor && own.has(tensor))) as Outputs;
  };
  const leaving = ({ leaving }: Piece): Outputs =>
    Object.fromEntries(leaving.map((tensor, index) => [leavingName(index), tensor]));
  const { piece } = training, trainingOutputs = made(training), evaluationOutputs = made(evaluation);
  if (join) {
    for (const { piece, outputs } of [training, evaluation]) {
      const kept = new Set([
        ...Object.values(outputs).flatMap((each) => piece.tensors.get(each) ?? []),
        ...piece.leaving,
      ]);
      joinProducts(piece.graph, { kept, ...join });
    }
  }
  const outputGradients = new Map(
    piece.leaving.flatMap((tensor, index) =>
      piece.leavingDiffers[index] ? [[tensor, piece.graph.input(gradientName(index), tensor)] as const] : []
    ),
  );
  return {
    training: differentiate(piece.graph, {
      ...(recompute && { recompute }),
      outputGradients,
      wanted: piece.entering.filter((_, index) => piece.enteringDiffers[index]),
    }),
    trainingOutputs,
    passed: leaving(piece),
    split,
    evaluation: { graph: evaluation.piece.graph, outputs: evaluationOutputs, passed: leaving(evaluation.piece) },
  };
}

/** Values through which a gradient flows from a root to a parameter. */
function differentiable(nodes: readonly Node[]): ReadonlySet<Tensor> {
  const fromParameters = new Set<Tensor>(), toRoot = new Set<Tensor>();
  for (const { operator, inputs, outputs } of nodes) {
    if (operator.gradient && inputs.some((input) => input.kind === "parameter" || fromParameters.has(input))) {
      outputs.forEach((output) => fromParameters.add(output));
    }
  }
  for (const { operator, inputs, outputs } of nodes.toReversed()) {
    if (operator.gradient && (operator.root || outputs.some((output) => toRoot.has(output)))) {
      inputs.forEach((input) => toRoot.add(input));
    }
  }
  return new Set([...fromParameters].filter((value) => toRoot.has(value)));
}
