/**
 * The planner: gives every tensor a place before the run starts, and lowers nodes to a flat list of instructions.
 *
 * A model is a list of *chunks*, one except on a pipeline's stages, each with the segments `forward k`, `backward k` and
 * `evaluate k`.
 *
 * Places are named by *space*:
 *
 * - `gradient`: arenas, all parameters in one order, so that the optimizer's kernels bind a whole arena. No tensor straddles
 *   two, and an arena is no larger than one binding, except that of a single parameter that is larger itself: kernels bind
 *   rows of it (`large_tables.ts`), and the optimizer one part after another.
 * - `parameter`: what the passes read. In a `float32` model its arenas mirror the gradients'. In one of a half type they
 *   do too, each offset half as large, and the optimizer, which updates `float32` masters, writes them in the same pass; the
 *   few parameters that the passes read as `float32` even so have arenas behind those.
 * - `frame`: what one micro-batch in flight keeps from its forward to its backward pass: inputs and the saved set. Each
 *   chunk has frames of its own.
 * - `workspace`: what lives within one pass; shared by all.
 * - `constant`: tables known when tracing.
 *
 * The optimizer's state, moments and masters, has arenas of its own (`optimizer_state.ts`).
 *
 * Frames and the workspace consist of *slots*, one device buffer each. Tensors whose lives do not overlap share a slot;
 * tensors alive together never do, so no dispatch finds one buffer bound for reading and for writing. A frame's slots
 * are free again for the backward pass once what they held has been read for the last time.
 */
import { type FloatType, type HalfType, isHalf } from "../../kernels/host.ts";
import type { DeviceTraits, ElementType, Kernel } from "../../kernels/kernel.ts";
import { elementBytes } from "../../kernels/kernel.ts";
import { Arenas } from "./arenas.ts";
import { storedAs } from "./bind.ts";
import type { Differentiated } from "./differentiate.ts";
import { splitBackward } from "./split_backward.ts";
import {
  type Collective,
  elementCount,
  type Graph,
  type Initialization,
  type Node,
  type Tensor,
  tensorBytes,
} from "./graph.ts";
import { placeState, type StateLayout } from "./optimizer_state.ts";

/** Storage offsets are aligned to this on every device (`minStorageBufferOffsetAlignment` is at most 256). */
const ALIGNMENT = 256;
/** Where parameters may begin, whatever the model's type is. */
export const parameterAlignment = 2 * ALIGNMENT;
const align = (bytes: number, to = ALIGNMENT) => Math.ceil(bytes / to) * to;

export type Space = "parameter" | "gradient" | "constant" | "frame" | "workspace";

/** `slot`: arena, constant or slot number within its space. Offsets and sizes in bytes. */
export interface Place {
  readonly space: Space;
  readonly slot: number;
  readonly offset: number;
  readonly bytes: number;
  /** Of what the host reads: what it is stored as. */
  readonly type?: ElementType;
  /** Of the same: how many there are. Half types may leave half a word over. */
  readonly elements?: number;
}

export type Instruction =
  | { readonly kind: "dispatch"; readonly kernel: Kernel; readonly places: readonly Place[]; readonly label: string }
  | { readonly kind: "copy"; readonly source: Place; readonly target: Place }
  | CollectiveInstruction;

/** Done by the host between two command lists: it reads the source back, meets the other ranks, fills the target. */
export interface CollectiveInstruction extends Collective {
  readonly kind: "collective";
  readonly source: Place;
  readonly target: Place;
  /** Of an exchange: rows that this rank's tokens have at each expert, and that this rank's experts have of each rank. */
  readonly counts: readonly Place[];
  /** Of an exchange: its counts by number, and whether an exchange before it in this segment has read the same. */
  readonly tally?: { readonly id: number; readonly known: boolean };
  readonly type: ElementType;
  readonly label: string;
  readonly layer: number | undefined;
}

/** Where a parameter's gradient lies, which is `f32`, and what the passes read of it. */
export interface ParameterPlace {
  readonly name: string;
  readonly shape: readonly number[];
  readonly initialization: Initialization;
  readonly arena: number;
  readonly offset: number;
  readonly bytes: number;
  readonly read: StoredPlace;
}

/** Where the passes read a parameter, and as what. In bytes, without what fills the last word. */
export interface StoredPlace {
  readonly arena: number;
  readonly offset: number;
  readonly type: FloatType;
}

export interface Segment {
  readonly instructions: readonly Instruction[];
  /** Places that the host fills before the segment runs. */
  readonly inputs: ReadonlyMap<string, Place>;
  /** Places that the host may read after it, at the step's end: see `Program.keepOutputs`. */
  readonly outputs: ReadonlyMap<string, Place>;
  /** Places that the host reads right after it, to hand on what they hold. */
  readonly passed: ReadonlyMap<string, Place>;
}

/** What a chunk does, and which chunk. A backward pass is one segment, or two where a schedule puts weights off. */
export type SegmentName = `${
  | "forward"
  | "backward"
  | "backward input"
  | "backward weight"
  | "evaluate"} ${number}`;

export interface Plan {
  readonly parameters: readonly ParameterPlace[];
  /** Bytes of each arena of gradients. */
  readonly arenas: readonly number[];
  /** Bytes of each arena of what the passes read. */
  readonly parameterArenas: readonly number[];
  /** What the passes read parameters as, where that is a half type: the optimizer then updates masters. */
  readonly modelType: HalfType | undefined;
  /** Gradients begin at multiples of this in their arenas, in bytes: so that parameters of half the width are aligned too. */
  readonly alignment: number;
  /** Where the moments, and the masters if there are any, lie: of all parameters, unless ranks divide them. */
  readonly state: StateLayout;
  readonly constants: readonly Float32Array<ArrayBuffer>[];
  /** Bytes of each slot of one frame, by chunk. */
  readonly frames: readonly (readonly number[])[];
  readonly workspace: readonly number[];
  readonly segments: Readonly<Record<SegmentName, Segment>>;
}

/** What one pass over data yields, by name; read back by the host. */
export type Outputs = Readonly<Record<string, Tensor>>;

/** Slots of one space: a free one that fits best is reused, else the largest free one grows, else one is added. */
class SlotPool {
  readonly sizes: number[] = [];
  readonly #free = new Set<number>();
  constructor(readonly space: "frame" | "workspace") {}

  /** @param options `waste`: how many times too large a free slot may be */
  take(bytes: number, { grow = true, waste = 4 } = {}): number | undefined {
    let best: number | undefined, largest: number | undefined;
    for (const slot of this.#free) {
      const size = this.sizes[slot]!;
      if (size >= bytes && (best === undefined || size < this.sizes[best]!)) best = slot;
      if (largest === undefined || size > this.sizes[largest]!) largest = slot;
    }
    // A slot many times too large is left for a tensor that needs it.
    let slot = best !== undefined && this.sizes[best]! <= waste * Math.max(bytes, 4096) ? best : undefined;
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

/** A part of the model that runs from its inputs to its outputs in one go. */
export interface ChunkGraph {
  readonly training: Differentiated;
  /** Read by the host at the step's end. */
  readonly trainingOutputs: Outputs;
  /** Handed on right after the forward pass. @default nothing */
  readonly passed?: Outputs;
  /** Cut the backward pass in two: gradients of inputs, then those of weights. @default {false} */
  readonly split?: boolean;
  /** Forward nodes of the same part without dropout, on the same parameters (by name). */
  readonly evaluation: { readonly graph: Graph; readonly outputs: Outputs; readonly passed?: Outputs };
}

interface PlanOptions {
  readonly chunks: readonly ChunkGraph[];
  readonly limits: Pick<DeviceTraits["limits"], "maxBufferSize" | "maxStorageBufferBindingSize">;
}

/** Bytes that one binding of a device can have. */
export const largestBinding = (
  { maxBufferSize, maxStorageBufferBindingSize }: PlanOptions["limits"],
): number => Math.min(maxBufferSize, maxStorageBufferBindingSize);

/** @throws {RangeError} when one tensor is larger than the device can bind, naming it and both sizes. */
export function plan({ chunks, limits }: PlanOptions): Plan {
  const largest = largestBinding(limits);
  const graphs = chunks.map(({ training }) => training.graph), modelType = halfTypeOf(graphs);
  const alignment = modelType ? parameterAlignment : ALIGNMENT;
  const { parameters, arenas, parameterArenas } = placeParameters(graphs, {
    largest,
    alignment,
    largestBuffer: limits.maxBufferSize,
    modelType,
  });
  const byName = new Map(parameters.map((place) => [place.name, place]));
  const constants: Float32Array<ArrayBuffer>[] = [], constantSlots = new Map<string, number>();
  const workspace = new SlotPool("workspace");

  const fixedPlace = (tensor: Tensor): Place | undefined => {
    if (tensor.kind === "parameter" || tensor.kind === "gradient") {
      const place = byName.get(tensor.name)!, bytes = tensorBytes(tensor);
      requireSideBySide(tensor, byName);
      if (bytes > largest) throw unbindable(tensor, bytes, largest);
      const { firstRow = 0, shape: [, ...inner], kind, type } = tensor, before = firstRow * elementCount(inner);
      const { arena, offset } = kind === "parameter" ? place.read : place;
      return { space: kind, slot: arena, offset: offset + elementBytes[type] * before, bytes };
    }
    if (tensor.kind !== "constant") return undefined;
    let slot = constantSlots.get(tensor.name);
    if (slot === undefined) {
      slot = constants.push(tensor.graph.constants.get(tensor.name)!.data) - 1;
      constantSlots.set(tensor.name, slot);
    }
    return { space: "constant", slot, offset: 0, bytes: tensorBytes(tensor) };
  };

  /** Frees the slot of a place in the workspace or in `frame`. */
  const give = ({ space, slot }: Place, frame: SlotPool) => {
    if (space === "workspace") workspace.give(slot);
    else if (space === "frame") frame.give(slot);
  };

  /** Lowers one list of nodes. `held`: places of tensors from before it. `kept`: tensors that outlive it. */
  const lower = (
    nodes: readonly Node[],
    { frame, held, kept, keptIn, reuseFrame, waste = 4 }: {
      frame: SlotPool;
      held: Map<Tensor, Place>;
      kept: ReadonlySet<Tensor>;
      /** Where tensors go that outlive the list; `undefined`: where all others go. */
      keptIn: (tensor: Tensor) => SlotPool | undefined;
      reuseFrame: boolean;
      /** How many times too large a slot of the frame may be that is taken again. */
      waste?: number;
    },
  ): Instruction[] => {
    const lastUse = new Map<Tensor, number>();
    nodes.forEach((node, index) => node.inputs.forEach((input) => lastUse.set(input, index)));
    const places = held, instructions: Instruction[] = [], tallied = new Set<number>();

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
      return { space: from.space, slot: from.take(size, from === frame ? { waste } : {})!, offset: 0, bytes };
    };
    const placeOf = (tensor: Tensor): Place => {
      const place = fixedPlace(tensor) ?? places.get(tensor);
      if (!place) throw new TypeError(`Cannot plan: tensor ${tensor.id} [${tensor.shape}] is read before it is made`);
      return place;
    };

    nodes.forEach((node, index) => {
      const { collective } = node.operator;
      const what = `${node.operator.name}${node.layer === undefined ? "" : ` of layer ${node.layer}`}`;
      const source = node.operator.inPlace === undefined ? undefined : node.inputs[node.operator.inPlace]!;
      let sourcePlace: Place | undefined;
      node.outputs.forEach((output, position) => {
        if (output.kind === "gradient") return;
        const overwrites = position === 0 && source?.kind === "value" && lastUse.get(source) === index &&
          !kept.has(source) &&
          (!kept.has(output) || (keptIn(output)?.space ?? placeOf(source).space) === placeOf(source).space) &&
          node.inputs.every((input, other) => input !== source || other === node.operator.inPlace);
        if (overwrites) {
          sourcePlace = places.get(source)!;
          places.set(output, sourcePlace);
          places.delete(source);
          return;
        }
        places.set(output, take(tensorBytes(output), what, kept.has(output) ? keptIn(output) : undefined));
        if (position === 0 && source && !collective) {
          instructions.push({ kind: "copy", source: placeOf(source), target: places.get(output)! });
        }
      });
      if (collective) {
        const [input, ...rest] = node.inputs as [Tensor, ...Tensor[]], source = sourcePlace ?? placeOf(input);
        const counts = rest.map(placeOf);
        const target = placeOf(node.outputs[0]!), id = rest.at(-1)?.id;
        const tally = id === undefined ? {} : { tally: { id, known: tallied.has(id) } };
        if (id !== undefined) tallied.add(id);
        instructions.push({
          kind: "collective",
          ...collective(node),
          source,
          target,
          counts,
          ...tally,
          type: input.type,
          label: what,
          layer: node.layer,
        });
      } else {
        const { kernel, operands } = node.operator.lower!(node);
        const scratch: Place[] = [];
        const bound = operands.map((tensor, operand) => {
          if (tensor) return placeOf(tensor);
          const { type, length } = kernel.operands[operand]!;
          const place = take(elementBytes[type] * length, `workspace of ${what}`, undefined);
          scratch.push(place);
          return place;
        });
        instructions.push({ kind: "dispatch", kernel, places: bound, label: kernel.name });
        scratch.forEach((place) => give(place, frame));
      }
      for (const tensor of new Set([...node.inputs, ...node.outputs])) {
        if (tensor.kind !== "value" || kept.has(tensor) || (lastUse.get(tensor) ?? -1) > index) continue;
        const place = places.get(tensor);
        if (!place) continue;
        give(place, frame);
        places.delete(tensor);
      }
    });
    return instructions;
  };

  const placesFor = (inputs: Iterable<Tensor>, pool: SlotPool): Map<Tensor, Place> =>
    new Map([...inputs].map((input) => {
      const bytes = tensorBytes(input);
      return [input, { space: pool.space, slot: pool.take(align(bytes))!, offset: 0, bytes }];
    }));
  const byInputName = (places: ReadonlyMap<Tensor, Place>) =>
    new Map([...places].map(([{ name }, place]) => [name, place]));
  const byOutputName = (outputs: Outputs, places: ReadonlyMap<Tensor, Place>) =>
    new Map(
      Object.entries(outputs).map(([name, tensor]) => {
        const { type, shape } = tensor;
        return [name, { ...places.get(tensor)!, type, elements: elementCount(shape) }];
      }),
    );

  const frames: SlotPool[] = [], segments: Record<SegmentName, Segment> = {};
  for (const [chunk, { training, trainingOutputs, passed = {}, split = false, evaluation }] of chunks.entries()) {
    const seen = throughIdentities([...training.forward, ...training.backward]);
    const forwardNodes = seen.nodes(training.forward), backwardNodes = seen.nodes(training.backward);
    const wanted = new Map([...training.inputGradients].map(([input, gradient]) => [input, seen.tensor(gradient)]));

    // Training: the frame holds the inputs, what the host reads, and what the backward pass reads.
    const frame = new SlotPool("frame");
    frames.push(frame);
    const late = new Set(training.given), readForward = new Set(forwardNodes.flatMap(({ inputs }) => inputs));
    for (const input of backwardNodes.flatMap(({ inputs }) => inputs)) {
      if (input.kind === "input" && !readForward.has(input)) late.add(input);
    }
    const inputs = placesFor([...training.graph.inputs.values()].filter((input) => !late.has(input)), frame);
    const made = new Set(forwardNodes.flatMap((node) => node.outputs));
    const saved = new Set(
      [...backwardNodes.flatMap((node) => node.inputs), ...wanted.values()].filter((tensor) => made.has(tensor)),
    );
    const outputs = seen.outputs(trainingOutputs), handed = seen.outputs(passed);
    const read = new Set([...Object.values(outputs), ...Object.values(handed)]);
    const places = new Map(inputs);
    const forward = lower(forwardNodes, {
      frame,
      held: places,
      kept: new Set([...saved, ...read]),
      keptIn: () => frame,
      reuseFrame: false,
    });
    segments[`forward ${chunk}`] = {
      instructions: forward,
      inputs: byInputName(inputs),
      outputs: byOutputName(outputs, places),
      passed: byOutputName(handed, places),
    };

    for (const tensor of Object.values(handed)) {
      const place = places.get(tensor)!;
      const passesThrough = tensor.kind === "input", readAtTheEnd = Object.values(outputs).includes(tensor);
      if (place.space === "frame" && !saved.has(tensor) && !passesThrough && !readAtTheEnd) frame.give(place.slot);
    }
    // Where the pass is cut in two, what both halves read lives in the frame until the second is done.
    const given = placesFor(late, split ? frame : workspace);
    given.forEach((place, input) => places.set(input, place));
    const keptGradients = new Set(wanted.values()), results = Object.values(outputs);
    const half = (name: SegmentName, nodes: readonly Node[], later: readonly Node[], between: ReadonlySet<Tensor>) =>
      segments[name] = {
        instructions: lower(nodes, {
          frame,
          held: places,
          kept: new Set([...results, ...keptGradients, ...later.flatMap(({ inputs }) => inputs)]),
          keptIn: (tensor) => between.has(tensor) ? frame : workspace,
          // In halves, slots of the frame that come free are for what the second half needs.
          reuseFrame: !split,
          ...(split && { waste: 1 }),
        }),
        inputs: new Map(),
        outputs: new Map(),
        passed: new Map(),
      };
    const first: SegmentName = `backward${split ? " input" : ""} ${chunk}`;
    if (split) {
      const { input, weight, between } = splitBackward(backwardNodes, keptGradients);
      half(first, input, weight, between);
      // The gradients handed on are gone by now; what the first half kept of the workspace is free.
      half(`backward weight ${chunk}`, weight, [], new Set());
    } else half(first, backwardNodes, [], new Set());
    segments[first] = {
      ...segments[first]!,
      inputs: byInputName(given),
      passed: new Map([...wanted].map(([input, gradient]) => [input.name, places.get(gradient)!])),
    };
    for (const place of [...given.values(), ...[...keptGradients].map((tensor) => places.get(tensor)!)]) {
      if (place.space === "workspace") workspace.give(place.slot);
    }

    // Evaluation runs between steps, when frames are empty: their slots are used first, then the workspace.
    const evaluated = throughIdentities(evaluation.graph.nodes);
    const evaluationOutputs = evaluated.outputs(evaluation.outputs);
    const evaluationPassed = evaluated.outputs(evaluation.passed ?? {});
    const evaluationInputs = placesFor(evaluation.graph.inputs.values(), workspace);
    const evaluationPlaces = new Map(evaluationInputs);
    const evaluationResults = new Set([...Object.values(evaluationOutputs), ...Object.values(evaluationPassed)]);
    const evaluate = lower(evaluated.nodes(evaluation.graph.nodes), {
      frame,
      held: evaluationPlaces,
      kept: evaluationResults,
      keptIn: () => undefined,
      reuseFrame: true,
    });
    segments[`evaluate ${chunk}`] = {
      instructions: evaluate,
      inputs: byInputName(evaluationInputs),
      outputs: byOutputName(evaluationOutputs, evaluationPlaces),
      passed: byOutputName(evaluationPassed, evaluationPlaces),
    };
    // Another chunk runs at another time.
    new Set([...evaluationInputs.values(), ...[...evaluationResults].map((tensor) => evaluationPlaces.get(tensor)!)])
      .forEach((place) => give(place, frame));
  }

  return {
    parameters,
    arenas,
    parameterArenas,
    modelType,
    alignment,
    state: placeState(parameters, { largest, largestBuffer: limits.maxBufferSize, alignment }),
    constants,
    frames: frames.map(({ sizes }) => sizes),
    workspace: workspace.sizes,
    segments,
  };
}

/** Nodes and tensors as they are once identities are left out: what they yield is what they are given. */
function throughIdentities(nodes: readonly Node[]) {
  const origin = new Map<Tensor, Tensor>();
  const tensor = (of: Tensor) => origin.get(of) ?? of;
  const isIdentity = ({ operator }: Node) => !operator.lower && !operator.collective;
  for (const node of nodes) if (isIdentity(node)) origin.set(node.outputs[0]!, tensor(node.inputs[0]!));
  const tensors = (list: readonly Tensor[]) => list.map(tensor);
  return {
    tensor,
    outputs: (outputs: Outputs): Outputs =>
      Object.fromEntries(Object.entries(outputs).map(([name, of]) => [name, tensor(of)])),
    nodes: (list: readonly Node[]): readonly Node[] =>
      origin.size === 0
        ? list
        : list.filter((node) => !isIdentity(node)).map((node) => ({ ...node, inputs: tensors(node.inputs) })),
  };
}

/** @throws {TypeError} where parameters that a node reads as one lie apart, which is a fault of whoever joined them */
function requireSideBySide({ names = [] }: Tensor, places: ReadonlyMap<string, ParameterPlace>): void {
  let end: { arena: number; offset: number }[] | undefined;
  for (const name of names) {
    const { bytes, read, ...own } = places.get(name)!, both = [own, read];
    if (end?.some(({ arena, offset }, index) => both[index]!.arena !== arena || both[index]!.offset !== offset)) {
      throw new TypeError(`Cannot plan: parameters ${names.join(", ")} are read as one, and ${name} lies apart`);
    }
    const width = elementBytes[read.type] / 4;
    end = both.map(({ arena, offset }, index) => ({ arena, offset: offset + bytes * (index === 0 ? 1 : width) }));
  }
}

/** The half type in which passes read parameters, if any. */
function halfTypeOf(graphs: readonly Graph[]): HalfType | undefined {
  const types = new Set(
    graphs.flatMap((graph) => [...graph.parameters.values()].map(({ tensor: { type } }) => type).filter(isHalf)),
  );
  if (types.size > 1) throw new TypeError(`Cannot plan: parameters are read as ${[...types].join(" and ")}; one works`);
  return [...types][0];
}

const unbindable = ({ name, shape }: Pick<Tensor, "name" | "shape">, bytes: number, largest: number) =>
  new RangeError(
    `Cannot place parameter ${name} [${shape}]: it takes ${bytes} bytes, one binding of this device ` +
      `holds at most ${largest}; a smaller one (model.vocab_size, model.hidden_size) would fit, or parts of it on ` +
      `${Math.ceil(bytes / largest)} ranks or more (parallel.tensor)`,
  );

/** Gradients, and parameters as the passes read them, in order of declaration. */
function placeParameters(
  graphs: readonly Graph[],
  { largest, largestBuffer, alignment, modelType }: {
    readonly largest: number;
    readonly largestBuffer: number;
    readonly alignment: number;
    readonly modelType: HalfType | undefined;
  },
) {
  const gradients = new Arenas(largest), exact = new Arenas(largest);
  // One that several chunks share exists once.
  const all = new Map(graphs.flatMap((graph) => [...graph.parameters]));
  const sizeOf = ({ tensor: { shape } }: { tensor: Tensor }) => align(4 * elementCount(shape), alignment);
  // What is read as one lies in one arena.
  const together = new Map(
    graphs.flatMap(({ joined }) => joined).map((
      names,
    ) => [names[0]!, sum(names.map((each) => sizeOf(all.get(each)!)))]),
  );
  const placed = [...all].map(([name, { tensor, initialization }]) => {
    const bytes = 4 * elementCount(tensor.shape), size = align(bytes, alignment), whole = together.get(name);
    if (size > largestBuffer) {
      throw new RangeError(
        `Cannot place parameter ${name} [${tensor.shape}]: it takes ${bytes} bytes, one buffer of this device ` +
          `holds at most ${largestBuffer}; a smaller table (model.vocab_size, model.hidden_size) would fit, or parts ` +
          `of it on ${Math.ceil(bytes / largestBuffer)} ranks or more (parallel.tensor)`,
      );
    }
    const type = storedAs(tensor), place = gradients.place(size, whole);
    const read = !modelType ? place : isHalf(type) ? { ...place, offset: place.offset / 2 } : exact.place(size, whole);
    return { name, shape: tensor.shape, initialization, ...place, bytes, read: { ...read, type } };
  });
  const { bytes: arenas } = gradients, mirrors = arenas.map((bytes) => modelType ? bytes / 2 : bytes);
  const parameters = placed.map(({ read, ...place }): ParameterPlace => {
    const behind = modelType && !isHalf(read.type) ? mirrors.length : 0;
    return { ...place, read: { ...read, arena: behind + read.arena } };
  });
  return { parameters, arenas, parameterArenas: [...mirrors, ...exact.bytes] };
}

/** Bytes by purpose, for `frames` micro-batches in flight; what the run will hold on the device. */
export interface MemoryEstimate {
  /** As the passes read them. */
  readonly parameters: number;
  /** `f32` parameters that this rank updates, where the passes read them in a half type. */
  readonly masters: number;
  readonly gradients: number;
  /** Moments, and what an update needs besides. */
  readonly optimizer: number;
  readonly frames: number;
  readonly workspace: number;
  readonly constants: number;
  readonly outputs: number;
  readonly total: number;
}

/** Micro-batches of a chunk in flight at once. */
export const framesOf = (frames: number | readonly number[], chunk: number): number =>
  typeof frames === "number" ? frames : frames[chunk]!;

const sum = (sizes: readonly number[]) => sizes.reduce((total, size) => total + size, 0);

/** @param options `frames`: micro-batches in flight at once, of every chunk or by chunk */
export function estimateMemory(
  plan: Plan,
  { frames, microBatches, optimizerBytes = 0 }: {
    frames: number | readonly number[];
    microBatches: number;
    /** What the optimizer takes beside the two moments. @default {0} */
    optimizerBytes?: number;
  },
): MemoryEstimate {
  const state = sum(plan.state.arenas);
  const perMicroBatch = sum(
    plan.frames.flatMap((_, chunk) =>
      [...plan.segments[`forward ${chunk}`].outputs.values()].map(({ bytes }) => align(bytes))
    ),
  );
  const parts = {
    parameters: sum(plan.parameterArenas),
    masters: plan.modelType ? state : 0,
    gradients: sum(plan.arenas),
    optimizer: 2 * state + optimizerBytes,
    frames: sum(plan.frames.map((sizes, chunk) => framesOf(frames, chunk) * sum(sizes))),
    workspace: sum(plan.workspace),
    constants: sum(plan.constants.map((data) => data.byteLength)),
    outputs: microBatches * perMicroBatch,
  };
  return { ...parts, total: sum(Object.values(parts)) };
}
