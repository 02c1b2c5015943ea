/**
 * Operators between ranks: what the ranks along a named axis do together with their tensors. Each has its conjugate as
 * gradient:
 *
 * | operator | input of a rank → output of a rank | gradient |
 * |---|---|---|
 * | `allReduce` | a term of a sum → the sum | identity |
 * | `replicate` | the same everywhere → itself | `allReduce` |
 * | `allGather` | a part → the whole, of which each rank makes another use | `reduceScatter` |
 * | `reduceScatter` | a term of a sum → a part of the sum | `allGather` |
 * | `gather` | a part → the whole, with which all ranks do the same | `split` |
 * | `split` | the same everywhere → a part | `gather` |
 * | `allToAll` | a part by one dimension → a part by another | `allToAll` back |
 *
 * (Shoeybi et al. 2019, "Megatron-LM", calls `replicate` and `allReduce` f and g; Korthikanti et al. 2022, "Reducing
 * Activation Recomputation in Large Transformer Models", adds the pair that splits the sequence.) A part is an even
 * share of one dimension, in the order of the ranks along the axis. Axes of size one have no operators: whoever shards a
 * graph leaves them out.
 */
import type { FloatType } from "../../kernels/host.ts";
import { slice } from "../../kernels/slice/mod.ts";
import { elementCount, type Operator, type Strips, type Tensor, type TensorType } from "./graph.ts";

/** Ranks along an axis, and this one's place among them. */
export interface Along {
  readonly axis: string;
  readonly size: number;
  readonly index: number;
}
interface AlongDimension extends Along {
  readonly dimension: number;
}

const even = (what: string, { shape }: TensorType, dimension: number, { axis, size }: Along) => {
  if (shape[dimension]! % size === 0) return;
  throw new RangeError(
    `Cannot ${what} dimension ${dimension} of [${shape}] over ${axis}: ${shape[dimension]} is no multiple of ${size}`,
  );
};
const resized = ({ shape, type }: TensorType, dimension: number, factor: number): TensorType => ({
  shape: shape.with(dimension, shape[dimension]! * factor),
  type,
});
/** Parts along a dimension of a whole tensor. */
const stripsOf = ({ shape }: TensorType, dimension: number, size: number): Strips => ({
  outer: elementCount(shape.slice(0, dimension)),
  inner: elementCount(shape.slice(dimension)) / size,
});

const allReduceOperator: Operator<Along> = {
  name: "allReduce",
  inPlace: 0,
  infer: ([x]) => [{ shape: x!.shape, type: x!.type }],
  gradient: (_node, [dY]) => [dY],
  collective: ({ attributes: { axis, size } }) => ({ operator: "all-reduce", axis, size }),
};
/** The sum of all ranks' terms, on every rank. */
export const allReduce = (x: Tensor, { axis, size, index }: Along): Tensor =>
  x.graph.apply(allReduceOperator, [x], { axis, size, index })[0]!;

const replicateOperator: Operator<Along> = {
  name: "replicate",
  infer: ([x]) => [{ shape: x!.shape, type: x!.type }],
  gradient: (node, [dY]) => [dY && allReduce(dY, node.attributes)],
};
/** The same tensor, where what follows is split: each rank then has a term of its gradient. */
export const replicate = (x: Tensor, { axis, size, index }: Along): Tensor =>
  x.graph.apply(replicateOperator, [x], { axis, size, index })[0]!;

interface GatherAttributes extends AlongDimension {
  /** All ranks do the same with the whole, so each has all of its gradient. */
  readonly alike: boolean;
}
const allGatherOperator: Operator<GatherAttributes> = {
  name: "allGather",
  infer: ([x], { dimension, size }) => [resized(x!, dimension, size)],
  gradient: (node, [dY]) => {
    const { alike, ...along } = node.attributes as GatherAttributes;
    return [dY && (alike ? split(dY, along) : reduceScatter(dY, along))];
  },
  collective: ({ attributes: { axis, size, dimension }, outputs: [y] }) => ({
    operator: "all-gather",
    axis,
    size,
    into: stripsOf(y!, dimension, size),
  }),
};
/** Whether the backward pass keeps what was gathered, or gathers it again. */
export interface GatherOptions {
  readonly transient?: boolean;
}
/** The whole of which every rank has a part, for different work on each rank: gradients are terms of a sum. */
export const allGather = (
  x: Tensor,
  { axis, size, index, dimension }: AlongDimension,
  options: GatherOptions = {},
): Tensor => x.graph.apply(allGatherOperator, [x], { axis, size, index, dimension, alike: false }, options)[0]!;
/** The whole of which every rank has a part, for the same work on each rank. */
export const gather = (
  x: Tensor,
  { axis, size, index, dimension }: AlongDimension,
  options: GatherOptions = {},
): Tensor => x.graph.apply(allGatherOperator, [x], { axis, size, index, dimension, alike: true }, options)[0]!;

const reduceScatterOperator: Operator<AlongDimension> = {
  name: "reduceScatter",
  infer([x], attributes) {
    even("reduce-scatter", x!, attributes.dimension, attributes);
    return [resized(x!, attributes.dimension, 1 / attributes.size)];
  },
  gradient: (node, [dY]) => [dY && allGather(dY, node.attributes)],
  collective: ({ attributes: { axis, size, dimension }, inputs: [x] }) => ({
    operator: "reduce-scatter",
    axis,
    size,
    from: stripsOf(x!, dimension, size),
  }),
};
/** This rank's part of the sum of all ranks' terms. */
export const reduceScatter = (x: Tensor, { axis, size, index, dimension }: AlongDimension): Tensor =>
  x.graph.apply(reduceScatterOperator, [x], { axis, size, index, dimension })[0]!;

const splitOperator: Operator<AlongDimension> = {
  name: "split",
  infer([x], attributes) {
    even("split", x!, attributes.dimension, attributes);
    return [resized(x!, attributes.dimension, 1 / attributes.size)];
  },
  gradient: (node, [dY]) => [dY && gather(dY, node.attributes)],
  lower({ attributes: { size, index, dimension }, inputs: [x], outputs: [y] }) {
    const { outer, inner } = stripsOf(x!, dimension, size);
    const type = x!.type as FloatType;
    const kernel = slice({ outer, whole: inner * size, first: inner * index, part: inner, type });
    return { kernel, operands: [x, y] };
  },
};
/** This rank's part of what is the same everywhere. No byte moves between ranks. */
export const split = (x: Tensor, { axis, size, index, dimension }: AlongDimension): Tensor =>
  x.graph.apply(splitOperator, [x], { axis, size, index, dimension })[0]!;

interface AllToAllAttributes extends Along {
  /** Dimension of which this rank has a part before, and the one of which it has a part after. */
  readonly from: number;
  readonly to: number;
}
const allToAllOperator: Operator<AllToAllAttributes> = {
  name: "allToAll",
  infer([x], attributes) {
    const { from, to, size } = attributes;
    even("exchange", x!, to, attributes);
    return [resized(resized(x!, to, 1 / size), from, size)];
  },
  gradient: (node, [dY]) => {
    const { from, to, ...along } = node.attributes as AllToAllAttributes;
    return [dY && allToAll(dY, { ...along, from: to, to: from })];
  },
  collective: ({ attributes: { axis, size, from, to }, inputs: [x], outputs: [y] }) => ({
    operator: "all-to-all",
    axis,
    size,
    from: stripsOf(x!, to, size),
    into: stripsOf(y!, from, size),
  }),
};
/** From a part by dimension `from` to a part by dimension `to`. */
export const allToAll = (x: Tensor, { axis, size, index, from, to }: AllToAllAttributes): Tensor =>
  x.graph.apply(allToAllOperator, [x], { axis, size, index, from, to })[0]!;
