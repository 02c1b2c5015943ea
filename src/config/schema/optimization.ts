import { z } from "zod";
import { bool, float, int, nullableFloat, works } from "../field.ts";

export const gradScalerSchema = z.strictObject({
  fp16: z.strictObject({
    initial_scale: works(float({ above: 0 }).default(65536), "First loss scale; 1 when model.dtype is float32."),
    min_scale: works(nullableFloat({ above: 0 }).default(null), "The scale never falls below this."),
    growth_interval: works(int({ min: 1 }).default(1000), "Steps without overflow before the scale grows."),
  }),
  growth_factor: works(float({ min: 1 }).default(2), "What the scale is multiplied by when it grows."),
  backoff_factor: works(float({ above: 0, max: 1 }).default(0.5), "What it is multiplied by after overflows."),
  max_scale: works(nullableFloat({ above: 0 }).default(null), "The scale never rises above this."),
  hysteresis: works(int({ min: 0 }).default(2), "Overflows before the scale shrinks."),
}).describe("Loss scale, for types narrower than float32");

export const hybridZeroOptimizerSchema = z.strictObject({
  clip_grad_norm: works(float({ min: 0 }).default(0), "Gradients longer than this are shortened to it; 0 for never."),
  overlap_sync_grad: works(
    bool().default(false),
    "Reduce gradients between ranks during the last backward pass, bucket by bucket.",
  ),
  overlap_sync_param: works(
    bool().default(false),
    "Gather updated parameters while the next step's first forward passes run, not before this step ends.",
  ),
  reduce_bucket_size: works(
    int({ min: 1 }).default(512 * 1024 * 1024),
    "Most elements that one gradient reduction carries; Troupe never puts more than 16 Mi into one.",
  ),
  reduce_comm_dtype: works(
    z.enum(["float32", "float16", "bfloat16"]).default("float32"),
    "As what gradients travel between data-parallel ranks: a half type is half the bytes, for a slow network. Sums are " +
      "float32, of gradients that are rounded before and once more at the end.",
  ),
  use_split_tensor_optim: works(
    bool().default(false),
    "Split every parameter over the ranks, instead of dealing them out whole.",
  ),
  all_gather_size: works(
    int({ min: 1 }).default(512 * 1024 * 1024),
    "Bytes of updated parameters gathered in one call; Troupe never puts more than 64 MiB into one.",
  ),
}).describe("The optimizer around AdamW: clipping, and the division of its state over ranks");

export const adamSchema = z.strictObject({
  lr: works(float({ min: 0 }), "Highest learning rate.", { example: 1e-4 }),
  adam_beta1: works(float({ min: 0, max: 1 }).default(0.9), "Decay of the first moment."),
  adam_beta2: works(float({ min: 0, max: 1 }).default(0.95), "Decay of the second moment."),
  adam_beta2_c: works(float({ min: 0 }).default(0), "Exponent for the schedule of beta2."),
  adam_eps: works(float({ min: 0 }).default(1e-8), "Added to the root of the second moment."),
  weight_decay: works(float({ min: 0 }).default(0.01), "Decoupled weight decay, on every parameter."),
}).describe("AdamW");

export const lrSchedulerSchema = z.strictObject({
  total_steps: works(int({ min: 1 }), "Steps over which the rate falls.", { derived: "data.total_steps" }),
  init_steps: works(int({ min: 0 }).default(0), "First steps, with rate 0."),
  warmup_ratio: works(float({ min: 0, max: 1 }).default(0), "Fraction of total_steps in which the rate rises."),
  eta_min: works(float({ min: 0 }).default(0), "Rate at the end of the cosine."),
  last_epoch: works(int({ min: -1 }).default(-1), "Step to begin after; -1 for the beginning."),
}).describe("Learning rate: warm-up, then a cosine");

export const beta2SchedulerSchema = z.strictObject({
  init_beta2: works(float({ min: 0, max: 1 }), "First value of beta2.", { derived: "adam.adam_beta2" }),
  c: works(float(), "beta2 becomes max(init_beta2, 1 - step^-c); 0 or less keeps it.", {
    derived: "adam.adam_beta2_c",
  }),
  cur_iter: works(int({ min: -1 }).default(-1), "Step to begin after; -1 for the beginning."),
}).describe("Schedule of AdamW's beta2");

export const lossSchema = z.strictObject({
  label_smoothing: works(
    float({ min: 0, max: 1 }).default(0),
    "Share of the target spread evenly over the vocabulary.",
  ),
  moe_loss_coeff: works(float({ min: 0 }).default(1), "Weight of the experts' balance in the loss."),
  op_type: works(
    z.enum(["py_vocab_parallel", "flash_vocab_parallel", "torch_naive", "apex_naive", "py_naive"])
      .default("py_vocab_parallel"),
    "Implementation of cross entropy. The naive ones need model.parallel_output: false.",
    { notice: "changes nothing: there is one implementation, and the loss is the same" },
  ),
}).describe("The loss");
