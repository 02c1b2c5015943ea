/**
 * Graphs of operators over symbolic tensors. A model is traced once, for one device, into a graph; the passes beside
 * this file rewrite it (sharding, differentiation, recomputation) and the planner lowers it to instructions.
 *
 * A graph is in single assignment form and its nodes stand in execution order, so a pass is a loop over a list.
 */
import type { FloatType } from "../../kernels/host.ts";
import type { ElementType, Kernel } from "../../kernels/kernel.ts";
import { elementBytes } from "../../kernels/kernel.ts";

export interface TensorType {
  readonly shape: readonly number[];
  readonly type: ElementType;
}

/**
 * What a model's tensors are stored as. Arithmetic is in `f32` whatever they are, and so are the gradients of parameters,
 * statistics of rows, losses, and the masters of parameters that the optimizer updates.
 */
export interface ModelTypes {
  /** Parameters as the passes read them, and activations. */
  readonly model: FloatType;
  /** Weights of norms. */
  readonly norm: FloatType;
  /** The stream between blocks. */
  readonly stream: FloatType;
  /** The head's weight, and the logits. */
  readonly head: FloatType;
  /** Products of `f32` tensors go through matrix units, where the device has any, each element in two parts. @default {false} */
  readonly split?: boolean;
  /** Products of `f16` tensors sum 32 terms in `f16`, where the device has no matrix units. @default {false} */
  readonly packed?: boolean;
}

const float32Types: ModelTypes = { model: "f32", norm: "f32", stream: "f32", head: "f32" };

/** How a parameter's full initial tensor is drawn; the stream is keyed by its name, so every layout starts the same. */
export type Initialization =
  | { readonly kind: "normal"; readonly std: number }
  | { readonly kind: "uniform"; readonly bound: number }
  | { readonly kind: "constant"; readonly value: number };

/**
 * Where a tensor comes from. `parameter`: lives through the run, has a gradient. `gradient`: the accumulator of a
 * parameter. `input`: uploaded for each micro-batch. `constant`: uploaded once. `value`: made by a node.
 */
export type TensorKind = "parameter" | "gradient" | "input" | "constant" | "value";

export interface Tensor extends TensorType {
  readonly graph: Graph;
  readonly id: number;
  readonly kind: TensorKind;
  /** Canonical name of a parameter, its gradient, an input or a constant; empty for values. */
  readonly name: string;
  /** Of some rows of a parameter or of its gradient: the first of them, in the whole. */
  readonly firstRow?: number;
  /** Of several parameters or gradients that lie side by side: the canonical names of all; `name` is that of the first. */
  readonly names?: readonly string[];
}

export interface Node {
  // deno-lint-ignore no-explicit-any -- attributes belong to the operator, which alone reads them
  readonly operator: Operator<any>;
  // deno-lint-ignore no-explicit-any -- see above
  readonly attributes: any;
  readonly inputs: readonly Tensor[];
  readonly outputs: readonly Tensor[];
  /** Decoder layer this node belongs to; the unit of recomputation and of pipeline stages. */
  readonly layer: number | undefined;
  /** Its outputs are not kept for the backward pass, which makes them again just before it needs them. */
  readonly transient?: boolean;
}

/** One kernel with the tensors it is bound to, in operand order; `undefined` stands for scratch. */
export interface Lowered {
  readonly kernel: Kernel;
  readonly operands: readonly (Tensor | undefined)[];
}

/**
 * The parts of a tensor that the ranks of an axis hold, one each: seen as `[outer, parts, inner]`, part i is all of
 * `[:, i, :]`. Counts are of elements.
 */
export interface Strips {
  readonly outer: number;
  readonly inner: number;
}

/**
 * Rows that go to the ranks of their experts, and back. On a rank of its tokens rows stand by expert, over all experts; on
 * a rank of its experts by its own experts, and for each of them by the rank that they come from.
 */
export interface Exchange {
  readonly direction: "to experts" | "from experts";
  /** Numbers in a row. */
  readonly columns: number;
  /** Rows that there is room for on a rank of experts. */
  readonly room: number;
}

/** What the ranks along an axis do together with their tensors: the node's input goes, its output comes. */
export interface Collective {
  readonly operator: "all-reduce" | "reduce-scatter" | "all-gather" | "all-to-all" | "exchange";
  readonly axis: string;
  /** Ranks along the axis, at least two. */
  readonly size: number;
  /** Of an all-reduce. @default {"sum"} */
  readonly reduction?: "sum" | "max";
  /** Parts of the input, one for each rank: of a reduce-scatter and an all-to-all. */
  readonly from?: Strips;
  /** Parts of the output, one from each rank: of an all-gather and an all-to-all. */
  readonly into?: Strips;
  /** Of an exchange, an all-to-all whose counts are data: the node's further inputs. */
  readonly exchange?: Exchange;
}

/**
 * What the engine must know of an operator: its shape rule, its gradient in terms of operators, and what does its work:
 * a kernel, or a collective. One that has neither is an identity: its output is its first input, and only its gradient
 * differs from doing nothing.
 *
 * @typeParam A attributes, fixed when the graph is traced
 */
export interface Operator<A> {
  readonly name: string;
  infer(inputs: readonly TensorType[], attributes: A): readonly TensorType[];
  /**
   * Gradients of the inputs, from those of the outputs (`undefined`: nothing flows). Absent: no gradient passes.
   * A root (a loss) is called with no output gradients.
   */
  gradient?(node: Node, outputGradients: readonly (Tensor | undefined)[]): readonly (Tensor | undefined)[];
  lower?(node: Node): Lowered;
  collective?(node: Node): Collective;
  /** The operator can add its first output into existing content: its attribute `accumulate` may be set. */
  readonly accumulates?: boolean;
  /** The operator that adds the same first output to one input more, which comes first, in its storage. */
  readonly adding?: Operator<A>;
  /** A loss: differentiation starts here. */
  readonly root?: boolean;
  /** Input whose storage the first output takes over; the planner copies the input first where it is still needed. */
  readonly inPlace?: number;
}

export const elementCount = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);
/** Bytes of a tensor, in whole words. */
export const tensorBytes = (tensor: TensorType): number =>
  Math.ceil(elementCount(tensor.shape) * elementBytes[tensor.type] / 4) * 4;
export const f32 = (...shape: number[]): TensorType => ({ shape, type: "f32" });

export class Graph {
  readonly nodes: Node[] = [];
  readonly parameters = new Map<string, { tensor: Tensor; initialization: Initialization }>();
  readonly inputs = new Map<string, Tensor>();
  readonly constants = new Map<string, { tensor: Tensor; data: Float32Array<ArrayBuffer> }>();
  /** Names of parameters that some node reads as one. */
  readonly joined: (readonly string[])[] = [];
  readonly #rows = new Map<string, Tensor>();
  #layer: number | undefined;
  #nextId = 0;

  constructor(readonly types: ModelTypes = float32Types) {}

  tensor(type: TensorType, kind: TensorKind, name = ""): Tensor {
    return { graph: this, id: this.#nextId++, kind, name, shape: type.shape, type: type.type };
  }

  /**
   * A parameter by canonical name, as the passes read it. Asking twice gives the same tensor: a tied parameter exists once.
   *
   * @param type what it is stored as for the passes; the model's type if left out
   */
  parameter(
    name: string,
    shape: readonly number[],
    initialization: Initialization,
    type: ElementType = this.types.model,
  ): Tensor {
    const known = this.parameters.get(name);
    if (known) {
      if (known.tensor.shape.join() !== shape.join()) {
        throw new TypeError(
          `Cannot share parameter ${name}: it has shape [${known.tensor.shape}], asked for [${shape}]`,
        );
      }
      return known.tensor;
    }
    const tensor = this.tensor({ shape, type }, "parameter", name);
    this.parameters.set(name, { tensor, initialization });
    return tensor;
  }

  /**
   * Some rows of a parameter or of its gradient, in their place: what reads them reads the parameter, and what is added to
   * them is added to its gradient. Asking twice gives the same tensor.
   */
  rows(whole: Tensor, firstRow: number, count: number): Tensor {
    const { kind, name, type, shape: [, ...inner] } = whole, key = `${kind} ${name} ${firstRow} ${count}`;
    const known = this.#rows.get(key);
    if (known) return known;
    const tensor = { ...this.tensor({ shape: [count, ...inner], type }, kind, name), firstRow };
    this.#rows.set(key, tensor);
    return tensor;
  }

  /**
   * Parameters, or their gradients, that lie one behind the other: rows of all of them, in their place. The planner keeps
   * them so.
   */
  sideBySide(parts: readonly Tensor[]): Tensor {
    const [{ kind, name, type, shape: [, ...inner] }] = parts as [Tensor], names = parts.map(({ name }) => name);
    const key = `${kind} ${names}`, known = this.#rows.get(key);
    if (known) return known;
    const rows = parts.reduce((sum, { shape }) => sum + shape[0]!, 0);
    const tensor = { ...this.tensor({ shape: [rows, ...inner], type }, kind, name), names };
    this.#rows.set(key, tensor);
    if (kind === "parameter") this.joined.push(names);
    return tensor;
  }

  input(name: string, type: TensorType): Tensor {
    if (this.inputs.has(name)) throw new TypeError(`Cannot declare input ${name} twice`);
    const tensor = this.tensor(type, "input", name);
    this.inputs.set(name, tensor);
    return tensor;
  }

  /** A tensor known when tracing, uploaded once; one of the same name is shared. */
  constant(name: string, shape: readonly number[], data: Float32Array<ArrayBuffer>): Tensor {
    const known = this.constants.get(name);
    if (known) return known.tensor;
    if (data.length !== elementCount(shape)) {
      throw new RangeError(`Cannot make constant ${name} of shape [${shape}] from ${data.length} numbers`);
    }
    const tensor = this.tensor({ shape, type: "f32" }, "constant", name);
    this.constants.set(name, { tensor, data });
    return tensor;
  }

  /** Appends a node and returns its outputs. */
  apply<A>(
    operator: Operator<A>,
    inputs: readonly Tensor[],
    attributes: A,
    { transient = false }: { readonly transient?: boolean } = {},
  ): Tensor[] {
    const outputs = operator.infer(inputs, attributes).map((type) => this.tensor(type, "value"));
    this.nodes.push({ operator, attributes, inputs, outputs, layer: this.#layer, ...(transient && { transient }) });
    return outputs;
  }

  /** Everything traced inside `body` belongs to decoder layer `layer`. */
  inLayer<T>(layer: number | undefined, body: () => T): T {
    const outer = this.#layer;
    this.#layer = layer;
    try {
      return body();
    } finally {
      this.#layer = outer;
    }
  }
}

/** The same parameter, rows of one, input or constant in another graph. */
export function copyLeaf(into: Graph, { graph, kind, name, firstRow, ...tensor }: Tensor): Tensor {
  switch (kind) {
    case "parameter": {
      const { tensor: { shape, type }, initialization } = graph.parameters.get(name)!;
      const whole = into.parameter(name, shape, initialization, type);
      return firstRow === undefined ? whole : into.rows(whole, firstRow, tensor.shape[0]!);
    }
    case "input":
      return into.inputs.get(name) ?? into.input(name, tensor);
    case "constant":
      return into.constant(name, tensor.shape, graph.constants.get(name)!.data);
    default:
      throw new TypeError(`Cannot copy a graph: a ${kind} [${tensor.shape}] is read before it is made`);
  }
}
