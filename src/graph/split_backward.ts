/**
 * Cuts a backward pass in two (Qi et al. 2023, "Zero Bubble Pipeline Parallelism"): what the gradients of the inputs take,
 * which the stage before waits for, and the gradients of linear layers' weights, which can be put off.
 */
import type { Node, Tensor } from "./graph.ts";

export interface SplitBackward {
  readonly input: readonly Node[];
  readonly weight: readonly Node[];
  /** Made by the first half and read by the second: kept with the micro-batch in between. */
  readonly between: ReadonlySet<Tensor>;
}

/** Operators whose work is worth putting off: that of a linear layer's weight and bias. */
const isLinear = ({ operator: { name } }: Node) => /matmul|columnSum/i.test(name);

/**
 * What no gradient of an input needs is put off where it is a linear layer's, or follows from what is put off. The rest is
 * done at once, such as the gradients of norms: they are little work, and would have to keep what they read.
 *
 * @param wanted gradients of inputs; with none, as on a first stage, all is the second half
 */
export function splitBackward(nodes: readonly Node[], wanted: Iterable<Tensor>): SplitBackward {
  const needed = new Set(wanted);
  if (needed.size === 0) return { input: [], weight: nodes, between: new Set() };
  const needs = new Set<Node>();
  for (const node of nodes.toReversed()) {
    if (!node.outputs.some((output) => needed.has(output))) continue;
    needs.add(node);
    node.inputs.forEach((input) => needed.add(input));
  }
  const input: Node[] = [], weight: Node[] = [], late = new Set<Tensor>();
  for (const node of nodes) {
    const follows = node.inputs.some((each) => each.kind === "value" && late.has(each));
    if (needs.has(node) || !(isLinear(node) || follows)) input.push(node);
    else {
      weight.push(node);
      node.outputs.forEach((output) => late.add(output));
    }
  }
  const made = new Set(input.flatMap(({ outputs }) => outputs).filter(({ kind }) => kind === "value"));
  return { input, weight, between: new Set(weight.flatMap(({ inputs }) => inputs).filter((each) => made.has(each))) };
}
