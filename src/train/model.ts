/** `initializeModel`: from a run record to a program on a device, weights in place. */
import type { Backend } from "../backend/backend.ts";
import { ConfigError } from "../config/error.ts"; // alone: a rank is handed its record complete
import type { ResolvedConfig } from "../config/mod.ts";
import { elementCount, Graph } from "../graph/graph.ts";
import { crossEntropy } from "../graph/operators.ts";
import { cutLargeTables } from "../graph/large_tables.ts";
import {
  estimateMemory,
  largestBinding,
  type MemoryEstimate,
  type Outputs,
  parameterAlignment,
  plan as planProgram,
} from "../graph/plan.ts";
import { Program } from "../graph/program.ts";
import type { Prefetches } from "../graph/weight_gathers.ts";
import type { ModelFamily } from "../models/family.ts";
import { getModule, hasModule, moduleNames } from "../models/registry.ts";
import { declareInputs } from "../nn/inputs.ts";
import { drawTensors } from "../nn/draw.ts";
import { gradientOrder } from "../graph/gradient_order.ts";
import { placeState } from "../graph/optimizer_state.ts";
import { adamwBytes } from "../optimizer/adamw.ts";
import { type GatherOverlapPlan, type OverlapPlan, planGatherOverlap, planOverlap } from "../optimizer/overlap.ts";
import { type Parcel, planTerms, planZero, type ZeroPlan } from "../optimizer/zero.ts";
import { type Box, divisions, type Layout, layoutOf, type ShardingPlan, split } from "../parallel/layout.ts";
import type { Mesh, Mode } from "../parallel/mesh.ts";
import { planStage, type SharedParameter, type Stage, type TracedPass } from "./stage.ts";
import { isFirstHolder, type TensorMode } from "../parallel/modes.ts";
import { type InputPart, shard, type Sharded, UnevenSplit } from "../parallel/shard.ts";
import { solo, type World } from "../parallel/world.ts";
import { modelTypes } from "./types.ts";
import { adviceFor, type Room, roomOf, unfitting } from "./fit.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { cutPart } from "./whole.ts";

export interface Model extends Disposable {
  readonly config: ResolvedConfig;
  readonly world: World;
  readonly family: ModelFamily;
  readonly program: Program;
  readonly memory: MemoryEstimate;
  /** What the device has for it, where that is known. */
  readonly room?: Room | undefined;
  /** Which rank updates what, for each group of parameters. */
  readonly zero: readonly ZeroPlan[];
  /** What this rank holds of each parameter, by canonical name. */
  readonly boxes: ReadonlyMap<string, Box>;
  /** Shape of every parameter of the whole model, by canonical name. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** The part of the model that this rank holds, and the schedule it is run by. */
  readonly stage: Stage;
  /** How each parameter is divided; axes of one rank left out. */
  readonly layouts: ReadonlyMap<string, Layout>;
  readonly mode: TensorMode;
  /** Inputs of which this rank is fed a part, by their names in the program. */
  readonly inputs: ReadonlyMap<string, InputPart>;
  /** How the results are divided that the host reads, by name, and their shapes when whole. */
  readonly results: ReadonlyMap<string, { readonly shape: readonly number[]; readonly layout: Layout }>;
  /** Sums of gradients of which every rank that holds the whole parameter has a term. */
  readonly terms: readonly Parcel[];
  /** Where the last backward pass is cut to reduce gradients meanwhile; absent where that is not done. */
  readonly overlap: OverlapPlan | undefined;
  /** Where the forward pass is cut to wait for parameters of other ranks; absent where that is not done. */
  readonly gatherOverlap: GatherOverlapPlan | undefined;
  /** Number of parameters in the whole model. */
  readonly parameterCount: number;
}

/** What of a device decides a plan. */
type BindingLimits = Pick<Backend["traits"]["limits"], "maxBufferSize" | "maxStorageBufferBindingSize">;

/** Traces, shards, differentiates and plans, without a device: what `troupe plan` prints. */
export function planModel(
  config: ResolvedConfig,
  { limits }: { readonly limits: BindingLimits },
  mesh: Mesh,
  microBatches = config.data.micro_num,
) {
  if (!hasModule(config.model_type)) {
    const message = `unknown model type ${JSON.stringify(config.model_type)}; ${moduleNames().join(", ")} work, and ` +
      "those that a module in runtime.plugins registers";
    throw new ConfigError([{ path: "model_type", message }]);
  }
  const family = getModule(config.model_type);
  const tokens = config.data.packed_length, types = modelTypes(config);
  const trace = (training: boolean) => {
    const graph = new Graph(types);
    const { inputs, labels, lossWeight } = declareInputs(graph, { tokens, longest: config.data.seq_len, training });
    const logits = family.model(graph, inputs, config.model);
    const attributes = { labelSmoothing: config.loss.label_smoothing };
    const loss = crossEntropy({ logits, labels, weight: lossWeight }, attributes);
    if (!training) return { graph, outputs: { ...loss, logits } };
    const auxiliary = inputs.auxiliary!.losses.map((tensor, index) => [`auxiliary ${index}`, tensor] as const);
    return { graph, outputs: { ...loss, ...Object.fromEntries(auxiliary) } };
  };
  const training = trace(true), evaluation = trace(false);
  const options = {
    sharding: shardingOf(family.sharding, config.model),
    mesh,
    mode: config.parallel.tensor.mode,
    fsdp: config.parallel.zero1.fsdp,
    parallelOutput: config.model.parallel_output,
    loadBound: config.parallel.expert.load_bound,
  };
  const [everywhere, evaluated] = evenly(
    config,
    mesh,
    () => [shard(training.graph, options), shard(evaluation.graph, options)],
  );
  const { layouts, mode, inputs } = everywhere;
  const ofThisRank = ({ graph, part }: Sharded, outputs: Outputs): TracedPass =>
    cutLargeTables({
      graph,
      outputs: Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, part(tensor).tensor])),
    }, largestBinding(limits));
  const passes = {
    training: ofThisRank(everywhere, training.outputs),
    evaluation: ofThisRank(evaluated, evaluation.outputs),
  };
  const join = { largest: largestBinding(limits), alignment: parameterAlignment };
  const stage = planStage(config, mesh, passes, microBatches, join);
  const whole = planProgram({ chunks: stage.chunks, limits });
  const boxes = new Map(whole.parameters.map(({ name }) => [name, everywhere.boxes.get(name)!]));
  const results = new Map(
    Object.entries(evaluation.outputs).map(([name, tensor]) =>
      [name, { shape: tensor.shape, layout: evaluated.part(tensor).held }] as const
    ),
  );
  const expert = (name: string) => {
    const layout = layoutOf(name, options.sharding);
    return layout.kind === "split" && layout.axis === "expert";
  };
  const sharded = (name: string) => divisions(layouts.get(name)!).at(-1)?.axis === "weight";
  const zero = planZero({
    parameters: whole.parameters,
    order: gradientOrder(whole),
    config,
    mesh,
    expert,
    sharded,
  });
  const state = placeState(whole.parameters, {
    largest: largestBinding(limits),
    largestBuffer: limits.maxBufferSize,
    alignment: whole.alignment,
    parts: zero.flatMap(({ division, partition }) => division.filter(({ owner }) => owner === mesh.index(partition))),
    counted: countedOnce(zero, (name) => isFirstHolder(mode, layouts.get(name)!, mesh), mesh, stage.shared),
  });
  const plan = { ...whole, state };
  const { overlap_sync_grad, overlap_sync_param } = config.hybrid_zero_optimizer;
  const overlaps = overlap_sync_grad && zero.some(({ reduce }) => mesh.size(reduce) > 1);
  const memory = estimateMemory(plan, {
    frames: stage.frames,
    microBatches,
    optimizerBytes: adamwBytes(state),
  });
  const shapes = new Map([...everywhere.boxes].map(([name, { shape }]) => [name, shape]));
  const terms = planTerms(zero, everywhere.summed, { config, mesh });
  const shared = new Set(stage.shared.map(({ name }) => name));
  // The record refuses it for backward passes in halves.
  const overlap = overlaps && "backward 0" in plan.segments ? planOverlap(plan, zero, shared) : undefined;
  const gatherOverlap = overlap_sync_param && zero.some(({ partition }) => mesh.size(partition) > 1)
    ? planGatherOverlap(plan, zero, stage.chunks.length)
    : undefined;
  return {
    family,
    plan,
    boxes,
    shapes,
    layouts,
    mode,
    inputs,
    results,
    memory,
    zero,
    terms,
    stage,
    overlap,
    gatherOverlap,
  };
}

/** @throws {ConfigError} where the ranks of a group do not divide a parameter, with a number of them that divides all */
function evenly<T>({ parallel }: ResolvedConfig, mesh: Mesh, cut: () => T): T {
  try {
    return cut();
  } catch (error) {
    if (!(error instanceof UnevenSplit)) throw error;
    const { parameter, axis, whole, common } = error, size = mesh.size(axis);
    const section = axis === "weight" && parallel.zero1.fsdp ? "zero1" : axis;
    // Ranks that could be of the group: those with other data and the same weights, and its own.
    const ranks = size * (axis === "weight" ? mesh.size("weight_data") : axis === "tensor" ? mesh.size("data") : 1);
    const fits = Array.from({ length: size }, (_, i) => size - i).find((n) => common % n === 0 && ranks % n === 0)!;
    const message = `${size} does not divide ${parameter}, of ${whole} rows or columns; ${fits} would work`;
    throw new ConfigError([{ path: `parallel.${section}.size`, message }]);
  }
}

/** A table that serves as the head too, or that the record wants divided by vocabulary, is divided by rows. */
function shardingOf(
  sharding: ShardingPlan,
  { tie_word_embeddings, embed_split_hidden }: ResolvedConfig["model"],
): ShardingPlan {
  const name = "embedding.weight", declared = sharding[name];
  if (declared?.kind !== "split" || (embed_split_hidden && !tie_word_embeddings)) return sharding;
  return { ...sharding, [name]: split(0, declared.axis) };
}

/** Of the ranks that hold a parameter, the one whose gradients count in the norm over all. */
function countedOnce(
  zero: readonly ZeroPlan[],
  holdsFirst: (name: string) => boolean,
  mesh: Mesh,
  shared: readonly SharedParameter[],
) {
  const elsewhere = new Set(
    shared.filter(({ stages }) => stages[0] !== mesh.index("pipeline")).map(({ name }) => name),
  );
  const first = new Map(
    zero.flatMap(({ reduce, partition, division }) =>
      division.map(({ name }) => [name, mesh.index(reduce) < mesh.size(partition)] as const)
    ),
  );
  return (name: string): boolean => first.get(name)! && !elsewhere.has(name) && holdsFirst(name);
}

/** @throws {ConfigError} when the device cannot store what the record asks for */
function requireType({ model: { dtype } }: ResolvedConfig, { name, traits }: Backend): void {
  if (dtype !== "float16" || name !== "webgpu" || traits.features.shaderF16) return;
  const message =
    `float16 needs shader-f16, which this device (${traits.description}) has not; bfloat16 and float32 work`;
  throw new ConfigError([{ path: "model.dtype", message }]);
}

/** How many weights of a layer are gathered before those of the next begin, by the part that begins them. */
const gatheredBefore = { wqkv: 1, attn: 3, wo: 4, w1: 5 } as const;

/** By the axis that gathers: how far ahead of need weights are gathered, where the record asks for it. */
export function prefetchOf(
  { parallel: { weight, expert_weight, zero1 } }: ResolvedConfig,
): Prefetches {
  const after = gatheredBefore[weight.launch_allgather_before];
  return {
    ...(weight.overlap || zero1.fsdp ? { weight: { per: weight.forward_overlap_per, after } } : {}),
    ...(expert_weight.overlap ? { expert_weight: { per: expert_weight.forward_overlap_per, after: 1 } } : {}),
  };
}

/** What would make the record fit so many bytes on this rank. */
function adviceHere(config: ResolvedConfig, bytes: number, { traits }: Backend, { mesh }: World): string {
  const here = { rank: mesh.rank, world: mesh.world };
  const planned = (changed: ResolvedConfig, place = here) =>
    planModel(changed, traits, runMesh(changed, place)).memory.total;
  const more = { world: mesh.world, planned };
  return adviceFor(config, { bytes, planned: (changed) => planned(changed), replicas: mesh.size("data"), more });
}

/**
 * @param backend where the model lives; stays the caller's
 * @param world the ranks that train together. @default this one alone
 * @param microBatches most of one step on this rank. @default `data.micro_num`
 * @param draw whether parameters get their initial values; without, all are zero until they are loaded. @default {true}
 * @param onNotice told how far it is, where that takes long
 * @throws {ConfigError} for an unknown model type
 * @throws {RangeError} when a tensor or the whole does not fit the device
 */
export async function initializeModel(
  config: ResolvedConfig,
  { backend, world = solo, microBatches = config.data.micro_num, draw = true, onNotice }: {
    backend: Backend;
    world?: World;
    microBatches?: number;
    draw?: boolean;
    onNotice?: (line: string) => void;
  },
): Promise<Model> {
  requireType(config, backend);
  const { plan, ...planned } = planModel(config, backend.traits, world.mesh, microBatches);
  const room = roomOf(config, backend);
  if (room && planned.memory.total > room.bytes) {
    throw new RangeError(unfitting(planned.memory.total, room, adviceHere(config, room.bytes, backend, world)));
  }
  const program = await Program.create(backend, plan, {
    frames: planned.stage.frames,
    microBatches,
    groups: (axis) => world.group(axis as Mode),
    cuts: new Map([
      ...(planned.overlap ? [[planned.overlap.segment, planned.overlap.cuts] as const] : []),
      ...[...planned.gatherOverlap?.passes ?? []].map(([segment, { cuts }]) => [segment, cuts] as const),
    ]),
    prefetch: prefetchOf(config),
  }).catch((error) => {
    if (!/out of memory/.test((error as Error).message)) throw error;
    const advice = adviceHere(config, 0.9 * planned.memory.total, backend, world);
    throw new RangeError(`${(error as Error).message}; where a tenth less is enough, ${advice}`, { cause: error });
  });
  const draws = (draw ? plan.parameters : []).map(({ name, initialization }) => (
    { name, initialization, length: elementCount(planned.shapes.get(name)!) }
  ));
  const progress = progressOf(draws.reduce((sum, { length }) => sum + length, 0), onNotice);
  await drawTensors(draws, {
    seed: config.runtime.seed,
    take(index, values) {
      const { name } = draws[index]!, shape = planned.shapes.get(name)!;
      program.writeParameter("parameter", name, cutPart(values, shape, planned.layouts.get(name)!, world));
      progress(values.length);
    },
  });
  return {
    ...planned,
    room,
    config,
    world,
    program,
    parameterCount: [...planned.shapes.values()].reduce((sum, shape) => sum + elementCount(shape), 0),
    [Symbol.dispose]: () => program[Symbol.dispose](),
  };
}

/** Tells every two seconds how many of the initial values there are. */
function progressOf(all: number, onNotice?: (line: string) => void): (count: number) => void {
  const millions = (count: number) => Math.round(count / 1e6).toLocaleString("en");
  let done = 0, told = performance.now();
  return (count) => {
    done += count;
    if (done === all || performance.now() - told < 2000) return;
    told = performance.now();
    onNotice?.(`Drawing initial values: ${millions(done)} of ${millions(all)} million`);
  };
}
