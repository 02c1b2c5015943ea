/**
 * What a rank takes of its machine's memory, beside what is on the device: room for what travels between ranks, and the
 * program itself. Rooms are made when they are first needed and serve again and again, so the figures come from playing a
 * step as the code takes and gives them.
 */
import type { ResolvedConfig } from "../config/mod.ts";
import type { CollectiveInstruction, Plan, Segment, SegmentName } from "../graph/plan.ts";
import { beginnings, isWeightGather, type Prefetches } from "../graph/weight_gathers.ts";
import type { GatherOverlapPlan, OverlapPlan } from "../optimizer/overlap.ts";
import { mostTravelling } from "../optimizer/synchronize.ts";
import type { Parcel, ZeroPlan } from "../optimizer/zero.ts";
import type { Mesh } from "../parallel/mesh.ts";
import { computesApart } from "../parallel/world.ts";
import type { Stage } from "./stage.ts";

/** In bytes. */
export interface HostMemory {
  /** Deno with its workers for data and communication, and the driver of a device. */
  readonly program: number;
  /** Gradients and parameters on their way between ranks with other data. */
  readonly synchronization: number;
  /** What the passes exchange: staging of collectives, weights that are gathered, messages between stages. */
  readonly passes: number;
  /** What comes back from the device, in staging buffers that both see. */
  readonly readBack: number;
  /** Batches read ahead. */
  readonly data: number;
  /** At the start a parameter's values are drawn whole, one at a time. */
  readonly start: number;
  readonly total: number;
}

const MiB = 2 ** 20;

/**
 * Resident memory of a rank's process that trains next to nothing, at its most: with the CPU backend, and with WebGPU on
 * software Vulkan (measured on Linux, Deno 2.9.6). Drivers of GPUs were not measured and take more.
 */
const programBytes = { cpu: 163 * MiB, webgpu: 275 * MiB } as const;

/** As `src/backend/webgpu/readback.ts` has them: three buffers of at most 64 MiB, grown to what is read. */
const stagingBuffers = 3, firstStaging = MiB, largestStaging = 64 * MiB;

const sum = (values: Iterable<number>) => [...values].reduce((total, value) => total + value, 0);

/** Memory of which pieces are taken and given back, and which grows when nothing fits. */
class Pool {
  bytes = 0;
  readonly #free: number[] = [];
  /** @param exact whether only a piece of the same size serves */
  constructor(readonly exact: boolean) {}

  take(bytes: number): number {
    const fitting = this.#free.filter((free) => this.exact ? free === bytes : free >= bytes).sort((a, b) => a - b)[0];
    if (fitting === undefined) {
      this.bytes += bytes;
      return bytes;
    }
    return this.#free.splice(this.#free.indexOf(fitting), 1)[0]!;
  }
  give(bytes: number): void {
    this.#free.push(bytes);
  }
}

/** What travels during passes, or while other ranks take their turn on a GPU: all of it is under way at once then. */
interface AtOnce {
  readonly gradients: boolean;
  readonly parameters: boolean;
}

/** Rooms of gradients and parameters, as a synchronizer takes them in one step. */
function synchronizationBytes(
  { reduce, partition, buckets, gathers }: ZeroPlan,
  mesh: Mesh,
  atOnce: AtOnce,
): number {
  const pool = new Pool(false);
  const travel = (parcels: readonly Parcel[], most: number) => {
    const under: number[] = [];
    for (const { elements } of parcels) {
      under.push(pool.take(4 * elements));
      if (under.length >= most) pool.give(under.shift()!);
    }
    under.forEach((room) => pool.give(room));
  };
  if (mesh.size(reduce) > 1) travel(buckets, atOnce.gradients ? Infinity : mostTravelling);
  if (mesh.size(partition) > 1) travel(gathers, atOnce.parameters ? Infinity : mostTravelling);
  return pool.bytes;
}

const collectivesOf = ({ instructions }: Segment): CollectiveInstruction[] =>
  instructions.filter((instruction) => instruction.kind === "collective");

/** Two areas as large as the largest tensor that a collective moves. */
function stagingBytes(plan: Plan): number {
  const sizes = Object.values(plan.segments).flatMap((segment) =>
    collectivesOf(segment).map(({ source, target }) => Math.ceil(Math.max(source.bytes, target.bytes) / 16) * 16)
  );
  return 2 * Math.max(0, ...sizes);
}

/** This rank's own weights, as the host knows them, and gathered ones until the device has them. */
function weightBytes(plan: Plan, prefetches: Prefetches): number {
  const own = new Map<string, number>(), pool = new Pool(true);
  for (const segment of Object.values(plan.segments)) {
    const gathers = collectivesOf(segment).filter((instruction) => isWeightGather({ instruction }));
    for (const { source } of gathers) own.set(`${source.space} ${source.slot} ${source.offset}`, source.bytes);
    const begun = beginnings(gathers.map(({ layer, axis }, piece) => ({ piece, layer, axis })), prefetches);
    gathers.forEach(({ target }, index) => {
      for (const ahead of begun.get(index) ?? []) pool.take(gathers[ahead]!.target.bytes);
      pool.give(target.bytes);
    });
  }
  return sum(own.values()) + pool.bytes;
}

/** Messages between stages: from when they are asked for until a pass takes them, and until they are sent. */
function messageBytes(plan: Plan, stage: Stage, microBatches: number): number {
  const pool = new Pool(true), held = new Map<string, number>();
  const sizes = (name: SegmentName) => {
    const { inputs, passed } = plan.segments[name];
    return {
      comes: sum([...inputs].map(([input, { bytes }]) => input.startsWith("stage_") ? bytes : 0)),
      goes: sum([...passed.values()].map(({ bytes }) => bytes)),
    };
  };
  const backward = (chunk: number): SegmentName =>
    `backward ${chunk}` in plan.segments ? `backward ${chunk}` : `backward input ${chunk}`;
  const nameOf = (carries: "activation" | "gradient", chunk: number): SegmentName =>
    carries === "activation" ? `forward ${chunk}` : backward(chunk);
  for (const step of stage.schedule(microBatches)) {
    if (step.kind === "run") {
      if (step.segment === "backward weight") continue;
      const carries = step.segment === "forward" ? "activation" : "gradient";
      const key = `${carries} ${step.chunk} ${step.microBatch}`, bytes = held.get(key);
      if (bytes !== undefined) pool.give(bytes);
      held.delete(key);
      continue;
    }
    if (step.phase === "wait") continue;
    for (const { direction, carries, chunk, microBatch } of step.messages) {
      const { comes, goes } = sizes(nameOf(carries, chunk));
      if (direction === "receive") held.set(`${carries} ${chunk} ${microBatch}`, pool.take(comes));
      else pool.give(pool.take(goes));
    }
  }
  return pool.bytes;
}

/**
 * What a host takes beside the device, by what `planModel` planned.
 *
 * @param inTurn whether the rank computes in turn with others on one GPU; by default, whether it would where all ranks of a
 * host share one. On software Vulkan none does, and less is taken
 */
export function estimateHostMemory(
  config: Pick<ResolvedConfig, "data" | "runtime">,
  {
    plan,
    zero,
    overlap,
    gatherOverlap,
    stage,
    shapes,
    mesh,
    prefetches,
    microBatches = config.data.micro_num,
    inTurn = (config.runtime.gpu_turns === "always" ||
      (config.runtime.gpu_turns && config.runtime.backend === "webgpu")) &&
      config.runtime.nproc > 1 && computesApart(mesh),
  }: {
    readonly plan: Plan;
    readonly zero: readonly ZeroPlan[];
    readonly overlap: OverlapPlan | undefined;
    readonly gatherOverlap: GatherOverlapPlan | undefined;
    readonly stage: Stage;
    readonly shapes: ReadonlyMap<string, readonly number[]>;
    readonly mesh: Mesh;
    readonly prefetches: Prefetches;
    readonly microBatches?: number;
    readonly inTurn?: boolean;
  },
): HostMemory {
  const { data: { packed_length: tokens }, runtime: { backend } } = config;
  const atOnce = { gradients: inTurn || overlap !== undefined, parameters: gatherOverlap !== undefined };
  const synchronization = sum(zero.map((each) => synchronizationBytes(each, mesh, atOnce)));
  const passes = stagingBytes(plan) + weightBytes(plan, prefetches) + messageBytes(plan, stage, microBatches);
  const reads = [
    ...zero.flatMap(({ reduce, buckets }) => mesh.size(reduce) > 1 ? buckets.map(({ elements }) => 4 * elements) : []),
    ...Object.values(plan.segments).flatMap((segment) => collectivesOf(segment).map(({ source }) => source.bytes)),
    ...Object.values(plan.segments).map(({ passed }) => sum([...passed.values()].map(({ bytes }) => bytes))),
  ];
  const read = Math.min(largestStaging, 2 ** Math.ceil(Math.log2(Math.max(firstStaging, ...reads))));
  const readBack = backend === "webgpu" ? stagingBuffers * read : 0;
  // Tokens, labels, positions, where segments begin and end, types: four bytes each; two batches ahead and one at work.
  const data = 3 * microBatches * tokens * 6 * 4;
  const program = programBytes[backend === "webgpu" ? "webgpu" : "cpu"];
  const start = 4 * Math.max(
    0,
    ...plan.parameters.map(({ name }) => shapes.get(name)!.reduce((product, size) => product * size, 1)),
  );
  const training = synchronization + passes + readBack;
  return { program, synchronization, passes, readBack, data, start, total: program + data + Math.max(start, training) };
}
