/**
 * The operators that models are written in: each with its shape rule, its gradient in terms of operators, and its
 * kernel. Streams of activations are `[tokens, features]`; a micro-batch is one flat row of tokens whose segments are
 * told by `start` and `end` per token.
 */
import {
  add as addKernel,
  addInPlace,
  cast as castKernel,
  dropout as dropoutKernel,
  fill,
  scale as scaleKernel,
} from "../../kernels/elementwise/mod.ts";
import { attentionBackward, attentionForward } from "../../kernels/attention/mod.ts";
import { columnSum as columnSumKernel } from "../../kernels/reduce/mod.ts";
import {
  crossEntropyBackward,
  crossEntropyForward,
  crossEntropyMerge,
  crossEntropyStatistics,
  statisticsPerRow,
} from "../../kernels/cross_entropy/mod.ts";
import { embeddingForward, embeddingGradient, groupsLength } from "../../kernels/embedding/mod.ts";
import { type Activation, gateBackward, gateForward } from "../../kernels/gate/mod.ts";
import { matmul as matmulKernel } from "../../kernels/matmul/mod.ts";
import {
  layerNormBackward,
  layerNormForward,
  layerNormWeightGradient,
  rmsNormBackward,
  rmsNormForward,
  rmsNormWeightGradient,
} from "../../kernels/norm/mod.ts";
import { slice, unslice } from "../../kernels/slice/mod.ts";
import { rotate as rotateKernel } from "../../kernels/rope/mod.ts";
import { rowNormalizeBackward, rowNormalizeForward } from "../../kernels/row_normalize/mod.ts";
import { type Along, gather } from "./collectives.ts";
import { accumulate, bind, bindAll, like, requireShape, rowsAndColumns, storedAs, typed } from "./bind.ts";
import { elementCount, f32, type Node, type Operator, type Tensor, type TensorType } from "./graph.ts";
import type { FloatType } from "../../kernels/host.ts";

// ------------------------------------------------------------------------------------------------------- products

interface MatmulAttributes {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  /** What the product is stored as. */
  readonly type: FloatType;
  readonly accumulate?: boolean;
}

const productOf = (node: Node, [a, b]: readonly Tensor[], accumulate: boolean) => {
  const { type, ...sizes } = node.attributes as MatmulAttributes;
  const types = { a: storedAs(a!), b: storedAs(b!), c: type };
  const { split = false, packed = false } = a!.graph.types;
  const kernel = matmulKernel({ ...sizes, types, split, packed, accumulate });
  return bind(kernel, [a!, b!, node.outputs[0]!]);
};
/** Plain product, used by the gradients below. `a` `[m,k]`, `b` `[k,n]`, either stored transposed. */
const matmul: Operator<MatmulAttributes> = {
  name: "matmul",
  accumulates: true,
  infer: (_inputs, { m, n, type }) => [typed(type, m, n)],
  lower: (node) => productOf(node, node.inputs, accumulate(node)),
  adding: {
    name: "matmul",
    inPlace: 0,
    infer: ([sum]) => [like(sum!)],
    lower: (node) => productOf(node, node.inputs.slice(1), true),
  },
};

export interface LinearAttributes {
  readonly bias: boolean;
  readonly residual: boolean;
  /** The weight's gradient is multiplied by it, the value is not. */
  readonly weightGradientScale: number;
  /** What y is stored as. @default the residual's type, or x's */
  readonly type?: FloatType;
}

/** `y = x Wᵀ (+ bias) (+ residual)`: x `[tokens, in]`, W `[out, in]`, y `[tokens, out]`. */
const linearOperator: Operator<LinearAttributes> = {
  name: "linear",
  infer([x, weight, ...rest], { bias, residual, type }) {
    const [tokens, width] = x!.shape, [out, inside] = weight!.shape;
    if (width !== inside) {
      throw new TypeError(`Cannot trace linear: x has ${width} features, the weight takes ${inside}`);
    }
    if (bias) requireShape("linear bias", rest[0]!.shape, [out!]);
    if (residual) requireShape("linear residual", rest[bias ? 1 : 0]!.shape, [tokens!, out!]);
    return [typed(type ?? (residual ? rest.at(-1)! : x!).type, tokens!, out!)];
  },
  gradient(node, [dY]) {
    if (!dY) return [];
    const [x, weight] = node.inputs as [Tensor, Tensor];
    const [tokens, inside] = x.shape as [number, number], out = weight.shape[0]!;
    const { bias, residual, weightGradientScale } = node.attributes as LinearAttributes;
    const graph = dY.graph;
    const [dX] = graph.apply(matmul, [dY, weight], {
      m: tokens,
      n: inside,
      k: out,
      transposeA: false,
      transposeB: false,
      type: storedAs(x),
    });
    const scaledX = weightGradientScale === 1 ? x : scale(x, weightGradientScale);
    const [dWeight] = graph.apply(matmul, [dY, scaledX], {
      m: out,
      n: inside,
      k: tokens,
      transposeA: true,
      transposeB: false,
      type: "f32",
    });
    const gradients: (Tensor | undefined)[] = [dX, dWeight];
    if (bias) gradients.push(graph.apply(columnSum, [dY], {})[0]);
    if (residual) gradients.push(dY);
    return gradients;
  },
  lower(node) {
    const { bias, residual } = node.attributes as LinearAttributes;
    const [x, weight, ...rest] = node.inputs as [Tensor, Tensor, ...Tensor[]];
    const [tokens, inside] = x.shape as [number, number], out = weight.shape[0]!;
    const types = {
      a: storedAs(x),
      b: storedAs(weight),
      ...(bias && { bias: storedAs(rest[0]!) }),
      ...(residual && { residual: storedAs(rest.at(-1)!) }),
      c: storedAs(node.outputs[0]!),
    };
    const sizes = { m: tokens, n: out, k: inside }, { split = false, packed = false } = x.graph.types;
    return bindAll(matmulKernel({ ...sizes, transposeB: true, bias, residual, types, split, packed }), node);
  },
};

/** `x Wᵀ (+ bias) (+ residual)`, stored as `type`: that of the residual, or of x, if left out. */
export function linear(
  x: Tensor,
  weight: Tensor,
  { bias, residual, weightGradientScale = 1, type }: {
    bias?: Tensor;
    residual?: Tensor;
    weightGradientScale?: number;
    type?: FloatType;
  } = {},
): Tensor {
  const inputs = [x, weight, ...(bias ? [bias] : []), ...(residual ? [residual] : [])];
  const attributes = { bias: !!bias, residual: !!residual, weightGradientScale, ...(type && { type }) };
  return x.graph.apply(linearOperator, inputs, attributes)[0]!;
}

/** Sum over rows: the gradient of a bias. */
const columnSum: Operator<{ accumulate?: boolean }> = {
  name: "columnSum",
  accumulates: true,
  infer: ([x]) => [f32(x!.shape[x!.shape.length - 1]!)],
  lower(node) {
    const [x] = node.inputs as [Tensor];
    const sizes = { ...rowsAndColumns(x.shape), type: storedAs(x), accumulate: accumulate(node) };
    return bindAll(columnSumKernel(sizes), node);
  },
};

// -------------------------------------------------------------------------------------------------- element by element

const lengthOf = (x: Tensor) => ({ length: elementCount(x.shape), type: storedAs(x) });
const additionOf = (to: Tensor, addend: Tensor) => ({ ...lengthOf(to), addendType: storedAs(addend) });

/** Sum of two tensors of one shape; the first one's storage is taken over. */
export const addOperator: Operator<Record<never, never>> = {
  name: "add",
  inPlace: 0,
  infer([a, b]) {
    requireShape("add", b!.shape, a!.shape);
    return [like(a!)];
  },
  gradient: (_node, [dY]) => [dY, dY],
  lower: ({ inputs: [a, b], outputs: [y] }) => bind(addInPlace(additionOf(a!, b!)), [y!, b!]),
};

/** The same where neither input may be overwritten. */
const addOutOfPlace: Operator<Record<never, never>> = {
  name: "add",
  infer: addOperator.infer,
  gradient: addOperator.gradient!,
  lower: (node) => bindAll(addKernel(lengthOf(node.inputs[0]!)), node),
};

/** `a + b`, both kept. */
export const add = (a: Tensor, b: Tensor): Tensor => a.graph.apply(addOutOfPlace, [a, b], {})[0]!;
/** `a + b` in `a`'s storage: for sums of gradients, whose terms are used once. */
export const addInto = (a: Tensor, b: Tensor): Tensor => a.graph.apply(addOperator, [a, b], {})[0]!;

const scaleOperator: Operator<{ factor: number }> = {
  name: "scale",
  infer: ([x]) => [like(x!)],
  gradient: (node, [dY]) => [dY && scale(dY, node.attributes.factor)],
  lower: (node) => bindAll(scaleKernel({ ...lengthOf(node.inputs[0]!), factor: node.attributes.factor }), node),
};
export const scale = (x: Tensor, factor: number): Tensor => x.graph.apply(scaleOperator, [x], { factor })[0]!;

const castOperator: Operator<{ type: FloatType }> = {
  name: "cast",
  infer: ([x], { type }) => [typed(type, ...x!.shape)],
  gradient: ({ inputs: [x] }, [dY]) => [dY && cast(dY, storedAs(x!))],
  lower(node) {
    const [x] = node.inputs as [Tensor], length = elementCount(x.shape);
    return bindAll(castKernel({ length, from: storedAs(x), to: node.attributes.type }), node);
  },
};
/** x stored as `type`: itself where it is so already. */
export const cast = (x: Tensor, type: FloatType): Tensor =>
  x.type === type ? x : x.graph.apply(castOperator, [x], { type })[0]!;

const shareGradientOperator: Operator<{ ranks: number }> = {
  name: "shareGradient",
  infer: ([x]) => [typed(storedAs(x!), ...x!.shape)],
  gradient: (node, [dY]) => [dY && scale(dY, 1 / node.attributes.ranks)],
};
/** x itself, where so many ranks do the same with it and their gradients are summed later: each gives its share. */
export const shareGradient = (x: Tensor, ranks: number): Tensor =>
  x.graph.apply(shareGradientOperator, [x], { ranks })[0]!;

interface ColumnsAttributes {
  readonly first: number;
  readonly count: number;
}
const columnsOperator: Operator<ColumnsAttributes> = {
  name: "columns",
  infer: ([x], { count }) => [typed(storedAs(x!), x!.shape[0]!, count)],
  gradient: ({ inputs: [x], attributes: { first } }, [dY]) => [
    dY && dY.graph.apply(columnsGradient, [dY], { first, count: x!.shape[1]! })[0],
  ],
  lower(node) {
    const [x] = node.inputs as [Tensor], [outer, whole] = x.shape as [number, number];
    const { first, count } = node.attributes as ColumnsAttributes;
    return bindAll(slice({ outer, whole, first, part: count, type: storedAs(x) }), node);
  },
};
const columnsGradient: Operator<ColumnsAttributes> = {
  name: "columnsGradient",
  infer: ([dY], { count }) => [typed(storedAs(dY!), dY!.shape[0]!, count)],
  lower(node) {
    const [dY] = node.inputs as [Tensor], [outer, part] = dY.shape as [number, number];
    const { first, count } = node.attributes as ColumnsAttributes;
    return bindAll(unslice({ outer, whole: count, first, part, type: storedAs(dY) }), node);
  },
};
/** Columns `first` up to `first + count` of x `[rows, columns]`. */
export const columns = (x: Tensor, first: number, count: number): Tensor =>
  x.graph.apply(columnsOperator, [x], { first, count })[0]!;

interface DropoutAttributes {
  readonly rate: number;
  /** Keys the random stream together with the run's seed and the step. */
  readonly layer: number;
  /** Place of the first element in the whole, where x is a part of it. @default {0} */
  readonly firstElement?: number;
}

/** The mask is drawn from a counter, never stored: forward, backward and every replay draw the same. */
const dropoutOperator: Operator<DropoutAttributes> = {
  name: "dropout",
  infer: ([x]) => [like(x!)],
  gradient: (node, [dY]) => [dY && dropout(dY, node.inputs[1]!, node.attributes)],
  lower: (node) => bindAll(dropoutKernel({ ...lengthOf(node.inputs[0]!), ...node.attributes }), node),
};
export const dropout = (x: Tensor, counter: Tensor, attributes: DropoutAttributes): Tensor =>
  x.graph.apply(dropoutOperator, [x, counter], attributes)[0]!;

const gateOperator: Operator<{ activation: Activation }> = {
  name: "gate",
  infer([gate, up]) {
    requireShape("gate", up!.shape, gate!.shape);
    return [like(gate!)];
  },
  gradient: (node, [dY]) => dY ? dY.graph.apply(gateGradient, [...node.inputs, dY], node.attributes) : [],
  lower: (node) => bindAll(gateForward({ ...lengthOf(node.inputs[0]!), ...node.attributes }), node),
};
const gateGradient: Operator<{ activation: Activation }> = {
  name: "gateGradient",
  infer: ([gate]) => [like(gate!), like(gate!)],
  lower: (node) => bindAll(gateBackward({ ...lengthOf(node.inputs[0]!), ...node.attributes }), node),
};
/** `activation(gate) * up`. */
export const gate = (gateInput: Tensor, up: Tensor, activation: Activation): Tensor =>
  gateInput.graph.apply(gateOperator, [gateInput, up], { activation })[0]!;

// ------------------------------------------------------------------------------------------------------------ norms

interface RmsNormAttributes {
  readonly epsilon: number;
  /** Multiply by `1 + weight`. */
  readonly unitOffset?: boolean;
  readonly accumulate?: boolean;
}
const normWidth = (what: string, [x, weight]: readonly TensorType[]) => {
  const { rows, columns } = rowsAndColumns(x!.shape);
  requireShape(what, weight!.shape, [columns]);
  return { rows, columns };
};

/** Sizes of a norm that reads x and a weight, and what these are stored as. */
const normSizes = (x: Tensor, weight: Tensor) => (
  { ...rowsAndColumns(x.shape), type: storedAs(x), weightType: storedAs(weight) }
);
/** Rows of a tensor, and what they are stored as. */
const rowsOf = (x: Tensor) => ({ ...rowsAndColumns(x.shape), type: storedAs(x) });

const rmsNormOperator: Operator<RmsNormAttributes> = {
  name: "rmsNorm",
  infer: (inputs) => [like(inputs[0]!), f32(normWidth("rmsNorm weight", inputs).rows)],
  gradient(node, [dY]) {
    if (!dY) return [];
    const [x, weight] = node.inputs as [Tensor, Tensor], inverse = node.outputs[1]!;
    return [
      dY.graph.apply(rmsNormInputGradient, [x, weight, inverse, dY], node.attributes)[0],
      dY.graph.apply(rmsNormWeightGradientOperator, [x, inverse, dY], node.attributes)[0],
    ];
  },
  lower: (node) =>
    bindAll(rmsNormForward({ ...normSizes(node.inputs[0]!, node.inputs[1]!), ...node.attributes }), node),
};
const rmsNormInputGradient: Operator<RmsNormAttributes> = {
  name: "rmsNormGradient",
  infer: ([x]) => [like(x!)],
  lower: (node) =>
    bindAll(rmsNormBackward({ ...normSizes(node.inputs[0]!, node.inputs[1]!), ...node.attributes }), node),
  adding: {
    name: "rmsNormGradient",
    inPlace: 0,
    infer: ([sum]) => [like(sum!)],
    lower({ inputs: [, ...read], outputs, attributes }) {
      const sizes = { ...normSizes(read[0]!, read[1]!), ...attributes, accumulate: true };
      return bind(rmsNormBackward(sizes), [...read, ...outputs]);
    },
  },
};
const rmsNormWeightGradientOperator: Operator<RmsNormAttributes> = {
  name: "rmsNormWeightGradient",
  accumulates: true,
  infer: ([x]) => [f32(rowsAndColumns(x!.shape).columns)],
  lower: (node) => bindAll(rmsNormWeightGradient({ ...rowsOf(node.inputs[0]!), accumulate: accumulate(node) }), node),
};
export const rmsNorm = (x: Tensor, weight: Tensor, attributes: RmsNormAttributes): Tensor =>
  x.graph.apply(rmsNormOperator, [x, weight], attributes)[0]!;

const layerNormOperator: Operator<{ epsilon: number }> = {
  name: "layerNorm",
  infer(inputs) {
    const { rows } = normWidth("layerNorm weight", inputs);
    return [like(inputs[0]!), f32(rows), f32(rows)];
  },
  gradient(node, [dY]) {
    if (!dY) return [];
    const [x, weight] = node.inputs as [Tensor, Tensor], [, mean, inverse] = node.outputs as [Tensor, Tensor, Tensor];
    const [dX] = dY.graph.apply(layerNormInputGradient, [x, weight, mean, inverse, dY], {});
    const [dWeight, dBias] = dY.graph.apply(layerNormParameterGradient, [x, mean, inverse, dY], {});
    return [dX, dWeight, dBias];
  },
  lower: (node) =>
    bindAll(layerNormForward({ ...normSizes(node.inputs[0]!, node.inputs[1]!), ...node.attributes }), node),
};
const layerNormInputGradient: Operator<Record<never, never>> = {
  name: "layerNormGradient",
  infer: ([x]) => [like(x!)],
  lower: (node) => bindAll(layerNormBackward(normSizes(node.inputs[0]!, node.inputs[1]!)), node),
  adding: {
    name: "layerNormGradient",
    inPlace: 0,
    infer: ([sum]) => [like(sum!)],
    lower: ({ inputs: [, ...read], outputs }) =>
      bind(layerNormBackward({ ...normSizes(read[0]!, read[1]!), accumulate: true }), [...read, ...outputs]),
  },
};
const layerNormParameterGradient: Operator<Record<never, never>> = {
  name: "layerNormParameterGradient",
  infer([x]) {
    const { columns } = rowsAndColumns(x!.shape);
    return [f32(columns), f32(columns)];
  },
  lower: (node) => bindAll(layerNormWeightGradient({ ...rowsOf(node.inputs[0]!), accumulate: false }), node),
};
export const layerNorm = (x: Tensor, weight: Tensor, bias: Tensor, attributes: { epsilon: number }): Tensor =>
  x.graph.apply(layerNormOperator, [x, weight, bias], attributes)[0]!;

/** Rows of a weight scaled to length one (`norm_head`). */
const rowNormalizeOperator: Operator<Record<never, never>> = {
  name: "rowNormalize",
  infer: ([w]) => [like(w!), f32(w!.shape[0]!)],
  gradient: (node, [dY]) => dY ? dY.graph.apply(rowNormalizeGradient, [...node.outputs, dY], {}) : [],
  lower: (node) => bindAll(rowNormalizeForward(rowsOf(node.inputs[0]!)), node),
};
const rowNormalizeGradient: Operator<{ accumulate?: boolean }> = {
  name: "rowNormalizeGradient",
  accumulates: true,
  infer: ([y]) => [f32(...y!.shape)],
  lower(node) {
    const [y, , dY] = node.inputs as [Tensor, Tensor, Tensor];
    const sizes = { ...rowsOf(y), gradientType: storedAs(dY), accumulate: accumulate(node) };
    return bindAll(rowNormalizeBackward(sizes), node);
  },
};
export const rowNormalize = (weight: Tensor): Tensor => weight.graph.apply(rowNormalizeOperator, [weight], {})[0]!;

// --------------------------------------------------------------------------------------------- positions and attention

interface RotateAttributes {
  readonly heads: number;
  /** Pairs (2i, 2i+1) instead of (i, i + d/2). */
  readonly interleaved: boolean;
  readonly inverse?: boolean;
}
const rotateOperator: Operator<RotateAttributes> = {
  name: "rotate",
  infer: ([x]) => [like(x!)],
  gradient: (node, [dY]) => {
    if (!dY) return [];
    const inverse = !node.attributes.inverse;
    return dY.graph.apply(rotateOperator, [dY, ...node.inputs.slice(1)], { ...node.attributes, inverse });
  },
  lower(node) {
    const [x, , cosine] = node.inputs as [Tensor, Tensor, Tensor], [tokens, width] = x.shape as [number, number];
    const { heads, interleaved, inverse } = node.attributes as RotateAttributes;
    const sizes = { tokens, heads, headDim: width / heads, positionsLength: cosine.shape[0]! };
    const kernel = rotateKernel({ ...sizes, interleaved, inverse: !!inverse, type: storedAs(x) });
    return bindAll(kernel, node);
  },
};
/** Rotary embedding of x `[tokens, heads * d]` by tables cosine, sine `[positions, d/2]`. */
export const rotate = (
  x: Tensor,
  tables: { positions: Tensor; cosine: Tensor; sine: Tensor },
  attributes: RotateAttributes,
): Tensor => x.graph.apply(rotateOperator, [x, tables.positions, tables.cosine, tables.sine], attributes)[0]!;

interface AttentionAttributes {
  readonly heads: number;
  readonly kvHeads: number;
  /** Tokens of the longest segment that is to be expected. @default all */
  readonly longest?: number;
}
const attentionSizes = (node: Node) => {
  const [q] = node.inputs as [Tensor], [tokens, width] = q.shape as [number, number];
  const { heads, kvHeads, longest = tokens } = node.attributes as AttentionAttributes;
  return { tokens, heads, kvHeads, longest, headDim: width / heads, type: storedAs(q) };
};
const attentionOperator: Operator<AttentionAttributes> = {
  name: "attention",
  infer([q, k, v], { heads, kvHeads }) {
    const [tokens, width] = q!.shape as [number, number];
    requireShape("attention keys", k!.shape, [tokens, width / heads * kvHeads]);
    requireShape("attention values", v!.shape, k!.shape);
    return [like(q!), f32(tokens, heads)];
  },
  gradient(node, [dO]) {
    if (!dO) return [];
    const [q, k, v, start, end] = node.inputs as [Tensor, Tensor, Tensor, Tensor, Tensor];
    return dO.graph.apply(attentionGradient, [q, k, v, ...node.outputs, dO, start, end], node.attributes);
  },
  lower: (node) => bindAll(attentionForward(attentionSizes(node)), node),
};
const attentionGradient: Operator<AttentionAttributes> = {
  name: "attentionGradient",
  infer: ([q, k, v]) => [like(q!), like(k!), like(v!)],
  lower: (node) => bindAll(attentionBackward(attentionSizes(node)), node),
};
/** Causal grouped-query attention; a token sees its own segment up to itself. */
export const attention = (
  { q, k, v }: { q: Tensor; k: Tensor; v: Tensor },
  segments: { start: Tensor; end: Tensor },
  attributes: AttentionAttributes,
): Tensor => q.graph.apply(attentionOperator, [q, k, v, segments.start, segments.end], attributes)[0]!;

// ------------------------------------------------------------------------------------------------ vocabulary and loss

export interface EmbeddingAttributes {
  /** `embed_grad_scale`: the table's gradient is multiplied by it, the value is not. */
  readonly gradientScale: number;
  /** What is looked up is stored as. @default the table's type */
  readonly type?: FloatType;
  /** Id of the table's first row, where the table is a part of the whole: other ids give zeros. @default {0} */
  readonly firstRow?: number;
}
/** An input that the host fills with the tokens of another one by its ids (`groupTokens`), for the backward pass. */
const groupsName = (ids: string): string => `${ids} groups`;
/** The input whose tokens an input is to be filled with by id; `undefined` of all others. */
export const groupedInput = (name: string): string | undefined => /^(.+) groups$/.exec(name)?.[1];
function groupsOf({ graph, kind, name, shape }: Tensor): Tensor {
  if (kind !== "input") {
    throw new TypeError(
      "Cannot differentiate an embedding by ids that the model makes itself; those of an input would work",
    );
  }
  const known = graph.inputs.get(groupsName(name));
  return known ?? graph.input(groupsName(name), { shape: [groupsLength(elementCount(shape))], type: "u32" });
}
const embeddingSizes = (y: TensorType, table: TensorType, firstRow = 0) => {
  const [tokens] = y.shape as [number], [vocabulary, columns] = table.shape as [number, number];
  return { tokens, vocabulary, columns, firstRow };
};
const embeddingOperator: Operator<EmbeddingAttributes> = {
  name: "embedding",
  infer: ([ids, table], { type = storedAs(table!) }) => [typed(type, elementCount(ids!.shape), table!.shape[1]!)],
  gradient(node, [dY]) {
    if (!dY) return [];
    const { gradientScale, firstRow = 0 } = node.attributes as EmbeddingAttributes;
    const scaled = gradientScale === 1 ? dY : scale(dY, gradientScale);
    const [ids, table] = node.inputs as [Tensor, Tensor], { graph } = dY, inputs = [groupsOf(ids), scaled];
    if (table.kind === "parameter") {
      return [undefined, graph.apply(embeddingTableGradient, inputs, { shape: table.shape, firstRow })[0]];
    }
    const [zeros] = graph.apply(fillOperator, [], { shape: table.shape, value: 0 });
    return [undefined, graph.apply(addEmbeddingGradient, [zeros!, ...inputs], { firstRow })[0]];
  },
  lower(node) {
    const [, table] = node.inputs as [Tensor, Tensor], [y] = node.outputs as [Tensor];
    const types = { type: storedAs(y), tableType: storedAs(table) };
    return bindAll(embeddingForward({ ...embeddingSizes(y, table, node.attributes.firstRow), ...types }), node);
  },
};
/** Only adds (`embeddingGradient` touches no row that was not looked up): straight into a parameter's accumulator. */
const embeddingTableGradient: Operator<{ shape: readonly number[]; firstRow?: number; accumulate?: boolean }> = {
  name: "embeddingGradient",
  accumulates: true,
  infer: (_inputs, { shape }) => [f32(...shape)],
  lower(node) {
    if (!accumulate(node)) throw new TypeError("This gradient of an embedding must flow straight into a parameter");
    const [, dY] = node.inputs as [Tensor, Tensor];
    const sizes = embeddingSizes(dY, node.outputs[0]!, node.attributes.firstRow);
    return bindAll(embeddingGradient({ ...sizes, type: storedAs(dY) }), node);
  },
};
/** The same where the table is a value: into zeros made for it. */
const addEmbeddingGradient: Operator<{ firstRow?: number }> = {
  name: "embeddingGradient",
  inPlace: 0,
  infer: ([zeros]) => [f32(...zeros!.shape)],
  lower(node) {
    const [, groups, dY] = node.inputs as [Tensor, Tensor, Tensor], [dTable] = node.outputs as [Tensor];
    const sizes = { ...embeddingSizes(dY, dTable, node.attributes.firstRow), type: storedAs(dY) };
    return bind(embeddingGradient(sizes), [groups, dY, dTable]);
  },
};
const fillOperator: Operator<{ shape: readonly number[]; value: number }> = {
  name: "fill",
  infer: (_inputs, { shape }) => [f32(...shape)],
  lower: ({ attributes: { value }, outputs: [y] }) => bind(fill({ length: elementCount(y!.shape), value }), [y!]),
};
/** Rows of `table` `[vocabulary, columns]` by id. */
export const embedding = (ids: Tensor, table: Tensor, attributes: EmbeddingAttributes): Tensor =>
  ids.graph.apply(embeddingOperator, [ids, table], attributes)[0]!;

export interface CrossEntropyAttributes {
  readonly labelSmoothing: number;
  /** Of logits that are some columns of a larger vocabulary: see `VocabularyPart`. */
  readonly firstColumn?: number;
  readonly vocabulary?: number;
}
const crossEntropyOperator: Operator<CrossEntropyAttributes> = {
  name: "crossEntropy",
  root: true,
  infer: ([logits]) => {
    const rows = logits!.shape[0]!;
    return [f32(rows), f32(rows), f32(rows), { shape: [rows], type: "u32" }];
  },
  gradient(node) {
    const [logits, labels, weight] = node.inputs as [Tensor, Tensor, Tensor];
    const inputs = [logits, labels, node.outputs[2]!, weight];
    return logits.graph.apply(crossEntropyGradient, inputs, node.attributes);
  },
  lower(node) {
    const [logits, labels] = node.inputs as [Tensor, Tensor];
    const kernel = crossEntropyForward({ ...rowsOf(logits), ...node.attributes });
    return bind(kernel, [logits, labels, ...node.outputs]);
  },
};
export const crossEntropyGradient: Operator<CrossEntropyAttributes> = {
  name: "crossEntropyGradient",
  inPlace: 0,
  infer: ([logits]) => [like(logits!)],
  lower(node) {
    const kernel = crossEntropyBackward({ ...rowsOf(node.inputs[0]!), ...node.attributes });
    return bind(kernel, [node.outputs[0]!, ...node.inputs.slice(1)]);
  },
};

export interface LossOutputs {
  /** Loss of each row, smoothing included; 0 where the label is ignored. */
  readonly loss: Tensor;
  /** Plain negative log-likelihood of each row. */
  readonly nll: Tensor;
  /** 1 where the arg-max is the label. */
  readonly correct: Tensor;
}

/**
 * A root of differentiation: the gradient that flows back is `weight` times that of the sum of rows' losses, so the
 * caller's one number holds the mean over labels, the number of micro-batches and the loss scale.
 */
export function crossEntropy(
  { logits, labels, weight }: { logits: Tensor; labels: Tensor; weight: Tensor },
  attributes: CrossEntropyAttributes,
): LossOutputs {
  const [loss, nll, , correct] = logits.graph.apply(crossEntropyOperator, [logits, labels, weight], attributes);
  return { loss: loss!, nll: nll!, correct: correct! };
}

/** Five numbers of each row of logits; see `crossEntropyStatistics`. */
const statisticsOperator: Operator<{ firstColumn: number }> = {
  name: "crossEntropyStatistics",
  infer: ([logits]) => [f32(logits!.shape[0]!, statisticsPerRow)],
  lower(node) {
    const [logits] = node.inputs as [Tensor], sizes = { ...rowsAndColumns(logits.shape), type: storedAs(logits) };
    return bindAll(crossEntropyStatistics({ ...sizes, ...node.attributes }), node);
  },
};

export interface VocabularyCrossEntropyAttributes extends Required<CrossEntropyAttributes> {
  readonly parts: number;
}
/** The loss from the statistics of all ranks; its gradient is that of this rank's logits. */
const vocabularyCrossEntropyOperator: Operator<VocabularyCrossEntropyAttributes> = {
  name: "vocabularyCrossEntropy",
  root: true,
  infer: crossEntropyOperator.infer,
  gradient: (node, outputGradients) => crossEntropyOperator.gradient!(node, outputGradients),
  lower(node) {
    const [logits, labels, , statistics] = node.inputs as [Tensor, Tensor, Tensor, Tensor];
    const { parts, vocabulary, labelSmoothing } = node.attributes as VocabularyCrossEntropyAttributes;
    const kernel = crossEntropyMerge({ rows: logits.shape[0]!, parts, vocabulary, labelSmoothing });
    return bind(kernel, [statistics, labels, ...node.outputs]);
  },
};

/**
 * `crossEntropy` of logits whose columns are divided over the ranks of an axis: every rank has all rows and the same
 * results, and the gradient of its own columns.
 */
export function vocabularyCrossEntropy(
  { logits, labels, weight }: { logits: Tensor; labels: Tensor; weight: Tensor },
  { labelSmoothing, along }: { labelSmoothing: number; along: Along },
): readonly Tensor[] {
  const { graph } = logits, columns = logits.shape[1]!;
  const firstColumn = along.index * columns, vocabulary = along.size * columns;
  const [own] = graph.apply(statisticsOperator, [logits, labels], { firstColumn });
  const statistics = gather(own!, { ...along, dimension: 0 });
  const attributes = { labelSmoothing, firstColumn, vocabulary, parts: along.size };
  return graph.apply(vocabularyCrossEntropyOperator, [logits, labels, weight, statistics], attributes);
}

/** Adds a value into the accumulator of a parameter's gradient: made by differentiation, removed where a producer adds itself. */
export const accumulateInto: Operator<Record<never, never>> = {
  name: "accumulate",
  infer: () => [],
  lower: ({ inputs: [sum, value] }) => bind(addInPlace(additionOf(sum!, value!)), [sum!, value!]),
};
