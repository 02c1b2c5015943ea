/**
 * Cuts a backward pass in two (Qi et al. 2023, "Zero Bubble Pipeline Parallelism"): what the gradients of the inputs take,
 * which the stage before waits for, and the rest, which ends in the gradients of weights and can be put off.
 */
import type { Node, Tensor } from "./graph.ts";

export interface SplitBackward {
  readonly input: readonly Node[];
  readonly weight: readonly Node[];
  /** Made by the first half and read by the second: kept with the micro-batch in between. */
  readonly between: ReadonlySet<Tensor>;
}

/** @param wanted gradients of inputs; with none, all is the second half */
export function splitBackward(nodes: readonly Node[], wanted: Iterable<Tensor>): SplitBackward {
  const needed = new Set(wanted), first = new Set<Node>();
  for (const node of nodes.toReversed()) {
    if (!node.outputs.some((output) => needed.has(output))) continue;
    first.add(node);
    node.inputs.forEach((input) => needed.add(input));
  }
  const input = nodes.filter((node) => first.has(node)), weight = nodes.filter((node) => !first.has(node));
  const made = new Set(input.flatMap(({ outputs }) => outputs));
  return { input, weight, between: new Set(weight.flatMap(({ inputs }) => inputs).filter((each) => made.has(each))) };
}
