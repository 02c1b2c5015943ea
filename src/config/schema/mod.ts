/** The run record: every section and field that there is. */
import { z } from "zod";
import { ckptSchema } from "./ckpt.ts";
import { dataSchema } from "./data.ts";
import { modelSchema, moeSchema } from "./model.ts";
import { monitorSchema } from "./monitor.ts";
import {
  adamSchema,
  beta2SchedulerSchema,
  gradScalerSchema,
  hybridZeroOptimizerSchema,
  lossSchema,
  lrSchedulerSchema,
} from "./optimization.ts";
import { parallelSchema } from "./parallel.ts";
import { runtimeSchema } from "./runtime.ts";
import { topFields } from "./top.ts";

export const configSchema = z.strictObject({
  ...topFields,
  model: modelSchema,
  data: dataSchema,
  adam: adamSchema,
  lr_scheduler: lrSchedulerSchema,
  beta2_scheduler: beta2SchedulerSchema,
  loss: lossSchema,
  grad_scaler: gradScalerSchema,
  hybrid_zero_optimizer: hybridZeroOptimizerSchema,
  parallel: parallelSchema,
  ckpt: ckptSchema,
  monitor: monitorSchema,
  moe: moeSchema,
  runtime: runtimeSchema,
});

type DeepReadonly<T> = T extends readonly (infer E)[] ? readonly DeepReadonly<E>[]
  : T extends object ? { readonly [K in keyof T]: DeepReadonly<T[K]> }
  : T;

/** The complete record: every field present, derived values computed, nothing left to decide. Plain data, frozen. */
export type ResolvedConfig = DeepReadonly<z.output<typeof configSchema>>;
