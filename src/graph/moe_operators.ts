/**
 * Operators of mixtures of experts. Shapes: T tokens, H features, E experts, k choices a token. Rows stand with their
 * experts in one of two ways: `[T k, H]`, the rows of each expert after those of the one before, as many as there are; or
 * `[E, C, H]`, with room for C rows at each.
 */
import { multiply as multiplyKernel } from "../../kernels/elementwise/mod.ts";
import { counterUniform } from "../../kernels/counter_uniform/mod.ts";
import { groupedMatmul, groupedOuter } from "../../kernels/grouped_matmul/mod.ts";
import { matmul } from "../../kernels/matmul/mod.ts";
import {
  capacityOf,
  dispatch as dispatchKernel,
  tableOffsets as tableOffsetsKernel,
} from "../../kernels/moe_dispatch/mod.ts";
import {
  fromRows as fromRowsKernel,
  rowWeightGradient,
  toRows as toRowsKernel,
} from "../../kernels/moe_permute/mod.ts";
import {
  balanceBackward,
  balanceForward,
  choose as chooseKernel,
  type Normalization,
  softmaxBackward,
  softmaxForward,
  weighBackward,
  weighForward,
} from "../../kernels/moe_router/mod.ts";
import { rowScaleBackward, rowScaleForward } from "../../kernels/row_scale/mod.ts";
import { accumulate, bind, bindAll, like, requireShape, rowsAndColumns, storedAs, typed } from "./bind.ts";
import type { Along } from "./collectives.ts";
import { elementCount, type Exchange, f32, type Node, type Operator, type Tensor, type TensorType } from "./graph.ts";

const u32 = (...shape: number[]): TensorType => ({ shape, type: "u32" });
type None = Record<never, never>;

// ------------------------------------------------------------------------------------------------------------ router

const softmaxOperator: Operator<None> = {
  name: "softmax",
  infer: ([x]) => [f32(...x!.shape)],
  gradient: (node, [dY]) => [dY && dY.graph.apply(softmaxGradient, [node.outputs[0]!, dY], {})[0]],
  lower: (node) => bindAll(softmaxForward(rowsAndColumns(node.inputs[0]!.shape)), node),
};
const softmaxGradient: Operator<None> = {
  name: "softmaxGradient",
  infer: ([y]) => [f32(...y!.shape)],
  lower: (node) => bindAll(softmaxBackward(rowsAndColumns(node.inputs[0]!.shape)), node),
};
/** Softmax of short rows, in `f32`. */
export const softmax = (x: Tensor): Tensor => x.graph.apply(softmaxOperator, [x], {})[0]!;

interface ChooseAttributes {
  readonly choices: number;
  readonly noiseFrom?: number;
}
const chooseOperator: Operator<ChooseAttributes> = {
  name: "choose",
  infer: ([logits], { choices }) => [u32(logits!.shape[0]!, choices)],
  lower(node) {
    const [tokens, experts] = node.inputs[0]!.shape as [number, number];
    return bindAll(chooseKernel({ tokens, experts, ...node.attributes as ChooseAttributes }), node);
  },
};
/**
 * The `choices` experts `[T, k]` of highest logit of each token. With `noise` `[T, E]`, numbers in (0, 1), choices from
 * `noiseFrom` on are drawn.
 */
export const choose = (
  logits: Tensor,
  { choices, noise, noiseFrom = 0 }: { choices: number; noise?: Tensor | undefined; noiseFrom?: number },
): Tensor =>
  logits.graph.apply(chooseOperator, noise ? [logits, noise] : [logits], {
    choices,
    ...(noise ? { noiseFrom } : {}),
  })[0]!;

/** Room of each expert: `factor` even shares of the tokens, `least` rows at least. */
export interface Room {
  readonly factor: number;
  readonly least: number;
}
interface DispatchAttributes {
  readonly experts: number;
  readonly room?: Room;
  readonly order: "token" | "choice";
  readonly byPriority: boolean;
}
const dispatchOperator: Operator<DispatchAttributes> = {
  name: "dispatch",
  infer([choice], { experts, room }) {
    const tokens = choice!.shape[0]!;
    const rows = room ? [experts, capacityOf({ tokens, experts, ...room })] : [elementCount(choice!.shape)];
    return [like(choice!), u32(...rows), u32(experts), u32(experts + 1)];
  },
  lower(node) {
    const [tokens, choices] = node.inputs[0]!.shape as [number, number];
    const { experts, room, order, byPriority } = node.attributes as DispatchAttributes;
    const capacity = room ? { capacity: capacityOf({ tokens, experts, ...room }) } : {};
    return bindAll(dispatchKernel({ tokens, choices, experts, order, byPriority, ...capacity }), node);
  },
};

/** Where tokens stand with their experts. */
export interface Places {
  /** Row of each choice `[T, k]`. */
  readonly slot: Tensor;
  /** Choice in each row: `[T k]` or `[E, C]`. */
  readonly row: Tensor;
  /** Choices of each expert, before any was dropped `[E]`. */
  readonly count: Tensor;
  /** First row of each expert, and one past the last `[E + 1]`. */
  readonly offset: Tensor;
}
/** Sorts choices `[T, k]` by expert; with `room`, drops those that find no room: of lowest `priority` `[T, E]`, or last. */
export function dispatch(
  choice: Tensor,
  { experts, room, order, priority }: {
    experts: number;
    room?: Room | undefined;
    order: "token" | "choice";
    priority?: Tensor | undefined;
  },
): Places {
  const [slot, row, count, offset] = choice.graph.apply(dispatchOperator, priority ? [choice, priority] : [choice], {
    experts,
    order,
    byPriority: priority !== undefined,
    ...(room && { room }),
  }) as [Tensor, Tensor, Tensor, Tensor];
  return { slot, row, count, offset };
}

interface WeighAttributes {
  readonly normalize: Normalization;
}
const weighSizes = ({ inputs: [probability, choice], attributes: { normalize } }: Node) => {
  const [tokens, experts] = probability!.shape as [number, number], choices = choice!.shape[1]!;
  return { tokens, experts, choices, normalize: normalize as Normalization };
};
const weighOperator: Operator<WeighAttributes> = {
  name: "weigh",
  infer: ([, choice]) => [f32(...choice!.shape)],
  gradient: (node, [dY]) => [dY && dY.graph.apply(weighGradient, [...node.inputs, dY], node.attributes)[0]],
  lower: (node) => bindAll(weighForward(weighSizes(node)), node),
};
const weighGradient: Operator<WeighAttributes> = {
  name: "weighGradient",
  infer: ([probability]) => [like(probability!)],
  lower: (node) => bindAll(weighBackward(weighSizes(node)), node),
};
/** What each choice counts in its token's output `[T, k]`. */
export const weigh = (
  { probability, choice, slot }: { probability: Tensor; choice: Tensor; slot: Tensor },
  attributes: WeighAttributes,
): Tensor => probability.graph.apply(weighOperator, [probability, choice, slot], attributes)[0]!;

interface BalanceAttributes {
  readonly counted: number;
}
const balanceOperator: Operator<BalanceAttributes> = {
  name: "balance",
  root: true,
  infer: ([probability]) => [f32(1), f32(probability!.shape[1]!)],
  gradient(node) {
    const [probability, choice, weight] = node.inputs as [Tensor, Tensor, Tensor];
    return probability.graph.apply(balanceGradient, [node.outputs[1]!, weight, choice], node.attributes);
  },
  lower(node) {
    const [probability, choice] = node.inputs as [Tensor, Tensor];
    const kernel = balanceForward({ ...balanceSizes(choice, probability.shape[1]!), ...node.attributes });
    return bind(kernel, [probability, choice, ...node.outputs]);
  },
};
const balanceSizes = ({ shape: [tokens, choices] }: Tensor, experts: number) => (
  { tokens: tokens!, choices: choices!, experts }
);
/** The choices are there for their shape alone. */
const balanceGradient: Operator<BalanceAttributes> = {
  name: "balanceGradient",
  infer: ([load, , choice]) => [f32(choice!.shape[0]!, load!.shape[0]!)],
  lower(node) {
    const [load, weight, choice] = node.inputs as [Tensor, Tensor, Tensor];
    const kernel = balanceBackward({ ...balanceSizes(choice, load.shape[0]!), ...node.attributes });
    return bind(kernel, [load, weight, ...node.outputs]);
  },
};
/** How unevenly experts are used `[1]`: a root of differentiation, whose gradient is `weight` `[1]` times its own. */
export const balance = (
  { probability, choice, weight }: { probability: Tensor; choice: Tensor; weight: Tensor },
  attributes: BalanceAttributes,
): Tensor => probability.graph.apply(balanceOperator, [probability, choice, weight], attributes)[0]!;

// -------------------------------------------------------------------------------------------- to the experts and back

const permuteSizes = (row: Tensor, slot: Tensor, x: Tensor) => {
  const [tokens, choices] = slot.shape as [number, number];
  return { tokens, choices, rows: elementCount(row.shape), columns: x.shape.at(-1)!, type: storedAs(x) };
};
const toRowsOperator: Operator<None> = {
  name: "toRows",
  infer: ([x, row]) => [typed(x!.type, ...row!.shape, x!.shape[1]!)],
  gradient(node, [dY]) {
    const [, row, slot] = node.inputs as [Tensor, Tensor, Tensor];
    return [dY && dY.graph.apply(sumRows, [dY, slot, row], {})[0]];
  },
  lower(node) {
    const [x, row, slot] = node.inputs as [Tensor, Tensor, Tensor];
    return bind(toRowsKernel(permuteSizes(row, slot, x)), [x, row, ...node.outputs]);
  },
};
/** Gradient of `toRows`: the sum over a token's choices. */
const sumRows: Operator<None> = {
  name: "sumRows",
  infer: ([x, slot]) => [typed(x!.type, slot!.shape[0]!, x!.shape.at(-1)!)],
  lower(node) {
    const [x, slot, row] = node.inputs as [Tensor, Tensor, Tensor];
    return bind(fromRowsKernel(permuteSizes(row, slot, x)), [x, slot, ...node.outputs]);
  },
};
/** Tokens `[T, H]` in the rows of their experts, `[T k, H]` or `[E, C, H]`. */
export const toRows = (x: Tensor, { row, slot }: Places): Tensor =>
  x.graph.apply(toRowsOperator, [x, row, slot], {})[0]!;

const fromRowsOperator: Operator<None> = {
  name: "fromRows",
  infer: ([x, , slot]) => [typed(x!.type, slot!.shape[0]!, x!.shape.at(-1)!)],
  gradient(node, [dY]) {
    if (!dY) return [];
    const [x, row, slot, weight] = node.inputs as [Tensor, Tensor, Tensor, Tensor];
    const [dX] = dY.graph.apply(weightedRows, [dY, row, slot, weight], {});
    const [dWeight] = dY.graph.apply(fromRowsWeightGradient, [x, row, slot, dY], {});
    return [dX, undefined, undefined, dWeight];
  },
  lower(node) {
    const [x, row, slot, weight] = node.inputs as [Tensor, Tensor, Tensor, Tensor];
    const kernel = fromRowsKernel({ ...permuteSizes(row, slot, x), weighted: true });
    return bind(kernel, [x, slot, weight, ...node.outputs]);
  },
};
const weightedRows: Operator<None> = {
  name: "weightedRows",
  infer: ([dY, row]) => [typed(dY!.type, ...row!.shape, dY!.shape[1]!)],
  lower(node) {
    const [dY, row, slot, weight] = node.inputs as [Tensor, Tensor, Tensor, Tensor];
    const kernel = toRowsKernel({ ...permuteSizes(row, slot, dY), weighted: true });
    return bind(kernel, [dY, row, weight, ...node.outputs]);
  },
};
const fromRowsWeightGradient: Operator<None> = {
  name: "fromRowsWeightGradient",
  infer: ([, , slot]) => [f32(...slot!.shape)],
  lower(node) {
    const [x, row, slot, dY] = node.inputs as [Tensor, Tensor, Tensor, Tensor];
    return bind(rowWeightGradient(permuteSizes(row, slot, x)), [x, slot, dY, ...node.outputs]);
  },
};
/** Sums of the rows of each token's choices, weighted by `[T, k]`: `[T, H]`. */
export const fromRows = (x: Tensor, { row, slot }: Places, weight: Tensor): Tensor =>
  x.graph.apply(fromRowsOperator, [x, row, slot, weight], {})[0]!;

/**
 * Where work passes to the experts and comes back from them. On one device all three do nothing; where experts are divided
 * over ranks, sharding puts an exchange in their places.
 */
const identity = (name: string): Operator<BoundaryAttributes> => ({
  name,
  infer: ([x]) => [like(x!)],
  gradient: (_node, [dY]) => [dY],
});
/** What sharding must know: choices a token, and whether every expert has the same room. */
export interface BoundaryAttributes {
  readonly choices: number;
  readonly apart: boolean;
}
const boundary = ({ slot, row }: Places): BoundaryAttributes => (
  { choices: slot.shape[1]!, apart: row.shape.length === 2 }
);
const toExpertsOperator = identity("toExperts"), fromExpertsOperator = identity("fromExperts");
const expertOffsetsOperator = identity("expertOffsets");
/** Rows for the experts of this rank. */
export const toExperts = (x: Tensor, places: Places): Tensor =>
  x.graph.apply(toExpertsOperator, [x, places.count], boundary(places))[0]!;
/** First rows of the experts of this rank. */
export const expertOffsets = (places: Places): Tensor =>
  places.offset.graph.apply(expertOffsetsOperator, [places.offset, places.count], boundary(places))[0]!;
/** Rows of this rank's tokens. */
export const fromExperts = (x: Tensor, places: Places): Tensor =>
  x.graph.apply(fromExpertsOperator, [x, places.count], boundary(places))[0]!;

// ----------------------------------------------------------------------------------------------------------- experts

/** Sizes of a layer of all experts: rows (of each expert where it has room of its own), and what they are stored as. */
const expertSizes = (x: Tensor, weight: Tensor) => {
  const [groups, out, inside] = weight.shape as [number, number, number];
  return { groups, out, inside, rows: x.shape.at(-2)!, apart: x.shape.length === 3 };
};
const expertLinearOperator: Operator<None> = {
  name: "expertLinear",
  infer([x, weight]) {
    requireShape("expertLinear", [x!.shape.at(-1)!], [weight!.shape[2]!]);
    if (x!.shape.length === 3) requireShape("expertLinear", [x!.shape[0]!], [weight!.shape[0]!]);
    return [typed(x!.type, ...x!.shape.slice(0, -1), weight!.shape[1]!)];
  },
  gradient(node, [dY]) {
    if (!dY) return [];
    const [x, weight, offset] = node.inputs as [Tensor, Tensor, Tensor];
    const [dX] = dY.graph.apply(expertInputGradient, [dY, weight, offset], { type: x.type });
    const [dWeight] = dY.graph.apply(expertWeightGradient, [dY, x, offset], { experts: weight.shape[0]! });
    return [dX, dWeight];
  },
  lower(node) {
    const [x, weight, offset] = node.inputs as [Tensor, Tensor, Tensor], [y] = node.outputs as [Tensor];
    const { groups, out: n, inside: k, rows, apart } = expertSizes(x, weight);
    const types = { a: storedAs(x), b: storedAs(weight), c: storedAs(y) };
    if (apart) return bind(matmul({ batch: groups, m: rows, n, k, transposeB: true, types }), [x, weight, y]);
    return bind(groupedMatmul({ rows, groups, n, k, transposeB: true, types }), [x, weight, offset, y]);
  },
};
const expertInputGradient: Operator<{ type: TensorType["type"] }> = {
  name: "expertInputGradient",
  infer: ([dY, weight], { type }) => [typed(type, ...dY!.shape.slice(0, -1), weight!.shape[2]!)],
  lower(node) {
    const [dY, weight, offset] = node.inputs as [Tensor, Tensor, Tensor], [dX] = node.outputs as [Tensor];
    const { groups, out: k, inside: n, rows, apart } = expertSizes(dY, weight);
    const types = { a: storedAs(dY), b: storedAs(weight), c: storedAs(dX) };
    if (apart) return bind(matmul({ batch: groups, m: rows, n, k, types }), [dY, weight, dX]);
    return bind(groupedMatmul({ rows, groups, n, k, types }), [dY, weight, offset, dX]);
  },
};
const expertWeightGradient: Operator<{ experts: number; accumulate?: boolean }> = {
  name: "expertWeightGradient",
  accumulates: true,
  infer: ([dY, x], { experts }) => [f32(experts, dY!.shape.at(-1)!, x!.shape.at(-1)!)],
  lower(node) {
    const [dY, x, offset] = node.inputs as [Tensor, Tensor, Tensor], [dWeight] = node.outputs as [Tensor];
    const { groups, out: n, inside: k, rows, apart } = expertSizes(x, dWeight);
    const types = { a: storedAs(dY), b: storedAs(x), c: "f32" } as const, adds = accumulate(node);
    if (apart) {
      const kernel = matmul({ batch: groups, m: n, n: k, k: rows, transposeA: true, accumulate: adds, types });
      return bind(kernel, [dY, x, dWeight]);
    }
    return bind(groupedOuter({ rows, groups, n, k, accumulate: adds, types }), [dY, x, offset, dWeight]);
  },
};
/** `y = x W_eᵀ` for the rows x of each expert e: W `[E, out, in]`. */
export const expertLinear = (x: Tensor, weight: Tensor, offset: Tensor): Tensor =>
  x.graph.apply(expertLinearOperator, [x, weight, offset], {})[0]!;

// ----------------------------------------------------------------------------------------------- shared experts, noise

interface RowScaleAttributes {
  readonly way: number;
  readonly sigmoid: boolean;
}
const rowScaleSizes = ({ inputs: [x, factor], attributes }: Node) => ({
  ...rowsAndColumns(x!.shape),
  ways: factor!.shape[1]!,
  type: storedAs(x!),
  ...attributes as RowScaleAttributes,
});
const rowScaleOperator: Operator<RowScaleAttributes> = {
  name: "rowScale",
  infer: ([x]) => [like(x!)],
  gradient: (node, [dY]) => dY ? dY.graph.apply(rowScaleGradient, [...node.inputs, dY], node.attributes) : [],
  lower: (node) => bindAll(rowScaleForward(rowScaleSizes(node)), node),
};
const rowScaleGradient: Operator<RowScaleAttributes> = {
  name: "rowScaleGradient",
  infer: ([x, factor]) => [like(x!), like(factor!)],
  lower: (node) => bindAll(rowScaleBackward(rowScaleSizes(node)), node),
};
/** Each row of x `[T, H]` times its number in column `way` of factor `[T, ways]`, or the logistic function of it. */
export const rowScale = (x: Tensor, factor: Tensor, attributes: RowScaleAttributes): Tensor =>
  x.graph.apply(rowScaleOperator, [x, factor], attributes)[0]!;

interface UniformAttributes {
  readonly shape: readonly number[];
  readonly stream: number;
  readonly low?: number;
  readonly high?: number;
}
const uniformOperator: Operator<UniformAttributes> = {
  name: "uniform",
  infer: (_inputs, { shape }) => [f32(...shape)],
  lower(node) {
    const { shape, ...options } = node.attributes as UniformAttributes;
    return bindAll(counterUniform({ length: elementCount(shape), ...options }), node);
  },
};
/** Random numbers of an interval, keyed by a counter: never stored, and the same in every replay. */
export const uniform = (counter: Tensor, attributes: UniformAttributes): Tensor =>
  counter.graph.apply(uniformOperator, [counter], attributes)[0]!;

const jitterOperator: Operator<None> = {
  name: "jitter",
  infer: ([x]) => [like(x!)],
  gradient: (node, [dY]) => [dY && jitter(dY, node.inputs[1]!)],
  lower: (node) => {
    const [x, factor] = node.inputs as [Tensor, Tensor];
    const kernel = multiplyKernel({ length: elementCount(x.shape), type: storedAs(x), factorType: storedAs(factor) });
    return bindAll(kernel, node);
  },
};
/** x times factors that are given, element by element. */
export const jitter = (x: Tensor, factor: Tensor): Tensor => x.graph.apply(jitterOperator, [x, factor], {})[0]!;

// ------------------------------------------------------------------------------------------- experts on other ranks

interface ExchangeCountsAttributes {
  readonly axis: string;
  readonly size: number;
}
const exchangeCountsOperator: Operator<ExchangeCountsAttributes> = {
  name: "exchangeCounts",
  infer: ([count], { size }) => [u32(size, count!.shape[0]! / size)],
  collective({ attributes: { axis, size }, inputs: [count] }) {
    const strips = { outer: 1, inner: count!.shape[0]! / size };
    return { operator: "all-to-all", axis, size, from: strips, into: strips };
  },
};
/** From choices of each expert `[E]` by this rank's tokens to those of this rank's experts by each rank `[ranks, E / ranks]`. */
export const exchangeCounts = (count: Tensor, { axis, size }: Along): Tensor =>
  count.graph.apply(exchangeCountsOperator, [count], { axis, size })[0]!;

const tableOffsetsOperator: Operator<None> = {
  name: "tableOffsets",
  infer: ([table]) => [u32(table!.shape[1]! + 1)],
  lower(node) {
    const [sources, experts] = node.inputs[0]!.shape as [number, number];
    return bindAll(tableOffsetsKernel({ sources, experts }), node);
  },
};
/** First rows of this rank's experts, from the table of what comes to them. */
export const tableOffsets = (table: Tensor): Tensor => table.graph.apply(tableOffsetsOperator, [table], {})[0]!;

interface ExchangeAttributes extends ExchangeCountsAttributes {
  readonly direction: Exchange["direction"];
  /** Rows on a rank of tokens, and most on a rank of experts. */
  readonly rows: number;
  readonly room: number;
}
const exchangeOperator: Operator<ExchangeAttributes> = {
  name: "exchange",
  infer: ([x], { direction, rows, room }) => [typed(x!.type, direction === "to experts" ? room : rows, x!.shape[1]!)],
  gradient(node, [dY]) {
    if (!dY) return [];
    const attributes = node.attributes as ExchangeAttributes;
    const direction = attributes.direction === "to experts" ? "from experts" : "to experts";
    return dY.graph.apply(exchangeOperator, [dY, ...node.inputs.slice(1)], { ...attributes, direction });
  },
  collective({ attributes: { axis, size, direction, room }, inputs: [x] }) {
    return { operator: "exchange", axis, size, exchange: { direction, room, columns: x!.shape[1]! } };
  },
};
/** Rows to the ranks of their experts, or back to those of their tokens. What no row fills holds nothing of meaning. */
export const exchange = (
  x: Tensor,
  { count, table }: { count: Tensor; table: Tensor },
  attributes: ExchangeAttributes,
): Tensor => x.graph.apply(exchangeOperator, [x, count, table], attributes)[0]!;
