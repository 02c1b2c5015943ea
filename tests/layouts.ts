/** Worlds of ranks in this thread, each with its own program on the CPU backend, that train one tiny model together. */
import { openBackend } from "../src/backend/open.ts";
import { createCommunicator } from "../src/comm/collectives/communicator.ts";
import { simulatedWorld } from "../src/comm/transport/simulated.ts";
import { resolveConfig, type ResolvedConfig } from "../src/config/mod.ts";
import type { MicroBatch } from "../src/data/mod.ts";
import type { Traffic } from "../src/graph/collect.ts";
import { runMesh } from "../src/parallel/run_mesh.ts";
import { createWorld, type World } from "../src/parallel/world.ts";
import { drawnMicroBatch } from "../src/train/_testing.ts";
import { initializeOptimizer, initializeTrainer } from "../src/train/initialize.ts";
import { initializeModel } from "../src/train/model.ts";
import type { Trainer } from "../src/train/trainer.ts";

type Section = Record<string, unknown>;

/** A family's model of two layers, with dropout, label smoothing and clipping, so that a layout has to get all right. */
export interface TinyRun {
  readonly model_type: string;
  readonly model?: Section;
  /** Tokens of a micro-batch. @default {16} */
  readonly tokens?: number;
  /** Micro-batches of a step, over all ranks. @default {2} */
  readonly microBatches?: number;
  readonly sections?: Readonly<Record<string, Section>>;
}

/** How it is divided. */
export interface Division {
  readonly ranks: number;
  readonly parallel?: Section;
  /** Fields of the model's section that say how, such as `parallel_output`. */
  readonly model?: Section;
  readonly sections?: Readonly<Record<string, Section>>;
}

const vocabulary = 64;

export function recordOf(run: TinyRun, { ranks, parallel = {}, model = {}, sections = {} }: Division): ResolvedConfig {
  const tokens = run.tokens ?? 16, microBatches = run.microBatches ?? 2;
  const names = new Set([...Object.keys(run.sections ?? {}), ...Object.keys(sections)]);
  return resolveConfig({
    model_type: run.model_type,
    model: {
      num_layers: 2,
      hidden_size: 32,
      num_attention_heads: 4,
      vocab_size: vocabulary,
      mlp_ratio: 2,
      multiple_of: 8,
      drop_rate: 0.1,
      ...run.model,
      ...model,
    },
    data: { seq_len: tokens, micro_bsz: 1, micro_num: microBatches, total_steps: 10 },
    adam: { lr: 1e-2 },
    loss: { label_smoothing: 0.1 },
    hybrid_zero_optimizer: { clip_grad_norm: 1 },
    ckpt: { enable_save_ckpt: false },
    parallel,
    ...Object.fromEntries([...names].map((name) => [name, { ...run.sections?.[name], ...sections[name] }])),
  }, { worldSize: ranks });
}

/** Runs `work` on every rank of a world; what one throws ends all. */
export async function onWorld<T>(
  config: ResolvedConfig,
  ranks: number,
  work: (trainer: Trainer, world: World) => Promise<T>,
): Promise<T[]> {
  const transports = simulatedWorld(ranks);
  try {
    return await Promise.all(transports.map(async (transport, rank) => {
      try {
        const world = createWorld(runMesh(config, { rank, world: ranks }), createCommunicator(transport));
        using backend = await openBackend("cpu");
        const model = await initializeModel(config, { backend, world });
        using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
        return await work(trainer, world);
      } catch (error) {
        transport.abort((error as Error).message);
        throw error;
      }
    }));
  } finally {
    await Promise.all(transports.map((transport) => transport.close()));
  }
}

/**
 * Micro-batches of a step, the same whoever asks: packed rows of several segments, some labels ignored. Steps take two
 * batches in turn, so that there is something to learn.
 */
export function batchOf(run: TinyRun, step: number): MicroBatch[] {
  const tokens = run.tokens ?? 16;
  return Array.from({ length: run.microBatches ?? 2 }, (_, index) => {
    const cut = 1 + (5 * (step % 2) + 3 * index) % (tokens - 1);
    return drawnMicroBatch(`batch ${step % 2} row ${index}`, [cut, tokens - cut], { vocab: vocabulary, ignored: 5 });
  });
}

export interface Curve {
  readonly losses: number[];
  readonly gradNorms: number[];
  /** What this rank's program moved. */
  readonly traffic: readonly Traffic[];
  readonly trainer: Trainer;
}

/** Steps `first` up to `end` of a run, on this rank. */
export async function trainSteps(trainer: Trainer, world: World, run: TinyRun, first = 0, end = 10): Promise<Curve> {
  const losses: number[] = [], gradNorms: number[] = [], { mesh } = world;
  for (let step = first; step < end; step++) {
    const all = batchOf(run, step);
    trainer.zeroGrad();
    const own = all.filter((_, index) => index % mesh.size("data") === mesh.index("data"));
    losses.push((await trainer.executeSchedule({ microBatches: own, globalRows: all.length })).loss);
    gradNorms.push((await trainer.step()).gradNorm);
  }
  return { losses, gradNorms, traffic: trainer.model.program.traffic, trainer };
}
