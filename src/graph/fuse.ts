/**
 * Fewer passes over memory in a backward pass: what follows a producer, and only moves what it made, becomes part of it.
 */
import type { Node, Tensor } from "./graph.ts";
import { accumulateInto, addOperator } from "./operators.ts";

/** Who makes each tensor, by place in the list, and how many read it. */
function readersAndWriters(nodes: readonly Node[]) {
  const producers = new Map<Tensor, number>(), uses = new Map<Tensor, number>();
  nodes.forEach((node, index) => {
    node.outputs.forEach((output) => producers.set(output, index));
    node.inputs.forEach((input) => uses.set(input, (uses.get(input) ?? 0) + 1));
  });
  return { producers, uses };
}

/**
 * Lets whoever makes the later term of a sum add it to the earlier one, where the sum is that term's only reader: a
 * gradient that flows back along several paths is then written once a path, not once more a sum.
 *
 * @param kept tensors that are read after the list
 */
export function fuseSums(nodes: readonly Node[], kept: ReadonlySet<Tensor>): Node[] {
  const { producers, uses } = readersAndWriters(nodes), result: (Node | undefined)[] = [...nodes];
  nodes.forEach((node, index) => {
    if (node.operator !== addOperator) return;
    const [sum, term] = node.inputs as [Tensor, Tensor], at = producers.get(term);
    if (at === undefined || uses.get(term) !== 1 || kept.has(term) || sum.type !== term.type) return;
    const producer = result[at]!, { adding } = producer.operator;
    if (!adding || producer.outputs.length !== 1 || producer.attributes.accumulate === true) return;
    if ((producers.get(sum) ?? -1) >= at) return;
    result[at] = { ...producer, operator: adding, inputs: [sum, ...producer.inputs], outputs: node.outputs };
    result[index] = undefined;
    producers.set(node.outputs[0]!, at);
  });
  return result.filter((node) => node !== undefined);
}

/** Lets a producer that can accumulate write straight into the gradient, where the accumulator is its only reader. */
export function fuseAccumulators(nodes: readonly Node[]): Node[] {
  const { producers, uses } = readersAndWriters(nodes), result: (Node | undefined)[] = [...nodes];
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
