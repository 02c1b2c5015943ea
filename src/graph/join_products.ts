/**
 * Products of one tensor with several weights become one product with the weights side by side, where these lie so in their
 * arena: query, key and value; gate and up. Fewer and larger products keep a device busier, and the gradient of what they
 * all read is one product, not a sum of several.
 *
 * It is a rewrite of a rank's own graph before it is differentiated. Parameters stay as they are, by name and shape; what
 * the product reads is a tensor over several of them, and what is added to it is added to their gradients. A layout that
 * has anything between the weights and the product (one that gathers them, say) stays as it is.
 *
 * `bf16` stays as it is too: a sum of gradients that is rounded once and not after each term is nearer to the exact one, but
 * farther from InternEvo's, which rounds each; a reference run ends with a bias whose norm is off by 1.2% then, 1% is allowed.
 * So do models of experts: which expert a token goes to hangs on last bits, and a reference run parts from its curve by 2.9e-4.
 */
import { joinHeads, splitHeads } from "../../kernels/rope/heads.ts";
import { type Activation, pairedGateBackward, pairedGateForward } from "../../kernels/gate/mod.ts";
import { bindAll, like, storedAs, typed } from "./bind.ts";
import { type Graph, type Node, type Operator, type Tensor, tensorBytes } from "./graph.ts";
import type { LinearAttributes } from "./operators.ts";

interface HeadsAttributes {
  readonly heads: number;
  readonly kvHeads: number;
  readonly interleaved: boolean;
}

const headsSizes = (
  { heads, kvHeads, interleaved }: HeadsAttributes,
  width: number,
  [x, cosine]: [Tensor, Tensor],
) => ({
  tokens: x.shape[0]!,
  heads,
  kvHeads,
  headDim: width / (heads + 2 * kvHeads),
  positionsLength: cosine.shape[0]!,
  interleaved,
  type: storedAs(x),
});

/** qkv `[T, (A + 2K) D]`, positions, cosine, sine → q `[T, A D]` and k `[T, K D]`, turned, and v. */
const splitHeadsOperator: Operator<HeadsAttributes> = {
  name: "splitHeads",
  infer([qkv], { heads, kvHeads }) {
    const [tokens, width] = qkv!.shape as [number, number], headDim = width / (heads + 2 * kvHeads);
    const part = (count: number) => typed(qkv!.type, tokens, count * headDim);
    return [part(heads), part(kvHeads), part(kvHeads)];
  },
  gradient(node, [dQ, dK, dV]) {
    if (!dQ || !dK || !dV) throw new TypeError("Cannot differentiate: no gradient reaches query, key or value");
    return [dQ.graph.apply(joinHeadsOperator, [dQ, dK, dV, ...node.inputs.slice(1)], node.attributes)[0]];
  },
  lower(node) {
    const [qkv, , cosine] = node.inputs as [Tensor, Tensor, Tensor];
    return bindAll(splitHeads(headsSizes(node.attributes, qkv.shape[1]!, [qkv, cosine])), node);
  },
};
const joinHeadsOperator: Operator<HeadsAttributes> = {
  name: "joinHeads",
  infer: ([q, k, v]) => [typed(q!.type, q!.shape[0]!, q!.shape[1]! + k!.shape[1]! + v!.shape[1]!)],
  lower(node) {
    const [q, , , , cosine] = node.inputs as [Tensor, Tensor, Tensor, Tensor, Tensor];
    return bindAll(joinHeads(headsSizes(node.attributes, node.outputs[0]!.shape[1]!, [q, cosine])), node);
  },
};

const halvesOf = (x: Tensor) => ({ rows: x.shape[0]!, columns: x.shape[1]! / 2, type: storedAs(x) });

/** `activation(x[:, :F]) · x[:, F:]` of x `[T, 2F]`. */
const pairedGateOperator: Operator<{ activation: Activation }> = {
  name: "pairedGate",
  infer: ([x]) => [typed(x!.type, x!.shape[0]!, x!.shape[1]! / 2)],
  gradient: (node, [dY]) => [dY && dY.graph.apply(pairedGateGradient, [node.inputs[0]!, dY], node.attributes)[0]],
  lower: (node) => bindAll(pairedGateForward({ ...halvesOf(node.inputs[0]!), ...node.attributes }), node),
};
const pairedGateGradient: Operator<{ activation: Activation }> = {
  name: "pairedGateGradient",
  infer: ([x]) => [like(x!)],
  lower: (node) => bindAll(pairedGateBackward({ ...halvesOf(node.inputs[0]!), ...node.attributes }), node),
};

/** Parameters of a layer that are read by products of one tensor, and what becomes of these products. */
interface Group {
  readonly linears: readonly Node[];
  /** What reads the products, and goes. */
  readonly readers: readonly Node[];
  readonly operator: Operator<never>;
  readonly attributes: unknown;
  /** Read by the new operator beside the product. */
  readonly besides: readonly Tensor[];
  /** What it makes in place of the readers and of products that are kept as they are. */
  readonly outputs: readonly Tensor[];
}

/** A product of a whole parameter, with nothing added. */
const isPlain = ({ operator: { name }, attributes, inputs: [, weight], outputs: [y], transient }: Node): boolean => {
  if (name !== "linear" || transient || y!.type === "bf16") return false;
  const { bias, residual } = attributes as LinearAttributes;
  return !bias && !residual && weight!.kind === "parameter" && weight!.firstRow === undefined;
};
const sameProduct = (a: Node, b: Node): boolean =>
  a.inputs[0] === b.inputs[0] && a.layer === b.layer && a.outputs[0]!.type === b.outputs[0]!.type &&
  a.inputs[1]!.type === b.inputs[1]!.type &&
  (a.attributes as LinearAttributes).weightGradientScale === (b.attributes as LinearAttributes).weightGradientScale;

/**
 * @param kept tensors that are read from outside of the graph
 * @param largest bytes of one binding
 * @param alignment where parameters may begin in their arena, in bytes
 */
export function joinProducts(
  graph: Graph,
  { kept, largest, alignment }: { kept: ReadonlySet<Tensor>; largest: number; alignment: number },
): void {
  if (graph.nodes.some(({ operator: { name } }) => name === "choose")) return;
  const { nodes } = graph, readers = new Map<Tensor, Node[]>(), made = new Set(nodes.flatMap(({ outputs }) => outputs));
  for (const node of nodes) {
    for (const input of new Set(node.inputs)) readers.set(input, [...readers.get(input) ?? [], node]);
  }
  const order = [...graph.parameters.keys()];
  /** Whether parameters follow each other in their arena without a gap, and can be bound together. */
  const areSideBySide = (weights: readonly Tensor[]): boolean =>
    weights.every(({ name, shape }, index) =>
      order[order.indexOf(weights[0]!.name) + index] === name &&
      (index === weights.length - 1 || 4 * shape[0]! * shape[1]! % alignment === 0)
    ) && weights.reduce((sum, { shape }) => sum + 4 * shape[0]! * shape[1]!, 0) <= largest;
  const onlyReader = ({ outputs: [output] }: Node): Node | undefined => {
    const all = readers.get(output!) ?? [];
    return all.length === 1 && !kept.has(output!) ? all[0] : undefined;
  };

  const groupAt = (index: number): Group | undefined => {
    const linears: Node[] = [];
    for (let at = index; at < nodes.length && linears.length < 3; at++) {
      if (!isPlain(nodes[at]!) || (linears.length > 0 && !sameProduct(linears[0]!, nodes[at]!))) break;
      linears.push(nodes[at]!);
    }
    const [first, second, third] = linears;
    if (!first || !second) return undefined;
    const one = onlyReader(first), two = onlyReader(second);
    if (!one || !two) return undefined;
    if (one === two && one.operator.name === "gate" && one.inputs[0] === first.outputs[0]) {
      return {
        linears: [first, second],
        readers: [one],
        operator: pairedGateOperator as Operator<never>,
        attributes: one.attributes,
        besides: [],
        outputs: one.outputs,
      };
    }
    const tables = one.inputs.slice(1);
    const turned = [one, two].every(({ operator: { name }, attributes, inputs }) =>
      name === "rotate" && !attributes.inverse && attributes.interleaved === one.attributes.interleaved &&
      inputs.slice(1).every((table, place) => table === tables[place] && !made.has(table))
    );
    if (!third || !turned || kept.has(third.outputs[0]!)) return undefined;
    const { heads, interleaved } = one.attributes, { heads: kvHeads } = two.attributes;
    const [q, k, v] = linears.map(({ outputs }) => outputs[0]!.shape[1]!);
    if (k !== v || q! * kvHeads !== k! * heads) return undefined;
    return {
      linears,
      readers: [one, two],
      operator: splitHeadsOperator as Operator<never>,
      attributes: { heads, kvHeads, interleaved },
      besides: tables,
      outputs: [one.outputs[0]!, two.outputs[0]!, third.outputs[0]!],
    };
  };

  const result: Node[] = [], gone = new Set<Node>();
  for (const [index, node] of nodes.entries()) {
    if (gone.has(node)) continue;
    const group = groupAt(index);
    if (!group) {
      result.push(node);
      continue;
    }
    const { linears, readers, operator, attributes, besides, outputs } = group, { layer } = node;
    const weights = linears.map(({ inputs }) => inputs[1]!), [x] = node.inputs as [Tensor];
    const width = linears.reduce((sum, { outputs: [output] }) => sum + output!.shape[1]!, 0);
    const type = { shape: [x.shape[0]!, width], type: node.outputs[0]!.type };
    if (!areSideBySide(weights) || tensorBytes(type) > largest) {
      result.push(node);
      continue;
    }
    const product = graph.tensor(type, "value");
    result.push({ ...node, inputs: [x, graph.sideBySide(weights)], outputs: [product] });
    result.push({ operator, attributes, inputs: [product, ...besides], outputs, layer });
    [...linears, ...readers].forEach((each) => gone.add(each));
  }
  nodes.splice(0, nodes.length, ...result);
}
