/** `initializeOptimizer` and `initializeTrainer`, as users of InternEvo know them. */
import { AdamW } from "../optimizer/adamw.ts";
import { Beta2Scheduler } from "../optimizer/beta2.ts";
import { DynamicGradScaler } from "../optimizer/grad_scaler.ts";
import { FineTuneCosineAnnealingWarmupLR } from "../optimizer/learning_rate.ts";
import { Synchronizer } from "../optimizer/synchronize.ts";
import { solo } from "../parallel/world.ts";
import type { Model } from "./model.ts";
import { type Optimizer, Trainer } from "./trainer.ts";
import { turnsOf } from "./turn.ts";

/** AdamW on the model's device with the schedules that the run record asks for. */
export async function initializeOptimizer(model: Model): Promise<Optimizer> {
  const { adam, lr_scheduler, beta2_scheduler, grad_scaler, model: { dtype } } = model.config;
  const device = await AdamW.create(model.program);
  const { program, world } = model;
  return {
    device,
    synchronizers: [
      ...model.zero.map(({ reduce, partition, buckets, gathers, wire }) =>
        new Synchronizer({
          program,
          data: world.group(reduce),
          zero: world.group(partition),
          buckets,
          gathers,
          ...(wire && { wire }),
          // As all ranks see it: where some have a GPU of their own, they do not know of the others' turns.
          inTurn: () => model.gatherOverlap !== undefined && turnsOf(model)?.ranks.length === world.mesh.world,
        })
      ),
      ...(model.terms.length === 0 ? [] : [
        new Synchronizer({
          program,
          data: world.group(model.mode.sumsOver),
          zero: solo.group("zero"),
          buckets: model.terms,
          gathers: [],
        }),
      ]),
    ],
    learningRate: new FineTuneCosineAnnealingWarmupLR({
      baseLearningRate: adam.lr,
      totalSteps: lr_scheduler.total_steps,
      initSteps: lr_scheduler.init_steps,
      warmupRatio: lr_scheduler.warmup_ratio,
      etaMin: lr_scheduler.eta_min,
      lastEpoch: lr_scheduler.last_epoch,
    }),
    beta2: new Beta2Scheduler({
      initBeta2: beta2_scheduler.init_beta2,
      c: beta2_scheduler.c,
      curIter: beta2_scheduler.cur_iter,
      optimizerBeta2: adam.adam_beta2,
    }),
    gradScaler: new DynamicGradScaler({
      dtype,
      initialScale: grad_scaler.fp16.initial_scale,
      minScale: grad_scaler.fp16.min_scale,
      // Without a bound a scale that nothing needs would double until the gradients' norm overflows.
      maxScale: grad_scaler.max_scale ?? (dtype === "bfloat16" ? 2 ** 24 : null),
      growthInterval: grad_scaler.fp16.growth_interval,
      growthFactor: grad_scaler.growth_factor,
      backoffFactor: grad_scaler.backoff_factor,
      hysteresis: grad_scaler.hysteresis,
      warn: () => {}, // of the defaults, which are float16's, there is nothing to warn
    }),
    [Symbol.dispose]: () => device[Symbol.dispose](),
  };
}

/** A trainer that owns the model and the optimizer given to it. */
export function initializeTrainer({ model, optimizer }: { model: Model; optimizer: Optimizer }): Trainer {
  return new Trainer(model, optimizer);
}
