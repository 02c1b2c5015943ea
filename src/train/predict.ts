/**
 * What a layout would do on machines that are not there: memory of each stage, bytes on each axis, the bubble, and the time
 * of a step. The plans are those that a run would execute; their instructions are charged by what devices and links were
 * measured to do (`hardware.ts`), and the stages' schedules are played against each other (`src/pipeline/simulate.ts`).
 */
import { adamw } from "../../kernels/adamw/mod.ts";
import { squaredNorm } from "../../kernels/reduce/mod.ts";
import { parallelSizes, type ResolvedConfig } from "../config/mod.ts";
import type { LayerSpan } from "../graph/cut.ts";
import { estimateMemory, type MemoryEstimate, type Segment, type SegmentName } from "../graph/plan.ts";
import { getMegatronFlops } from "../observe/flops.ts";
import { adamwBytes } from "../optimizer/adamw.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { simulate, type Timeline } from "../pipeline/simulate.ts";
import { chargesOf, type Machines } from "./charge.ts";
import { chargeSync } from "./charge_sync.ts";
import { planModel, prefetchOf } from "./model.ts";
import { stageSchedule } from "./stage.ts";

export interface StagePrediction {
  /** Layers of each chunk. */
  readonly layers: readonly LayerSpan[];
  /** Micro-batches in flight, by chunk. */
  readonly frames: readonly number[];
  readonly parameters: number;
  readonly memory: MemoryEstimate;
  /** Seconds of one forward and one backward pass of all chunks, collectives and copies to the host included. */
  readonly forward: number;
  readonly backward: number;
}

export interface Prediction {
  readonly stages: readonly StagePrediction[];
  /** Parameters of the whole model. */
  readonly parameters: number;
  /** Bytes that a rank sends in a step, by axis: the most of any stage. */
  readonly traffic: Readonly<Record<string, number>>;
  /** Share of the pipeline's time that is idle. */
  readonly bubble: number;
  /** Seconds of a step. */
  readonly step: number;
  /** With experts whose load is data: of a step in which as many tokens come to each rank as it has room for. */
  readonly stepAtMost?: number;
  /** Its parts: passes over the data, gradients and parameters between ranks, the update. */
  readonly parts: { readonly pipeline: number; readonly gradients: number; readonly update: number };
  readonly tokensPerSecond: number;
  readonly tokensPerSecondPerGpu: number;
  /** TFLOP/s of the model's own work on each device, and its share of what matrix products reach there. */
  readonly tflops: number;
  readonly utilisation: number;
  /** The most that any rank holds. */
  readonly memory: number;
  /** The most that the ranks of any device hold together, and whether it has that. */
  readonly deviceMemory: number;
  readonly fits: boolean;
  readonly timeline: Timeline;
}

const sum = (values: Iterable<number>) => [...values].reduce((total, value) => total + value, 0);
const passedBytes = ({ passed }: Segment) => sum([...passed.values()].map(({ bytes }) => bytes));
const handedBytes = ({ inputs }: Segment) =>
  sum([...inputs].map(([input, { bytes }]) => input.startsWith("stage_") ? bytes : 0));

/** Ranks that share the device of `rank`: all of them, and those of the same stage. */
function companions(config: ResolvedConfig, { world, perDevice = 1 }: Machines, rank: number) {
  const first = rank - rank % perDevice, perStage = world / parallelSizes(config, world).pp;
  const all = Array.from({ length: Math.min(perDevice, world - first) }, (_, i) => first + i);
  const stageOf = (each: number) => Math.floor(each / perStage);
  return { all: all.map(stageOf), ofStage: all.filter((each) => stageOf(each) === stageOf(rank)).length };
}

/** One rank of a stage: what a pass takes, and what it sends in a step. */
function chargeStage(config: ResolvedConfig, machines: Machines, stage: number) {
  const { world, device } = machines, { data } = config, rank = stage * world / parallelSizes(config, world).pp;
  const mesh = runMesh(config, { rank, world });
  const { ofStage } = companions(config, machines, rank), charges = chargesOf(config, machines, mesh, ofStage);
  const { plan, zero, terms, mode, overlap, gatherOverlap, stage: { shared }, shapes } = planModel(
    config,
    device,
    mesh,
  );
  const traffic: Record<string, number> = {};
  const send = (axis: string, bytes: number) => {
    if (bytes > 0) traffic[axis] = (traffic[axis] ?? 0) + bytes;
  };

  const seconds = new Map<SegmentName, number>(),
    most = new Map<SegmentName, number>(),
    messages = new Map<SegmentName, number>();
  const mirrored = new Map<string, number>(), prefetch = prefetchOf(config);
  let busy = 0;
  for (const [name, segment] of Object.entries(plan.segments) as [SegmentName, Segment][]) {
    if (name.startsWith("evaluate")) continue;
    const charge = charges.segment(segment, { prefetch }), passed = passedBytes(segment), handed = handedBytes(segment);
    for (const [axis, bytes] of charge.sent) send(axis, bytes * data.micro_num);
    for (const [place, bytes] of charge.mirrored) mirrored.set(place, bytes);
    send("pipeline", passed * data.micro_num);
    messages.set(name, passed);
    const messaging = charges.read(passed) + charges.copy(passed) + charges.upload(handed);
    seconds.set(name, charge.seconds + messaging);
    const uneven = segment.instructions.some((each) => each.kind === "collective" && each.operator === "exchange");
    most.set(name, messaging + (uneven ? charges.segment(segment, { prefetch, load: "most" }) : charge).seconds);
    busy += charges.turns * charge.device * data.micro_num;
  }

  const sync = chargeSync({ plan, zero, overlap, gatherOverlap, mesh, charges });
  send("data", sync.sent);
  let reduction = sync.gradients;
  for (const { elements } of terms) {
    const bytes = 4 * elements;
    reduction += charges.read(bytes) + charges.collective("all-reduce", mode.sumsOver, bytes) + charges.upload(bytes);
  }
  for (const { name } of shared) {
    const { bytes } = plan.parameters.find((parameter) => parameter.name === name)!;
    const { latency, bandwidth } = charges.link("pipeline");
    reduction += charges.read(bytes) + charges.upload(bytes) + latency + bytes / bandwidth;
    send("pipeline", bytes);
  }
  const gathers = sync.parameters + charges.read(sum(mirrored.values()));
  const update = sum(plan.arenas) / device.bandwidth +
    sum(
      plan.state.runs.map(({ bytes }) =>
        charges.kernel(squaredNorm({ length: bytes / 4 })) + charges.kernel(adamw({ length: bytes / 4 }))
      ),
    );
  return {
    plan,
    seconds,
    most,
    busy,
    messages,
    traffic,
    reduction,
    gathers,
    update: charges.turns * update,
    waits: shared.length > 0,
    shapes,
    charges,
  };
}

/** Plans of stages that differ only in their place, kept for the next layout that has the same. */
export type PlanCache = Map<string, ReturnType<typeof chargeStage>>;

/**
 * @param options `cache`: plans of earlier predictions for the same model and machines
 * @throws {RangeError} when the sizes do not fit the world, or a tensor fits no binding of the device
 */
export function predict(
  config: ResolvedConfig,
  machines: Machines,
  { cache = new Map() }: { readonly cache?: PlanCache } = {},
): Prediction {
  const { world, device } = machines, sizes = parallelSizes(config, world), { data, model } = config;
  const all = Array.from({ length: sizes.pp }, (_, stage) => {
    const mesh = runMesh(config, { rank: stage * world / sizes.pp, world });
    const { own, frames, split, schedule } = stageSchedule(config, mesh);
    // In the middle of a pipeline, stages with as many layers are alike.
    const ends = [stage === 0, stage === sizes.pp - 1];
    const widths = own.map(({ first, end }) => [end - first, first === 0, end === model.num_layers]);
    const { ofStage } = companions(config, machines, mesh.rank);
    const key = JSON.stringify([
      sizes,
      config.parallel.tensor,
      model.checkpoint,
      data.micro_num,
      split,
      ends,
      widths,
      ofStage,
    ]);
    const charged = cache.get(key) ?? chargeStage(config, machines, stage);
    cache.set(key, charged);
    const memory = estimateMemory(charged.plan, {
      frames,
      microBatches: data.micro_num,
      optimizerBytes: adamwBytes(charged.plan.state),
    });
    return { ...charged, own, frames, schedule: schedule(data.micro_num), memory };
  });

  const pipelineLink = all[0]!.charges.link("pipeline");
  const play = (load: "seconds" | "most") =>
    simulate(all.map(({ schedule }) => schedule), {
      run: (segment, { stage, chunk }) => all[stage]![load].get(`${segment} ${chunk}`)!,
      transfer({ carries, chunk }, stage) {
        const { messages } = all[stage]!;
        const bytes = carries === "activation"
          ? messages.get(`forward ${chunk}`)
          : messages.get(`backward ${chunk}`) ?? messages.get(`backward input ${chunk}`);
        return (bytes ?? 0) / pipelineLink.bandwidth;
      },
      latency: pipelineLink.latency,
    });
  const timeline = play("seconds");

  const traffic: Record<string, number> = {};
  for (const stage of all) {
    for (const [axis, bytes] of Object.entries(stage.traffic)) traffic[axis] = Math.max(traffic[axis] ?? 0, bytes);
  }
  // Stages that share a device wait for it, whoever waits for whom.
  const perStage = world / sizes.pp;
  const together = all.map((_, stage) => [...new Set(companions(config, machines, stage * perStage).all)]);
  const worked = Math.max(...together.map((stages) => sum(stages.map((stage) => all[stage]!.busy))));
  const pipeline = Math.max(timeline.seconds, worked), late = pipeline - timeline.seconds;
  // A stage reduces its gradients once its own passes are over, unless another one has terms of them.
  const reduced = all.map(({ reduction, waits }, stage) => {
    const end = Math.max(0, ...timeline.runs.map((run) => run.stage === stage ? run.end : 0));
    return (waits ? timeline.seconds : end) + reduction;
  });
  const parts = {
    pipeline,
    // All agree on the norm before anyone updates.
    gradients: Math.max(0, Math.max(...reduced) + late - pipeline) + Math.max(...all.map(({ gathers }) => gathers)),
    update: Math.max(...all.map(({ update }) => update)),
  };
  const step = parts.pipeline + parts.gradients + parts.update;
  const uneven = all.some(({ seconds, most }) => [...most].some(([name, each]) => each > seconds.get(name)!));
  const tokens = sizes.dp * data.micro_num * data.packed_length, tokensPerSecond = tokens / step;
  const deviceCount = Math.ceil(world / (machines.perDevice ?? 1));
  const tflops = getMegatronFlops({
    secondsPerStep: step,
    seqLen: data.seq_len,
    hiddenSize: model.hidden_size,
    numLayers: model.num_layers,
    vocabSize: model.vocab_size,
    globalBatchSize: tokens / data.seq_len,
    worldSize: deviceCount,
    mlpRatio: model.mlp_ratio,
    useSwiglu: model.use_swiglu,
  });
  const memory = Math.max(...all.map(({ memory }) => memory.total));
  const deviceMemory = Math.max(
    ...all.map((_, stage) =>
      sum(companions(config, machines, stage * perStage).all.map((other) => all[other]!.memory.total))
    ),
  );
  const passes = (seconds: ReadonlyMap<SegmentName, number>, kind: string) =>
    sum([...seconds].map(([name, each]) => name.startsWith(kind) ? each : 0));
  return {
    stages: all.map(({ own, frames, plan, memory, seconds }) => ({
      layers: own,
      frames,
      parameters: sum(plan.parameters.map(({ bytes }) => bytes / 4)),
      memory,
      forward: passes(seconds, "forward"),
      backward: passes(seconds, "backward"),
    })),
    parameters: sum([...all[0]!.shapes.values()].map((shape) => shape.reduce((product, size) => product * size, 1))),
    traffic,
    // A device that its ranks keep busy is not idle, though each of them waits.
    bubble: late > 0 ? Math.max(0, 1 - worked / pipeline) : timeline.bubble,
    step,
    ...(uneven ? { stepAtMost: Math.max(step, step + play("most").seconds - timeline.seconds) } : {}),
    parts,
    tokensPerSecond,
    tokensPerSecondPerGpu: tokensPerSecond / deviceCount,
    tflops,
    utilisation: tflops * 1e12 / all[0]!.charges.matmulRate,
    memory,
    deviceMemory,
    fits: deviceMemory <= device.memory,
    timeline,
  };
}
