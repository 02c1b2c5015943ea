/** Worlds of ranks in this thread, each with its own program on the CPU backend, that train one tiny model together. */
import { openBackend } from "../src/backend/open.ts";
import type { Transport } from "../src/comm/transport/transport.ts";
import { resolveConfig, type ResolvedConfig } from "../src/config/mod.ts";
import type { MicroBatch } from "../src/data/mod.ts";
import type { Traffic } from "../src/graph/collect.ts";
import type { World } from "../src/parallel/world.ts";
import { drawnMicroBatch, openTrainer } from "../src/train/_testing.ts";
import type { Trainer } from "../src/train/trainer.ts";
import { together } from "./worlds.ts";

type Section = Record<string, unknown>;

/** A tiny model of a family, with dropout, label smoothing and clipping, so that a layout has to get all right. */
export interface TinyRun {
  readonly model_type: string;
  readonly model?: Section;
  /** Tokens of a micro-batch. @default {16} */
  readonly tokens?: number;
  /** Micro-batches of a step, over all ranks. @default {2} */
  readonly microBatches?: number;
  /** @default {1} */
  readonly moeLossCoefficient?: number;
  readonly grad_scaler?: Section;
  /** @default {1e-2} */
  readonly learningRate?: number;
  /** Modules that register the model. */
  readonly plugins?: readonly string[];
}

/** How it is divided. */
export interface Division {
  readonly ranks: number;
  readonly parallel?: Section;
  /** Fields of the model's section that say how, such as `parallel_output`. */
  readonly model?: Section;
  readonly hybrid_zero_optimizer?: Section;
}

const vocabulary = 64;

export function recordOf(run: TinyRun, division: Division): ResolvedConfig {
  const { tokens = 16, microBatches = 2 } = run, { ranks, parallel = {}, model, hybrid_zero_optimizer } = division;
  const sizeOf = (section: unknown) => (section as { size?: number } | undefined)?.size ?? 1;
  const replicas = ranks / sizeOf(parallel.tensor) / sizeOf(parallel.pipeline);
  return resolveConfig({
    model_type: run.model_type,
    model: {
      num_layers: 2,
      hidden_size: 32,
      num_attention_heads: 4,
      num_kv_attention_heads: 4,
      vocab_size: vocabulary,
      mlp_ratio: 2,
      multiple_of: 8,
      drop_rate: 0.1,
      ...run.model,
      ...model,
    },
    data: { seq_len: tokens, micro_bsz: 1, micro_num: Math.ceil(microBatches / replicas), total_steps: 10 },
    adam: { lr: run.learningRate ?? 1e-2 },
    loss: { label_smoothing: 0.1, moe_loss_coeff: run.moeLossCoefficient ?? 1 },
    hybrid_zero_optimizer: { clip_grad_norm: 1, ...hybrid_zero_optimizer },
    ...(run.grad_scaler && { grad_scaler: run.grad_scaler }),
    ckpt: { enable_save_ckpt: false },
    parallel,
    ...(run.plugins && { runtime: { plugins: run.plugins } }),
  }, { worldSize: ranks });
}

/** Runs `work` on every rank of a world of trainers; what one throws ends all. */
export const onWorld = <T>(
  config: ResolvedConfig,
  ranks: number,
  work: (trainer: Trainer, world: World, transport: Transport) => Promise<T>,
  join?: Parameters<typeof together>[2],
): Promise<T[]> =>
  together(ranks, async (worldOf, _rank, transport) => {
    const world = worldOf(config);
    using backend = await openBackend("cpu");
    using trainer = await openTrainer(config, backend, world);
    return await work(trainer, world, transport);
  }, join);

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
  /** What the collectives of this rank's program took part in. */
  readonly traffic: readonly Traffic[];
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
  return { losses, gradNorms, traffic: trainer.model.program.traffic };
}
