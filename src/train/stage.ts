/**
 * The part of a model that a rank holds: all of it, or, in a pipeline, the chunks of its stage, with the schedule that the
 * stages play together. It follows from the record and the mesh alone, so that all stages come to the same without a word.
 */
import type { ResolvedConfig } from "../config/mod.ts";
import { chunkOf, cut, type LayerSpan } from "../graph/cut.ts";
import type { Graph } from "../graph/graph.ts";
import type { ChunkGraph, Outputs } from "../graph/plan.ts";
import type { Mesh } from "../parallel/mesh.ts";
import { partitionLayers } from "../parallel/stages.ts";
import { framesOf, type ScheduleStep } from "../pipeline/schedule.ts";
import { type ScheduleName, scheduleOf } from "../pipeline/schedules.ts";

/** A traced pass over the whole model, and what the host reads of it. */
export interface TracedPass {
  readonly graph: Graph;
  readonly outputs: Outputs;
}

/** A parameter that several stages hold: a tied head is the embedding of the first stage. */
export interface SharedParameter {
  readonly name: string;
  /** Stages that hold it, ascending. The first one counts its gradient and writes it to checkpoints. */
  readonly stages: readonly number[];
}

export interface Stage {
  readonly chunks: readonly ChunkGraph[];
  /** Parameters of this stage that other stages hold too. */
  readonly shared: readonly SharedParameter[];
  /** Micro-batches in flight at once, by chunk. */
  readonly frames: readonly number[];
  /** What this rank does in a step of so many micro-batches. */
  schedule(microBatches: number, options?: { readonly forwardOnly?: boolean }): readonly ScheduleStep[];
}

/** Where the layers are, and in which order each stage works: no graph is needed to know it. */
export interface StageSchedule {
  readonly stages: number;
  /** Layers of each chunk of this stage. */
  readonly own: readonly LayerSpan[];
  /** Layers of every piece of the model, from the front: chunk `c` of stage `s` is piece `c · stages + s`. */
  readonly pieces: readonly LayerSpan[];
  readonly frames: Stage["frames"];
  /** Whether backward passes run in halves. */
  readonly split: boolean;
  readonly schedule: Stage["schedule"];
}

/**
 * @param microBatches most of one step on this rank
 * @throws {RangeError} when the layers cannot be dealt out
 */
export function stageSchedule(
  config: ResolvedConfig,
  mesh: Pick<Mesh, "size" | "index">,
  microBatches = config.data.micro_num,
): StageSchedule {
  const { model, parallel: { pipeline } } = config;
  const stages = mesh.size("pipeline"), stage = mesh.index("pipeline"), chunks = stages === 1 ? 1 : model.num_chunks;
  const spans = partitionLayers(model.num_layers, { stages, chunks }), own = spans[stage]!;
  const pieces = own.flatMap((_, chunk) => spans.map((ranges) => ranges[chunk]!));
  const name = pipeline.schedule as ScheduleName;
  const schedules = new Map<string, readonly ScheduleStep[]>();
  const schedule: Stage["schedule"] = (microBatches, { forwardOnly = false } = {}) => {
    if (microBatches === 0) return [];
    const key = `${microBatches} ${forwardOnly}`, shape = { stages, chunks, microBatches, forwardOnly };
    const steps = schedules.get(key) ?? scheduleOf({ name, overlap: pipeline.interleaved_overlap, ...shape }, stage);
    schedules.set(key, steps);
    return steps;
  };
  const planned = schedule(microBatches);
  // While batches grow, a step may hold more at once than a full one: of a single round interleaving warms up with all.
  const sizes = stages > 1 && chunks > 1 && config.data.rampup_batch_size.trim() !== ""
    ? Array.from({ length: Math.floor(microBatches / stages) }, (_, rounds) => (rounds + 1) * stages)
    : [microBatches];
  return {
    stages,
    own,
    pieces,
    frames: own.map((_, chunk) => Math.max(...sizes.map((size) => framesOf(schedule(size), chunk)))),
    split: planned.some((step) => step.kind === "run" && step.segment === "backward input"),
    schedule,
  };
}

/**
 * @param microBatches most of one step on this rank
 * @param join as of `chunkOf`
 * @throws {RangeError} when the layers cannot be dealt out
 */
export function planStage(
  config: ResolvedConfig,
  mesh: Pick<Mesh, "size" | "index">,
  { training, evaluation }: { readonly training: TracedPass; readonly evaluation: TracedPass },
  microBatches = config.data.micro_num,
  join?: { readonly largest: number; readonly alignment: number },
): Stage {
  const { stages, own, pieces, frames, split, schedule } = stageSchedule(config, mesh, microBatches);
  const stage = mesh.index("pipeline"), held = own.map((_, chunk) => chunk * stages + stage);
  const cutTraining = cut(training.graph, pieces, held), cutEvaluation = cut(evaluation.graph, pieces, held);
  /** The first layers of every chunk, as in InternEvo. */
  const recompute = (layer: number) => {
    const { first, end } = pieces.find(({ first, end }) => first <= layer && layer < end)!;
    return layer - first < Math.trunc((end - first) * config.model.checkpoint);
  };
  return {
    chunks: held.map((_, chunk) =>
      chunkOf({
        training: { piece: cutTraining.pieces[chunk]!, outputs: training.outputs },
        evaluation: { piece: cutEvaluation.pieces[chunk]!, outputs: evaluation.outputs },
        recompute,
        split,
        ...(join && { join }),
      })
    ),
    shared: [...cutTraining.readers].map(([name, readers]) => (
      { name, stages: [...new Set([...readers].map((piece) => piece % stages))].sort((a, b) => a - b) }
    )).filter((each) => each.stages.length > 1 && each.stages.includes(stage)),
    frames,
    schedule,
  };
}
