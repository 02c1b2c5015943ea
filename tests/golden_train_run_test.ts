/**
 * Whole trainings against InternEvo's on one rank in `float32` (`internevo/models/train_run.json`): data, losses, norms,
 * schedules, reports, evaluation and the final weights. Limits are those of `troupe verify`: Adam's first steps are as large
 * for the smallest gradients, so that a disturbance of the initial weights in their last bits moves a loss by 1e-4 in places.
 */
import { assert, assertAlmostEquals, assertEquals, assertLess } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import type { Backend } from "../src/backend/backend.ts";
import { resolveConfig, type ResolvedConfig } from "../src/config/mod.ts";
import { createTrainLoader, createValidationLoaders, type MicroBatch, type TrainLoader } from "../src/data/mod.ts";
import { getModule } from "../src/models/registry.ts";
import { AccPerplex } from "../src/observe/metrics.ts";
import { stepRecord } from "../src/observe/step_record.ts";
import { TgsStatistic } from "../src/observe/tgs_statistic.ts";
import { evaluateSets } from "../src/train/evaluate.ts";
import { initializeOptimizer, initializeTrainer } from "../src/train/initialize.ts";
import { initializeModel, type Model } from "../src/train/model.ts";
import type { Trainer } from "../src/train/trainer.ts";
import { defaultTolerances } from "../src/train/verify.ts";
import { exportTensor, importWeights, norm } from "../src/train/weights.ts";
import { goldenPath, readGoldenJson } from "./golden_dir.ts";
import { earlierDefaults, goldenWeights, listedFiles } from "./golden_models.ts";
import { messageOf, skip } from "./skip.ts";

type Section = Record<string, unknown>;
interface Step {
  batch_count: number;
  micro_num: number;
  input_ids_sum: number;
  first_row: number[];
  cu_seqlens: number[][];
  /** Absent, with all that follows, for a skipped batch. */
  lr_used?: number;
  betas_used: [number, number];
  loss: number;
  success: boolean;
  grad_norm_groups: Record<string, number>;
  logged: Record<string, number | string | Record<string, number>>;
  param_norm_total: number;
  validation?: Record<string, number>[];
}
interface Run {
  name: string;
  config_after_check:
    & Record<
      "model" | "data" | "adam" | "lr_scheduler" | "beta2_scheduler" | "loss" | "grad_scaler" | "hybrid_zero_optimizer",
      Section
    >
    & { model_type: string };
  dataset_types: string[];
  train_dataset_len: number;
  val_loader_lengths: Record<string, number>;
  initial_weights: string;
  final_param_norms: Record<string, number>;
  final_param_first3: Record<string, number[]>;
  train_state: Record<string, number | null>;
  steps: Step[];
}
const { runs } = readGoldenJson<{ runs: Run[] }>("internevo", "models", "train_run.json");

function recordOf(run: Run, clipGradNorm: number): ResolvedConfig {
  const { model_type, model, data, adam, lr_scheduler, beta2_scheduler, loss, grad_scaler, hybrid_zero_optimizer } =
    run.config_after_check;
  return resolveConfig({
    model_type,
    model: { ...earlierDefaults[model_type], ...model },
    data: {
      ...data,
      train_folder: goldenPath("internevo", String(data.train_folder)),
      valid_folder: goldenPath("internevo", String(data.valid_folder)),
    },
    adam,
    lr_scheduler,
    beta2_scheduler,
    loss,
    grad_scaler,
    hybrid_zero_optimizer: { ...hybrid_zero_optimizer, clip_grad_norm: clipGradNorm },
    ckpt: { enable_save_ckpt: false },
  });
}

/** Runs in `bfloat16` are followed within a percent, as their README says; the first loss of others to its last digits. */
interface Looseness {
  readonly firstLoss: number;
  readonly loss: number;
  readonly gradNorm: number;
  readonly paramNorm: number;
  readonly values: number;
}
function loosenessOf(run: Run): Looseness {
  if (run.config_after_check.model.dtype !== "torch.bfloat16") {
    return { firstLoss: 1e-5, ...defaultTolerances, values: 1e-3 };
  }
  const loss = 0.01 * run.steps[0].loss;
  return { firstLoss: loss, loss, gradNorm: 0.01, paramNorm: 0.01, values: 0.01 };
}

const clipOf = (run: Run) => Number(run.config_after_check.hybrid_zero_optimizer.clip_grad_norm);
/** InternEvo puts the parameters of a `float32` model in a group of their own; the norm is over all groups. */
const globalNorm = ({ grad_norm_groups }: Step) => Math.hypot(...Object.values(grad_norm_groups));
/** InternEvo never clips a `float32` model, so where it would have, it is followed with clipping off. */
const clipsOnlyHere = (run: Run) =>
  String(run.config_after_check.model.dtype).endsWith("float32") && clipOf(run) > 0 &&
  run.steps.some((step) => step.lr_used !== undefined && globalNorm(step) > clipOf(run));

for (const run of runs) {
  const reason = messageOf(() => recordOf(run, clipOf(run)));
  if (reason) {
    skip(`trainer follows train_run.json ${run.name}`, reason);
    continue;
  }
  // Half types are stored otherwise on a device, and its kernels are others: those runs are followed there too.
  for (const name of run.name.endsWith("bf16") ? ["cpu", "webgpu"] as const : ["cpu"] as const) {
    Deno.test(`trainer follows train_run.json ${run.name}${name === "cpu" ? "" : ` on ${name}`}`, async () => {
      using backend = await openBackend(name);
      await follow(run, backend);
      await backend.finish();
    });
  }
  if (clipsOnlyHere(run)) {
    Deno.test(`trainer clips where train_run.json ${run.name} does not`, async () => {
      using backend = await openBackend("cpu");
      await clips(run, backend);
    });
  }
}

async function open(run: Run, record: ResolvedConfig, backend: Backend) {
  const model = await initializeModel(record, { backend });
  const trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
  const mappings = getModule(record.model_type).internEvo!.tensors(record.model);
  using weights = goldenWeights(run.initial_weights);
  importWeights(model, mappings, weights);
  const loader = createTrainLoader({ ...record.data, files: listedFiles() }, { dataRank: 0, dataWorldSize: 1 });
  return { model, trainer, mappings, loader };
}

async function follow(run: Run, backend: Backend): Promise<void> {
  const record = recordOf(run, clipsOnlyHere(run) ? 0 : clipOf(run)), loose = loosenessOf(run);
  const { model, trainer, mappings, loader } = await open(run, record, backend);
  using _ = trainer;
  try {
    await followSteps(run, record, { model, trainer, loader });
    for (const mapping of mappings) {
      const values = await exportTensor(model, mapping);
      assertNorm(norm(values), run.final_param_norms[mapping.tensor], `final norm of ${mapping.tensor}`, loose);
      run.final_param_first3[mapping.tensor].forEach((expected, i) =>
        assertAlmostEquals(values[i], expected, loose.values, `${mapping.tensor}[${i}]`)
      );
    }
    const { global_position: _, ...position } = loader.state();
    assertEquals(
      {
        batch_count: position.batch_count - 1, // InternEvo keeps that of the last batch
        num_consumed_samples_in_epoch: position.num_consumed_samples_in_epoch,
        num_consumed_tokens: position.num_consumed_tokens,
        inf_nan_skip_batches: trainer.infNanSkipBatches,
        step_count: trainer.stepCount,
        tensorboard_folder: null,
      },
      run.train_state,
    );
  } finally {
    loader.close();
  }
}

async function followSteps(
  run: Run,
  record: ResolvedConfig,
  { model, trainer, loader }: { model: Model; trainer: Trainer; loader: TrainLoader },
): Promise<void> {
  assertEquals(loader.datasetTypes, run.dataset_types);
  assertEquals(loader.rows, run.train_dataset_len);
  const loose = loosenessOf(run);
  const validation = createValidationLoaders(record.data, { dataRank: 0, dataWorldSize: 1 });
  assertEquals(Object.fromEntries(validation.map(({ name, length }) => [name, length])), run.val_loader_lengths);

  const metric = new AccPerplex({ typeNames: run.dataset_types }), tgs = new TgsStatistic();
  for (const step of run.steps) {
    const at = `batch ${step.batch_count}`;
    const batch = await loader.next();
    assertEquals(batch.batchCount, step.batch_count);
    assertEquals(batch.rows, step.micro_num, `micro-batches of ${at}`);
    assertEquals(batch.skipped, step.lr_used === undefined, `whether ${at} is skipped`);
    if (batch.skipped) continue;
    assertEquals(batch.microBatches.map(boundaries), step.cu_seqlens, `boundaries of ${at}`);
    assertEquals([...batch.microBatches[0].inputIds], step.first_row, `first row of ${at}`);
    const sum = batch.microBatches.reduce((sum, { inputIds }) => sum + inputIds.reduce((a, b) => a + b, 0), 0);
    assertEquals(sum, step.input_ids_sum, `sum of ids of ${at}`);

    trainer.zeroGrad();
    const { loss, microBatches } = await trainer.executeSchedule(batch);
    const { success, gradNorm, learningRate, beta2 } = await trainer.step();
    assertAlmostEquals(loss, step.loss, trainer.stepCount === 1 ? loose.firstLoss : loose.loss, `loss of ${at}`);
    assertEquals(success, step.success);
    assertAlmostEquals(learningRate, step.lr_used!, 1e-12 * step.lr_used!, `rate of ${at}`);
    assertEquals([record.adam.adam_beta1, beta2], step.betas_used, `betas of ${at}`);
    const expectedNorm = globalNorm(step);
    assertAlmostEquals(gradNorm, expectedNorm, loose.gradNorm * expectedNorm, `gradient norm of ${at}`);
    const squares = await Promise.all(
      [...model.boxes.keys()].map(async (name) => norm(await model.program.readParameter("parameter", name)) ** 2),
    );
    assertNorm(
      Math.sqrt(squares.reduce((a, b) => a + b, 0)),
      step.param_norm_total,
      `weights' norm after ${at}`,
      loose,
    );

    for (const { nll, correct, microBatch: { labels, typeIds } } of microBatches) {
      metric.add({ nll, correct, labels, typeIds });
    }
    const record_ = stepRecord({
      step: batch.batchCount,
      loss,
      work: {},
      seconds: 1,
      secondsSinceStart: 1,
      worldSize: 1,
      dataParallelSize: 1,
      tokens: batch.tokens,
      realTokens: metric.tokens,
      learningRate: trainer.optimizer.learningRate.learningRate,
      lossScale: trainer.optimizer.gradScaler.scale,
      gradNorm: { "0_default": gradNorm },
      numConsumedTokens: batch.after.num_consumed_tokens,
      infNanSkipBatches: trainer.infNanSkipBatches,
      cuSeqlens: batch.microBatches.map(boundaries),
      adamBeta2: trainer.optimizer.beta2.beta2,
      forwardBackwardSeconds: 1,
      backwardSeconds: 0,
      metrics: metric.report(),
    }, tgs);
    metric.reset();
    const { grad_norm: _, ...logged } = step.logged;
    for (const [key, expected] of Object.entries(logged)) {
      const [name, type] = key.split("/"), { logged: all } = step;
      // Where logits are bfloat16, the two largest of a row may be neighbours, and one label more or less is right.
      const isRounded = name === "acc" && run.name.endsWith("bf16");
      const tokens = Object.keys(all).filter((each) => each.startsWith("tokens/") && each.endsWith(type ?? ""))
        .reduce((sum, each) => sum + Number(all[each]), 0);
      if (isRounded) assertAlmostEquals(record_[key] as number, Number(expected), 1.01 / tokens, `${key} of ${at}`);
      else assertLogged(record_[key] as number, expected, `${key} of ${at}`, loose);
    }

    const every = record.data.valid_every;
    assertEquals(every > 0 && trainer.stepCount % every === 0, step.validation !== undefined, `evaluation after ${at}`);
    if (step.validation === undefined) continue;
    const results = await evaluateSets(trainer, validation);
    const values = results.flatMap(({ name, loss, acc, perplexity }) => [
      [`val/${name}_loss`, loss],
      [`val/${name}_acc`, acc],
      [`val/${name}_plex`, perplexity],
    ]);
    const expected = Object.assign({}, ...step.validation) as Record<string, number>;
    assertEquals(trainer.stepCount, expected.step);
    delete expected.step;
    assertEquals(values.map(([key]) => key), Object.keys(expected));
    for (const [key, value] of values) assertLogged(value as number, expected[key], `${key} after ${at}`, loose);
  }
}

const boundaries = ({ segmentEnd }: MicroBatch): number[] => [0, ...new Set(segmentEnd)];

function assertNorm(actual: number, expected: number, what: string, { paramNorm }: Looseness): void {
  assertAlmostEquals(actual, expected, paramNorm * expected, what);
}

/** Reported metrics are rounded to four decimals, and a perplexity is the exponential of a loss. */
function assertLogged(
  actual: number,
  expected: number | string | Record<string, number>,
  what: string,
  { loss }: Looseness,
): void {
  if (expected === "nan") assert(Number.isNaN(actual), `${what}: ${actual} instead of nan`);
  else assertAlmostEquals(actual, Number(expected), 1e-4 + loss * Math.abs(Number(expected)), what);
}

/** The first moments after one step are the gradients, scaled: clipping shows there and not in Adam's first update. */
async function clips(run: Run, backend: Backend): Promise<void> {
  const limit = clipOf(run);
  const step = async (clipGradNorm: number) => {
    const { model, trainer, loader } = await open(run, recordOf(run, clipGradNorm), backend);
    using _ = trainer;
    try {
      trainer.zeroGrad();
      await trainer.executeSchedule(await loader.next());
      const { gradNorm } = await trainer.step();
      const names = [...model.boxes.keys()];
      const moments = await Promise.all(names.map((name) => model.program.readParameter("moment1", name)));
      return { gradNorm, moment: norm(Float32Array.from(moments.flatMap((values) => [...values]))) };
    } finally {
      loader.close();
    }
  };
  const free = await step(0), clipped = await step(limit);
  assertEquals(clipped.gradNorm, free.gradNorm, "the norm is that before clipping");
  const factor = Math.min(1, limit / (free.gradNorm + 1e-6));
  if (globalNorm(run.steps[0]) > limit) assertLess(factor, 1);
  assertAlmostEquals(clipped.moment / free.moment, factor, 1e-6);
  const { adam_beta1 } = run.config_after_check.adam;
  assertAlmostEquals(clipped.moment, (1 - Number(adam_beta1)) * Math.min(limit, free.gradNorm), 1e-5);
}
