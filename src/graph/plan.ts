/**
 * The planner: gives every tensor a place before the run starts, and lowers nodes to a flat list of instructions.
 *
 * Places are named by *space*:
 *
 * - `parameter`, `gradient`: arenas, all parameters in one order, so that the optimizer's kernels bind a whole arena.
 *   Moments mirror them. An arena is no larger than one binding, and no tensor straddles two.
 * - `frame`: what one micro-batch in flight keeps from its forward to its backward pass: inputs and the saved set.
 * - `workspace`: what lives within one pass; shared by all.
 * - `constant`: tables known when tracing.
 *
 * Frames and the workspace consist of *slots*, one device buffer each. Tensors whose lives do not overlap share a slot;
 * tensors alive together never do, so no dispatch finds one buffer bound for reading and for writing. A frame's slots
 * are free again for the backward pass once what they held has been read for the last time.
 */
import type { DeviceTraits, Kernel } from "../../kernels/kernel.ts";
import { elementBytes } from "../../kernels/kernel.ts";
import type { Differentiated } from "./differentiate.ts";
import { type Graph, type Initialization, type Node, type Tensor, tensorBytes } from "./graph.ts";

/** Storage offsets are aligned to this on every device (`minStorageBufferOffsetAlignment` is at most 256). */
const ALIGNMENT = 256;
const align = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

export type Space = "parameter" | "gradient" | "constant" | "frame" | "workspace";

/** `slot`: arena, constant or slot number within its space. Offsets and sizes in bytes. */
export interface Place {
  readonly space: Space;
  readonly slot: number;
  readonly offset: number;
  readonly bytes: number;
}

export type Instruction =
  | { readonly kind: "dispatch"; readonly kernel: Kernel; readonly places: readonly Place[]; readonly label: string }
  | { readonly kind: "copy"; readonly source: Place; readonly target: Place };

export interface ParameterPlace {
  readonly name: string;
  readonly shape: readonly number[];
  readonly initialization: Initialization;
  readonly arena: number;
  readonly offset: number;
  readonly bytes: number;
}

export interface Segment {
  readonly instructions: readonly Instruction[];
  /** Places that the host fills before the segment runs. */
  readonly inputs: ReadonlyMap<string, Place>;
  /** Places that the host may read after it. */
  readonly outputs: ReadonlyMap<string, Place>;
}

export interface Plan {
  readonly parameters: readonly ParameterPlace[];
  /** Bytes of each parameter arena; gradients and moments mirror them. */
  readonly arenas: readonly number[];
  readonly constants: readonly Float32Array<ArrayBuffer>[];
  /** Bytes of each slot of one frame. */
  readonly frame: readonly number[];
  readonly workspace: readonly number[];
  readonly segments: Readonly<Record<"forward" | "backward" | "evaluate", Segment>>;
}

/** What one pass over data yields, by name; read back by the host. */
export type Outputs = Readonly<Record<string, Tensor>>;

/** Slots of one space: a free one that fits best is reused, else the largest free one grows, else one is added. */
class SlotPool {
  readonly sizes: number[] = [];
  readonly #free = new Set<number>();
  constructor(readonly space: "frame" | "workspace") {}

  take(bytes: number, { grow = true } = {}): number | undefined {
    let best: number | undefined, largest: number | undefined;
    for (const slot of this.#free) {
      const size = this.sizes[slot]!;
      if (size >= bytes && (best === undefined || size < this.sizes[best]!)) best = slot;
      if (largest === undefined || size > this.sizes[largest]!) largest = slot;
    }
    // A slot many times too large is left for a tensor that needs it.
    let slot = best !== undefined && this.sizes[best]! <= 4 * Math.max(bytes, 4096) ? best : undefined;
    if (slot === undefined && grow) {
      if (best === undefined && largest !== undefined && 4 * this.sizes[largest]! >= bytes) slot = largest;
      else slot = this.sizes.push(0) - 1;
      this.sizes[slot] = Math.max(this.sizes[slot]!, bytes);
    }
    if (slot !== undefined) this.#free.delete(slot);
    return slot;
  }
  give(slot: number): void {
    this.#free.add(slot);
  }
}

interface PlanOptions {
  readonly training: Differentiated;
  /** Read by the host after the forward pass of a micro-batch. */
  readonly trainingOutputs: Outputs;
  /** Forward nodes of the model without dropout, on the same parameters (by name). */
  readonly evaluation: { readonly graph: Graph; readonly outputs: Outputs };
  readonly limits: Pick<DeviceTraits["limits"], "maxBufferSize" | "maxStorageBufferBindingSize">;
}

/** @throws {RangeError} when one tensor is larger than the device can bind, naming it and both sizes. */
export function plan({ training, trainingOutputs, evaluation, limits }: PlanOptions): Plan {
  const largest = Math.min(limits.maxBufferSize, limits.maxStorageBufferBindingSize);
  const { parameters, arenas } = placeParameters(training.graph, largest);
  const byName = new Map(parameters.map((place) => [place.name, place]));
  const constants: Float32Array<ArrayBuffer>[] = [], constantSlots = new Map<string, number>();
  const workspace = new SlotPool("workspace");

  const fixedPlace = (tensor: Tensor): Place | undefined => {
    if (tensor.kind === "parameter" || tensor.kind === "gradient") {
      const { arena, offset, bytes } = byName.get(tensor.name)!;
      return { space: tensor.kind, slot: arena, offset, bytes };
    }
    if (tensor.kind !== "constant") return undefined;
    let slot = constantSlots.get(tensor.name);
    if (slot === undefined) {
      slot = constants.push(tensor.graph.constants.get(tensor.name)!.data) - 1;
      constantSlots.set(tensor.name, slot);
    }
    return { space: "constant", slot, offset: 0, bytes: tensorBytes(tensor) };
  };

  /** Lowers one list of nodes. `held`: places of tensors from before it. `kept`: tensors that outlive it. */
  const lower = (
    nodes: readonly Node[],
    { frame, held, kept, keptIn, reuseFrame }: {
      frame: SlotPool;
      held: Map<Tensor, Place>;
      kept: ReadonlySet<Tensor>;
      keptIn: SlotPool;
      reuseFrame: boolean;
    },
  ): Instruction[] => {
    const lastUse = new Map<Tensor, number>();
    nodes.forEach((node, index) => node.inputs.forEach((input) => lastUse.set(input, index)));
    const places = held, instructions: Instruction[] = [];

    const take = (bytes: number, what: string, pool: SlotPool | undefined): Place => {
      if (bytes > largest) {
        throw new RangeError(
          `Cannot place ${what}: it takes ${bytes} bytes, one binding of this device holds at most ${largest}; ` +
            "a smaller data.micro_bsz, data.seq_len or model.vocab_size would fit",
        );
      }
      const size = align(bytes);
      const reused = !pool && reuseFrame ? frame.take(size, { grow: false }) : undefined;
      if (reused !== undefined) return { space: "frame", slot: reused, offset: 0, bytes };
      const from = pool ?? workspace;
      return { space: from.space, slot: from.take(size)!, offset: 0, bytes };
    };
    const give = (place: Place) => {
      if (place.space === "workspace") workspace.give(place.slot);
      else if (place.space === "frame") frame.give(place.slot);
    };
    const placeOf = (tensor: Tensor): Place => {
      const place = fixedPlace(tensor) ?? places.get(tensor);
      if (!place) throw new TypeError(`Cannot plan: tensor ${tensor.id} [${tensor.shape}] is read before it is made`);
      return place;
    };

    nodes.forEach((node, index) => {
      const what = `${node.operator.name}${node.layer === undefined ? "" : ` of layer ${node.layer}`}`;
      const source = node.operator.inPlace === undefined ? undefined : node.inputs[node.operator.inPlace]!;
      node.outputs.forEach((output, position) => {
        if (output.kind === "gradient") return;
        const overwrites = position === 0 && source?.kind === "value" && lastUse.get(source) === index &&
          !kept.has(source) && !kept.has(output) &&
          node.inputs.every((input, other) => input !== source || other === node.operator.inPlace);
        if (overwrites) {
          places.set(output, places.get(source)!);
          places.delete(source);
          return;
        }
        places.set(output, take(tensorBytes(output), what, kept.has(output) ? keptIn : undefined));
        if (position === 0 && source) {
          instructions.push({ kind: "copy", source: placeOf(source), target: places.get(output)! });
        }
      });
      const { kernel, operands } = node.operator.lower(node);
      const scratch: Place[] = [];
      const bound = operands.map((tensor, operand) => {
        if (tensor) return placeOf(tensor);
        const { type, length } = kernel.operands[operand]!;
        const place = take(elementBytes[type] * length, `workspace of ${what}`, undefined);
        scratch.push(place);
        return place;
      });
      instructions.push({ kind: "dispatch", kernel, places: bound, label: kernel.name });
      scratch.forEach(give);
      for (const tensor of new Set([...node.inputs, ...node.outputs])) {
        if (tensor.kind !== "value" || kept.has(tensor) || (lastUse.get(tensor) ?? -1) > index) continue;
        const place = places.get(tensor);
        if (!place) continue;
        give(place);
        places.delete(tensor);
      }
    });
    return instructions;
  };

  const inputPlaces = (graph: Graph, pool: SlotPool): Map<string, Place> => {
    const places = new Map<string, Place>();
    for (const [name, tensor] of graph.inputs) {
      const bytes = tensorBytes(tensor);
      places.set(name, { space: pool.space, slot: pool.take(align(bytes))!, offset: 0, bytes });
    }
    return places;
  };
  const heldInputs = (graph: Graph, places: ReadonlyMap<string, Place>) =>
    new Map([...graph.inputs].map(([name, tensor]) => [tensor, places.get(name)!]));

  // Training: the frame holds the inputs, what the host reads, and what the backward pass reads.
  const frame = new SlotPool("frame");
  const inputs = inputPlaces(training.graph, frame);
  const made = new Set(training.forward.flatMap((node) => node.outputs));
  const saved = new Set(training.backward.flatMap((node) => node.inputs).filter((tensor) => made.has(tensor)));
  const read = new Set(Object.values(trainingOutputs));
  const places = heldInputs(training.graph, inputs);
  const forward = lower(training.forward, {
    frame,
    held: places,
    kept: new Set([...saved, ...read]),
    keptIn: frame,
    reuseFrame: false,
  });
  const outputs = new Map(Object.entries(trainingOutputs).map(([name, tensor]) => [name, places.get(tensor)!]));
  const backward = lower(training.backward, { frame, held: places, kept: read, keptIn: frame, reuseFrame: true });

  // Evaluation runs between steps, when frames are empty: everything lives in the workspace.
  const evaluationInputs = inputPlaces(evaluation.graph, workspace);
  const evaluationPlaces = heldInputs(evaluation.graph, evaluationInputs);
  const evaluate = lower(evaluation.graph.nodes, {
    frame: workspace,
    held: evaluationPlaces,
    kept: new Set(Object.values(evaluation.outputs)),
    keptIn: workspace,
    reuseFrame: false,
  });
  const evaluationOutputs = new Map(
    Object.entries(evaluation.outputs).map(([name, tensor]) => [name, evaluationPlaces.get(tensor)!]),
  );

  return {
    parameters,
    arenas,
    constants,
    frame: frame.sizes,
    workspace: workspace.sizes,
    segments: {
      forward: { instructions: forward, inputs, outputs },
      backward: { instructions: backward, inputs: new Map(), outputs: new Map() },
      evaluate: { instructions: evaluate, inputs: evaluationInputs, outputs: evaluationOutputs },
    },
  };
}

/** Parameters in order of declaration, packed into as few arenas as one binding's size allows. */
function placeParameters(graph: Graph, largest: number) {
  const parameters: ParameterPlace[] = [], arenas: number[] = [];
  for (const [name, { tensor, initialization }] of graph.parameters) {
    const bytes = tensorBytes(tensor);
    if (bytes > largest) {
      throw new RangeError(
        `Cannot place parameter ${name} [${tensor.shape}]: it takes ${bytes} bytes, one binding of this device ` +
          `holds at most ${largest}`,
      );
    }
    let arena = arenas.length - 1;
    if (arena < 0 || arenas[arena]! + align(bytes) > largest) arena = arenas.push(0) - 1;
    parameters.push({ name, shape: tensor.shape, initialization, arena, offset: arenas[arena]!, bytes });
    arenas[arena]! += align(bytes);
  }
  return { parameters, arenas };
}

/** Bytes by purpose, for `frames` micro-batches in flight; what the run will hold on the device. */
export interface MemoryEstimate {
  readonly parameters: number;
  readonly gradients: number;
  readonly optimizer: number;
  readonly frames: number;
  readonly workspace: number;
  readonly constants: number;
  readonly outputs: number;
  readonly total: number;
}

const sum = (sizes: readonly number[]) => sizes.reduce((total, size) => total + size, 0);

export function estimateMemory(
  plan: Plan,
  { frames, microBatches, optimizerBytes = 0 }: {
    frames: number;
    microBatches: number;
    /** What the optimizer takes beside the two moments. @default {0} */
    optimizerBytes?: number;
  },
): MemoryEstimate {
  const parameters = sum(plan.arenas);
  const perMicroBatch = sum([...plan.segments.forward.outputs.values()].map(({ bytes }) => align(bytes)));
  const parts = {
    parameters,
    gradients: parameters,
    optimizer: 2 * parameters + optimizerBytes,
    frames: frames * sum(plan.frame),
    workspace: sum(plan.workspace),
    constants: sum(plan.constants.map((data) => data.byteLength)),
    outputs: microBatches * perMicroBatch,
  };
  return { ...parts, total: sum(Object.values(parts)) };
}
