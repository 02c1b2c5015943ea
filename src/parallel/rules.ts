/**
 * How each operator works on parts: how its inputs must be held, what it then makes, and what of its attributes changes.
 * An operator that has no rule works on whole tensors, all ranks alike.
 */
import { add, columns, linear, scale, vocabularyCrossEntropy } from "../graph/operators.ts";
import type { FloatType } from "../../kernels/host.ts";
import { elementCount, type Node, type Tensor } from "../graph/graph.ts";
import {
  balance,
  byToken,
  expertLinear,
  expertOffsets,
  fromExperts,
  fromRows,
  toExperts,
  toRows,
} from "./expert_rules.ts";
import { type Layout, replicated, split } from "./layout.ts";
import type { Part, Sharder, Use } from "./shard.ts";

/** @returns the node's outputs on this rank */
export type Rule = (node: Node, sharder: Sharder) => readonly Part[];

const tokens = split(0, "tensor"), features = split(1, "tensor");
const isSplit = (held: Layout, dimension: number) => held.kind === "split" && held.dimension === dimension;
const all = (tensors: readonly Tensor[], held: Layout): Part[] => tensors.map((tensor) => ({ tensor, held }));
/** What work by tokens takes: parts by tokens, or everything. */
const byTokens = (sharder: Sharder, tensor: Tensor): Layout => {
  const held = sharder.held(tensor);
  return isSplit(held, 1) ? sharder.stream : held;
};
/** Each rank with other tokens has a term of the gradient of what they share. */
const useUnder = (layout: Layout): Use => layout.kind === "split" ? "apart" : "alike";

const whole: Rule = (node, sharder) =>
  all(sharder.apply(node, node.inputs.map((input) => sharder.as(input, replicated()))), replicated());

/** Element by element: all inputs in the layout of the first one that is split. */
const elementwise: Rule = (node, sharder) => {
  const layout = node.inputs.map((input) => sharder.held(input)).find(({ kind }) => kind === "split") ?? replicated();
  return all(sharder.apply(node, node.inputs.map((input) => sharder.as(input, layout))), layout);
};

/** Row by row of a stream, with parameters that all rows share. */
const norm: Rule = (node, sharder) => {
  const [x, ...parameters] = node.inputs as [Tensor, ...Tensor[]], layout = byTokens(sharder, x);
  const shared = parameters.map((parameter) => sharder.as(parameter, replicated(), useUnder(layout)));
  return all(sharder.apply(node, [sharder.as(x, layout), ...shared]), layout);
};

const dropout: Rule = (node, sharder) => {
  const [x, counter] = node.inputs as [Tensor, Tensor], layout = byTokens(sharder, x), part = sharder.as(x, layout);
  const firstElement = layout.kind === "split" ? sharder.along("tensor").index * elementCount(part.shape) : 0;
  return all(sharder.apply(node, [part, sharder.as(counter, replicated())], { firstElement }), layout);
};

/** Megatron's linear layers, and those whose weight is here whole. */
const linearRule: Rule = (node, sharder) => {
  const { bias: hasBias, residual: hasResidual, weightGradientScale } = node.attributes;
  const [x, weight, ...rest] = node.inputs as [Tensor, Tensor, ...Tensor[]];
  const bias = hasBias ? rest[0]! : undefined, residual = hasResidual ? rest.at(-1)! : undefined;
  const held = sharder.held(weight);

  if (isSplit(held, 0)) { // column parallel: every rank makes some of the features
    const inputs = [sharder.as(x, replicated(), "apart"), sharder.as(weight, held)];
    if (bias) inputs.push(sharder.as(bias, tokens));
    if (residual) inputs.push(sharder.as(residual, features));
    return all(sharder.apply(node, inputs), features);
  }
  if (isSplit(held, 1)) { // row parallel: every rank has a term of the sum, and the bias its share
    const { ranks } = sharder, type = node.outputs[0]!.type as FloatType;
    const share = bias && scale(sharder.as(bias, replicated(), "apart"), 1 / ranks);
    const own = sharder.as(x, features), weights = sharder.as(weight, held);
    const term = linear(own, weights, { ...(share && { bias: share }), weightGradientScale, type });
    const sum = sharder.toStream(term, { kind: "term" });
    return [residual ? { ...sum, tensor: add(sum.tensor, sharder.as(residual, sum.held)) } : sum];
  }
  const layout = byTokens(sharder, x), use = useUnder(layout);
  const inputs = [sharder.as(x, layout), sharder.as(weight, replicated(), use)];
  if (bias) inputs.push(sharder.as(bias, replicated(), use));
  if (residual) inputs.push(sharder.as(residual, layout));
  return all(sharder.apply(node, inputs), layout);
};

/** Made of a parameter alone, it is used as one. */
const rowNormalize: Rule = (node, sharder) => {
  const [weight] = node.inputs as [Tensor], part = sharder.part(weight);
  if (isSplit(part.held, 1)) return whole(node, sharder);
  return sharder.apply(node, [part.tensor]).map((tensor) => ({ ...part, tensor }));
};

const rotate: Rule = (node, sharder) => {
  const [x, positions, ...tables] = node.inputs as [Tensor, Tensor, ...Tensor[]];
  // Where there are fewer heads than ranks, each rank has all of them.
  const byHeads = isSplit(sharder.held(x), 1) && node.attributes.heads % sharder.ranks === 0;
  const layout = byHeads ? features : byTokens(sharder, x);
  const changes = byHeads ? { heads: node.attributes.heads / sharder.ranks } : {};
  const placed = sharder.as(positions, isSplit(layout, 0) ? tokens : replicated());
  const inputs = [sharder.as(x, layout), placed, ...tables.map((table) => sharder.as(table, replicated()))];
  return all(sharder.apply(node, inputs, changes), layout);
};

/** Every rank has all tokens of some heads. */
const attention: Rule = (node, sharder) => {
  const [q, k, v, start, end] = node.inputs as [Tensor, Tensor, Tensor, Tensor, Tensor];
  if ([q, k, v].every((input) => sharder.held(input).kind === "replicated")) return whole(node, sharder);
  const { ranks } = sharder, { heads, kvHeads } = node.attributes;
  if (heads % ranks !== 0 || (kvHeads % ranks !== 0 && ranks % kvHeads !== 0)) {
    throw new RangeError(
      `Cannot divide attention over ${ranks} tensor-parallel ranks: ${heads} heads of queries and ${kvHeads} of keys are ` +
        `there; a multiple of ${ranks} and one that divides it, or is a multiple of it, would work`,
    );
  }
  /** Fewer heads than ranks: neighbours have the same one, and each a term of its gradient. */
  const shared = (input: Tensor) => {
    const width = input.shape[1]! / kvHeads, head = Math.floor(sharder.along("tensor").index * kvHeads / ranks);
    return columns(sharder.as(input, replicated(), "apart"), head * width, width);
  };
  const keys = kvHeads % ranks === 0 ? (input: Tensor) => sharder.as(input, features) : shared;
  const inputs = [
    sharder.as(q, features),
    keys(k),
    keys(v),
    ...[start, end].map((input) => sharder.as(input, replicated())),
  ];
  return all(sharder.apply(node, inputs, { heads: heads / ranks, kvHeads: Math.max(1, kvHeads / ranks) }), features);
};

const embedding: Rule = (node, sharder) => {
  const [ids, table] = node.inputs as [Tensor, Tensor], held = sharder.held(table);
  if (held.kind === "split") {
    const own = sharder.as(table, held),
      firstRow = isSplit(held, 0) ? sharder.along("tensor").index * own.shape[0]! : 0;
    const [tensor] = sharder.apply(node, [sharder.as(ids, replicated()), own], { firstRow });
    return [sharder.toStream(tensor!, isSplit(held, 0) ? { kind: "term" } : features)];
  }
  const layout = sharder.stream;
  return all(sharder.apply(node, [sharder.as(ids, layout), sharder.as(table, replicated(), useUnder(layout))]), layout);
};

const crossEntropy: Rule = (node, sharder) => {
  const [logits, labels, weight] = node.inputs as [Tensor, Tensor, Tensor], factor = sharder.as(weight, replicated());
  if (isSplit(sharder.held(logits), 1) && sharder.parallelOutput) {
    const inputs = { logits: sharder.as(logits, features), labels: sharder.as(labels, replicated()), weight: factor };
    const { labelSmoothing } = node.attributes;
    return all(vocabularyCrossEntropy(inputs, { labelSmoothing, along: sharder.along("tensor") }), replicated());
  }
  const layout = isSplit(sharder.held(logits), 0) ? tokens : replicated();
  return all(sharder.apply(node, [sharder.as(logits, layout), sharder.as(labels, layout), factor]), layout);
};

const rules: Readonly<Record<string, Rule>> = {
  add: elementwise,
  scale: elementwise,
  cast: elementwise,
  gate: elementwise,
  dropout,
  linear: linearRule,
  rmsNorm: norm,
  layerNorm: norm,
  rowNormalize,
  rotate,
  attention,
  embedding,
  crossEntropy,
  toExperts,
  fromExperts,
  expertOffsets,
  expertLinear,
  softmax: byToken,
  choose: byToken,
  dispatch: byToken,
  weigh: byToken,
  toRows,
  fromRows,
  balance,
};

export const ruleOf = (operator: string): Rule => rules[operator] ?? whole;
