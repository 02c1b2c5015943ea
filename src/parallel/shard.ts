/**
 * The sharding pass: from a graph written for one device to the one that this rank runs. Every node is traced anew with
 * the parts that this rank holds; where a tensor is not as its reader needs it, a collective is put before the reader.
 * What readers need, and what they make, is told by operator in `rules.ts`; what the stream between blocks is, by the
 * tensor mode. With every axis of size one the graph stays as it is.
 */
import {
  allGather,
  allReduce,
  allToAll,
  type Along,
  gather,
  reduceScatter,
  replicate,
  split as splitTensor,
} from "../graph/collectives.ts";
import { shareGradient } from "../graph/operators.ts";
import { Graph, type Node, type Tensor } from "../graph/graph.ts";
import {
  type Box,
  boxOf,
  divisions,
  type Layout,
  layoutOf,
  replicated,
  type ShardingPlan,
  split,
  without,
} from "./layout.ts";
import type { Axis, Mesh } from "./mesh.ts";
import { type TensorMode, tensorMode, type TensorModeName } from "./modes.ts";
import { ruleOf } from "./rules.ts";

/** A tensor of the global graph on this rank. */
export interface Part {
  readonly tensor: Tensor;
  readonly held: Layout;
  /** The parameter that it is, or is made of alone. */
  readonly parameter?: string;
}

/** What a rank may have made: a part, or a term of a sum over the tensor group, which is summed at once. */
export type Made = Layout | { readonly kind: "term" };

/** `alike`: all ranks do the same with it. `apart`: each does its part of the work, and has a term of the gradient. */
export type Use = "alike" | "apart";

/** Tokens `first` up to `first + count` of an input of the global graph. */
export interface InputPart {
  readonly of: string;
  readonly first: number;
  readonly count: number;
}

export interface Sharded {
  readonly graph: Graph;
  /** What this rank holds of each parameter, by canonical name. */
  readonly boxes: ReadonlyMap<string, Box>;
  readonly layouts: ReadonlyMap<string, Layout>;
  /** A value of the global graph on this rank. */
  part(tensor: Tensor): Part;
  /** Inputs of this rank's graph that are part of one of the global graph, by name. */
  readonly inputs: ReadonlyMap<string, InputPart>;
  /** Parameters that are whole here while each rank has a term of their gradient: to be summed over `mode.sumsOver`. */
  readonly summed: ReadonlySet<string>;
  readonly mode: TensorMode;
}

export interface ShardOptions {
  readonly sharding: ShardingPlan;
  readonly mesh: Mesh;
  /** @default {"mtp"} */
  readonly mode?: TensorModeName;
  /** Shard parameters over data-parallel ranks too, the weight groups. @default {false} */
  readonly fsdp?: boolean;
  /** Leave logits divided by vocabulary for the loss, instead of gathering them. @default {true} */
  readonly parallelOutput?: boolean;
  /** Room for rows on a rank of experts, as a multiple of an even share; null for all that can come. @default {null} */
  readonly loadBound?: number | null;
}

/** Ranks along an axis do not divide a dimension of a parameter that is split over them. */
export class UnevenSplit extends RangeError {
  override readonly name = "UnevenSplit";

  /** @param common what divides every dimension that is split over the axis */
  constructor(
    message: string,
    readonly parameter: string,
    readonly axis: Axis,
    readonly whole: number,
    readonly common: number,
  ) {
    super(message);
  }
}

const commonDivisor = (a: number, b: number): number => b === 0 ? a : commonDivisor(b, a % b);

/** @throws {UnevenSplit} for a dimension that its axis does not divide */
function requireEven(
  parameters: ReadonlyMap<string, readonly number[]>,
  layouts: ReadonlyMap<string, Layout>,
  mesh: Mesh,
) {
  let uneven: { name: string; axis: Axis; whole: number; dimension: number } | undefined;
  const common = new Map<Axis, number>();
  for (const [name, shape] of parameters) {
    const extent = [...shape];
    for (const { dimension, axis } of divisions(layouts.get(name)!)) {
      const whole = extent[dimension]!;
      common.set(axis, commonDivisor(whole, common.get(axis) ?? 0));
      extent[dimension] = whole / mesh.size(axis);
      if (Number.isInteger(extent[dimension])) continue;
      uneven ??= { name, axis, whole, dimension };
      break;
    }
  }
  if (!uneven) return;
  const { name, axis, whole, dimension } = uneven;
  throw new UnevenSplit(
    `Parameter ${name}: Cannot split dimension ${dimension} of [${parameters.get(name)}] over ${axis}: ` +
      `${whole} is no multiple of ${mesh.size(axis)}`,
    name,
    axis,
    whole,
    common.get(axis)!,
  );
}

/** @throws {UnevenSplit} for a dimension that its axis does not divide */
export function shard(
  graph: Graph,
  { sharding, mesh, mode: name = "mtp", fsdp = false, parallelOutput = true, loadBound = null }: ShardOptions,
): Sharded {
  const mode = tensorMode(name, { fsdp }), layouts = new Map<string, Layout>(), boxes = new Map<string, Box>();
  const shapes = new Map([...graph.parameters].map(([name, { tensor }]) => [name, tensor.shape]));
  const declared = new Map([...shapes.keys()].map((name) => [name, mode.parameter(layoutOf(name, sharding))]));
  requireEven(shapes, declared, mesh);
  for (const [name, layout] of declared) {
    layouts.set(name, without(layout, ({ axis }) => axis !== "expert" && mesh.size(axis) === 1));
    boxes.set(name, boxOf(shapes.get(name)!, layout, mesh));
  }
  if ((["tensor", "weight", "expert", "expert_weight"] as const).every((axis) => mesh.size(axis) === 1)) {
    const part = (tensor: Tensor): Part => ({ tensor, held: replicated() });
    return { graph, boxes, layouts, part, inputs: new Map(), summed: new Set(), mode };
  }
  // Under isp ranks of a weight group have other tokens. Else it shows during the pass which parameters are used apart;
  // one that is used alike as well must give its share there, so the pass is made again once they are known.
  const whole = [...layouts].flatMap(([name, layout]) => layout.kind === "replicated" ? [name] : []);
  let summed: ReadonlySet<string> = new Set(mode.name === "isp" && mesh.size("weight") > 1 ? whole : []);
  for (;;) {
    const sharder = new Sharder(graph, { mesh, mode, layouts, boxes, parallelOutput, loadBound, summed });
    const known = summed;
    if (mode.name === "isp" || [...sharder.apart].every((name) => known.has(name))) {
      return {
        graph: sharder.graph,
        boxes,
        layouts,
        part: (tensor) => sharder.part(tensor),
        inputs: sharder.inputs,
        summed,
        mode,
      };
    }
    summed = sharder.apart;
  }
}

interface SharderOptions {
  readonly mesh: Mesh;
  readonly mode: TensorMode;
  readonly layouts: ReadonlyMap<string, Layout>;
  readonly boxes: ReadonlyMap<string, Box>;
  readonly parallelOutput: boolean;
  readonly loadBound: number | null;
  readonly summed: ReadonlySet<string>;
}

/** The pass under way: what rules see of it. */
export class Sharder {
  readonly graph: Graph;
  readonly inputs = new Map<string, InputPart>();
  /** Parameters, whole here, of which each rank has a term of the gradient. */
  readonly apart = new Set<string>();
  readonly mode: TensorMode;
  readonly parallelOutput: boolean;
  readonly loadBound: number | null;
  readonly #options: SharderOptions;
  readonly #values = new Map<Tensor, Part>();
  /** Tensors as readers needed them, so that readers of one layer share a collective, and the sum of its gradients. */
  readonly #converted = new Map<string, Tensor>();
  #layer: number | undefined;

  constructor(source: Graph, options: SharderOptions) {
    this.#options = options;
    this.graph = new Graph(source.types);
    this.mode = options.mode;
    this.parallelOutput = options.parallelOutput;
    this.loadBound = options.loadBound;
    for (const { tensor } of source.parameters.values()) this.part(tensor); // in the order of the whole model
    for (const node of source.nodes) {
      this.#layer = node.layer;
      this.graph.inLayer(node.layer, () => {
        const parts = ruleOf(node.operator.name)(node, this);
        node.outputs.forEach((output, index) => this.#values.set(output, parts[index]!));
      });
    }
  }

  along(axis: Axis): Along {
    const { mesh } = this.#options;
    return { axis, size: mesh.size(axis), index: mesh.index(axis) };
  }

  /** Ranks of a tensor group. */
  get ranks(): number {
    return this.#options.mesh.size("tensor");
  }

  /** Where the stream between blocks lives. */
  get stream(): Layout {
    return this.ranks > 1 ? this.mode.stream : replicated();
  }

  /** Which tokens this rank sends to experts: all, where its tensor group does so together, or its share. */
  get expertTokens(): Layout {
    const shares = this.ranks > 1 && this.#options.mesh.size("expert_tensor") === 1;
    return shares ? split(0, "tensor") : replicated();
  }

  /** Whether the ranks of a tensor group divide each expert by its width, and do the same experts' work on the same tokens. */
  get expertsByWidth(): boolean {
    return this.#options.mesh.size("expert_tensor") > 1;
  }

  /** How a tensor is held for whoever asks for it `as` something: weights are gathered for use. */
  held(tensor: Tensor): Layout {
    return without(this.part(tensor).held, ({ axis }) => axis === "weight");
  }

  /** A tensor as it is here, for work that takes any part of it. */
  part(tensor: Tensor): Part {
    const known = this.#values.get(tensor);
    if (known) return known;
    const made = this.#leaf(tensor);
    this.#values.set(tensor, made);
    return made;
  }

  #leaf(tensor: Tensor): Part {
    const { kind, name } = tensor;
    switch (kind) {
      case "parameter": {
        const { initialization } = tensor.graph.parameters.get(name)!;
        const { extent } = this.#options.boxes.get(name)!;
        const held = this.#options.layouts.get(name)!;
        const own = this.graph.parameter(name, extent, initialization, tensor.type);
        return { tensor: own, held, parameter: name };
      }
      case "constant": {
        const { data } = tensor.graph.constants.get(name)!;
        return { tensor: this.graph.constant(name, tensor.shape, data), held: replicated() };
      }
      case "input":
        return { tensor: this.graph.input(name, tensor), held: replicated() };
      default:
        throw new TypeError(`Cannot shard: tensor ${tensor.id} [${tensor.shape}] is read before it is made`);
    }
  }

  /** A tensor in the layout that a reader needs. */
  as(tensor: Tensor, wanted: Layout, use: Use = "alike"): Tensor {
    if (tensor.kind === "input" && wanted.kind === "split") return this.#inputPart(tensor, wanted);
    const part = this.part(tensor);
    if (part.parameter !== undefined) return this.#parameterAs(part, part.parameter, wanted, use);
    const key = [part.tensor.id, JSON.stringify(wanted), use, this.#layer].join();
    const known = this.#converted.get(key);
    if (known) return known;
    const made = this.convert(part.tensor, part.held, wanted, use);
    this.#converted.set(key, made);
    return made;
  }

  /** A tensor of this rank's graph in another layout. */
  convert(tensor: Tensor, from: Made, to: Layout, use: Use = "alike"): Tensor {
    if (this.ranks === 1) return tensor;
    const along = this.along("tensor");
    switch (from.kind) {
      case "term":
        return to.kind === "split"
          ? reduceScatter(tensor, { ...along, dimension: to.dimension })
          : allReduce(tensor, along);
      case "split": {
        const { dimension } = from;
        if (to.kind === "split") {
          return to.dimension === dimension
            ? tensor
            : allToAll(tensor, { ...along, from: dimension, to: to.dimension });
        }
        const transient = this.mode.gathersAgain;
        return (use === "apart" ? allGather : gather)(tensor, { ...along, dimension }, { transient });
      }
      case "replicated":
        if (to.kind === "split") return splitTensor(tensor, { ...along, dimension: to.dimension });
        return use === "apart" ? replicate(tensor, along) : tensor;
      default:
        return from satisfies never;
    }
  }

  /** What is kept in parts and gathered for use, gathered, for each reader by itself: one whole weight is here at a time. */
  gathered({ tensor, held }: Part): Tensor {
    const last = divisions(held).at(-1);
    if (last?.axis !== "weight" && last?.axis !== "expert_weight") return tensor;
    return allGather(tensor, { ...this.along(last.axis), dimension: last.dimension }, { transient: true });
  }

  /** Gradients of what is whole on every rank are terms of sums that are made at the step's end, not at every use. */
  #parameterAs(part: Part, name: string, wanted: Layout, use: Use): Tensor {
    const whole = this.gathered(part), held = without(part.held, ({ axis }) => axis === "weight");
    if (held.kind === "split") return this.convert(whole, held, wanted, use);
    if (this.ranks === 1) return whole;
    if (wanted.kind === "replicated" && use === "apart") {
      this.apart.add(name);
      return whole;
    }
    const isSummed = this.mode.name === "isp" || this.#options.summed.has(name);
    return this.convert(isSummed ? shareGradient(whole, this.ranks) : whole, replicated(), wanted);
  }

  /** An input of which this rank is given its part alone. */
  #inputPart(tensor: Tensor, { dimension, axis }: Layout & { kind: "split" }): Tensor {
    const { size, index } = this.along(axis), whole = tensor.shape[dimension]!;
    if (dimension !== 0 || tensor.shape.length !== 1 || whole % size !== 0) {
      throw new RangeError(
        `Cannot split input ${tensor.name} [${tensor.shape}] over ${axis}: its length must be a multiple of ${size}`,
      );
    }
    const name = `${tensor.name} part`, known = this.graph.inputs.get(name);
    if (known) return known;
    this.inputs.set(name, { of: tensor.name, first: index * whole / size, count: whole / size });
    return this.graph.input(name, { shape: [whole / size], type: tensor.type });
  }

  /** This rank's node of a node of the global graph. */
  apply({ operator, attributes }: Node, inputs: readonly Tensor[], changes: object = {}): Tensor[] {
    return this.graph.apply(operator, inputs, { ...attributes, ...changes });
  }

  /** What was just made, as it travels between blocks. */
  toStream(tensor: Tensor, made: Made): Part {
    return { tensor: this.convert(tensor, made, this.stream), held: this.stream };
  }
}
