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
import { planModel } from "./model.ts";
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
  /** Its parts: passes over the data, gradients and parameters between ranks, the update. */
  readonly parts: { readonly pipeline: number; readonly gradients: number; readonly update: number };
  readonly tokensPerSecond: number;
  readonly tokensPerSecondPerGpu: number;
  /** TFLOP/s of the model's own work on each device, and its share of what matrix products reach there. */
  readonly tflops: number;
  readonly utilisation: number;
  /** The most that any rank holds, and whether the device has it. */
  readonly memory: number;
  readonly fits: boolean;
  readonly timeline: Timeline;
}

const sum = (values: Iterable<number>) => [...values].reduce((total, value) => total + value, 0);
const passedBytes = ({ passed }: Segment) => sum([...passed.values()].map(({ bytes }) => bytes));
const handedBytes = ({ inputs }: Segment) =>
  sum([...inputs].map(([input, { bytes }]) => input.startsWith("stage_") ? bytes : 0));

/** One rank of a stage: what a pass takes, and what it sends in a step. */
function chargeStage(config: ResolvedConfig, machines: Machines, stage: number) {
  const { world } = machines, { data } = config;
  const mesh = runMesh(config, { rank: stage * world / parallelSizes(config, world).pp, world });
  const charges = chargesOf(config, machines, mesh), { device } = machines;
  const { plan, zero, stage: { shared }, shapes } = planModel(config, device, mesh);
  const traffic: Record<string, number> = {};
  const send = (axis: string, bytes: number) => {
    if (bytes > 0) traffic[axis] = (traffic[axis] ?? 0) + bytes;
  };

  const seconds = new Map<SegmentName, number>(), messages = new Map<SegmentName, number>();
  for (const [name, segment] of Object.entries(plan.segments) as [SegmentName, Segment][]) {
    if (name.startsWith("evaluate")) continue;
    const charge = charges.segment(segment), passed = passedBytes(segment), handed = handedBytes(segment);
    for (const [axis, bytes] of charge.sent) send(axis, bytes * data.micro_num);
    send("pipeline", passed * data.micro_num);
    messages.set(name, passed);
    seconds.set(name, charge.seconds + charges.host(passed) + charges.host(handed));
  }

  // Gradients over the ranks with other data, to all or to those that update them; then what those have updated.
  let gradients = 0;
  for (const { reduce, partition, buckets, gathers } of zero) {
    const size = mesh.size(reduce), owners = mesh.size(partition), toOwners = owners === size;
    for (const { elements } of size > 1 ? buckets : []) {
      const whole = 4 * elements, into = toOwners ? whole / owners : whole;
      const charge = charges.collective(toOwners ? "reduce-scatter" : "all-reduce", reduce, {
        whole,
        from: whole,
        into,
      });
      gradients += charge.seconds;
      send("data", charge.sent);
    }
    for (const { elements } of owners > 1 ? gathers : []) {
      const whole = 4 * elements;
      const charge = charges.collective("all-gather", partition, { whole, from: whole / owners, into: whole });
      gradients += charge.seconds;
      send("data", charge.sent);
    }
  }
  for (const { name } of shared) {
    const { bytes } = plan.parameters.find((parameter) => parameter.name === name)!;
    const { latency, bandwidth } = charges.link("pipeline");
    gradients += 2 * charges.host(bytes) + latency + bytes / bandwidth;
    send("pipeline", bytes);
  }
  const update = sum(plan.arenas) / device.bandwidth +
    sum(
      plan.state.runs.map(({ bytes }) =>
        charges.kernel(squaredNorm({ length: bytes / 4 })) + charges.kernel(adamw({ length: bytes / 4 }))
      ),
    );
  return { plan, seconds, messages, traffic, gradients, update, shapes, charges };
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
    const key = JSON.stringify([sizes, config.parallel.tensor, model.checkpoint, data.micro_num, split, ends, widths]);
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
  const timeline = simulate(all.map(({ schedule }) => schedule), {
    run: (segment, { stage, chunk }) => all[stage]!.seconds.get(`${segment} ${chunk}`)!,
    transfer({ carries, chunk }, stage) {
      const { messages } = all[stage]!;
      const bytes = carries === "activation"
        ? messages.get(`forward ${chunk}`)
        : messages.get(`backward ${chunk}`) ?? messages.get(`backward input ${chunk}`);
      return (bytes ?? 0) / pipelineLink.bandwidth;
    },
    latency: pipelineLink.latency,
  });

  const traffic: Record<string, number> = {};
  for (const stage of all) {
    for (const [axis, bytes] of Object.entries(stage.traffic)) traffic[axis] = Math.max(traffic[axis] ?? 0, bytes);
  }
  const parts = {
    pipeline: timeline.seconds,
    gradients: Math.max(...all.map(({ gradients }) => gradients)),
    update: Math.max(...all.map(({ update }) => update)),
  };
  const step = parts.pipeline + parts.gradients + parts.update;
  const tokens = sizes.dp * data.micro_num * data.packed_length, tokensPerSecond = tokens / step;
  const tflops = getMegatronFlops({
    secondsPerStep: step,
    seqLen: data.seq_len,
    hiddenSize: model.hidden_size,
    numLayers: model.num_layers,
    vocabSize: model.vocab_size,
    globalBatchSize: tokens / data.seq_len,
    worldSize: world,
    mlpRatio: model.mlp_ratio,
    useSwiglu: model.use_swiglu,
  });
  const memory = Math.max(...all.map(({ memory }) => memory.total));
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
    bubble: timeline.bubble,
    step,
    parts,
    tokensPerSecond,
    tokensPerSecondPerGpu: tokensPerSecond / world,
    tflops,
    utilisation: tflops * 1e12 / all[0]!.charges.matmulRate,
    memory,
    fits: memory <= device.memory,
    timeline,
  };
}
