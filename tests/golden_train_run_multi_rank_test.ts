/**
 * Trainings of several ranks, data-parallel or stages of a pipeline, against InternEvo's (`internevo/models/train_run_multi_rank.json`): which rank
 * sees which data, losses, norms, metrics, who owns what, and the final weights.
 */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import { resolveConfig, type ResolvedConfig } from "../src/config/mod.ts";
import { createTrainLoader } from "../src/data/mod.ts";
import { getModule } from "../src/models/registry.ts";
import { AccPerplex } from "../src/observe/metrics.ts";
import type { World } from "../src/parallel/world.ts";
import { agree } from "../src/train/agree.ts";
import { initializeOptimizer, initializeTrainer } from "../src/train/initialize.ts";
import { initializeModel } from "../src/train/model.ts";
import { exportTensor, importWeights, norm } from "../src/train/weights.ts";
import { cutPart } from "../src/train/whole.ts";
import { goldenPath, readGoldenJson } from "./golden_dir.ts";
import { earlierDefaults, goldenWeights, listedFiles } from "./golden_models.ts";
import { messageOf, skip } from "./skip.ts";
import { together } from "./worlds.ts";

type Section = Record<string, unknown>;
interface Step {
  first_row: number[];
  micro_num: number;
  /** Null, as the metric, on the stages of a pipeline but the last. */
  loss: number | null;
  grad_norm_groups: Record<string, number>;
  success: boolean;
  metric: Record<string, number | string> | null;
}
interface Run {
  name: string;
  world: number;
  base: Record<string, Section> & { model_type: string };
  changes_to_base: Record<string, Section>;
  steps: number;
  initial_weights: string;
  ranks: Record<string, {
    steps: Step[];
    is_rank_for_log: boolean;
    final_param_norm_and_first2: Record<string, [number, number, number]>;
  }>;
}
const { runs } = readGoldenJson<{ runs: Run[] }>("internevo", "models", "train_run_multi_rank.json");

function recordOf({ base, changes_to_base: changes, steps, world }: Run): ResolvedConfig {
  const section = (name: string) => ({ ...base[name], ...changes[name] });
  return resolveConfig({
    model_type: base.model_type,
    model: { ...earlierDefaults[base.model_type], ...section("model") },
    data: { ...section("data"), total_steps: steps, train_folder: goldenPath("internevo", "packed_dataset/train") },
    adam: { adam_beta1: 0.9, adam_beta2: 0.95, adam_eps: 1e-8, ...section("adam") },
    lr_scheduler: section("lr_scheduler"),
    parallel: changes.parallel ?? {},
    ckpt: { enable_save_ckpt: false }, // and no clipping: InternEvo never clips a float32 model
  }, { worldSize: world });
}

for (const run of runs) {
  const reason = messageOf(() => recordOf(run));
  if (reason) {
    skip(`ranks follow train_run_multi_rank.json ${run.name}`, reason);
    continue;
  }
  Deno.test(`ranks follow train_run_multi_rank.json ${run.name}`, async () => {
    const record = recordOf(run);
    await together(run.world, (worldOf, rank) => follow(run, record, worldOf(record), rank));
  });
}

async function follow(run: Run, record: ResolvedConfig, world: World, rank: number): Promise<void> {
  using backend = await openBackend("cpu");
  const model = await initializeModel(record, { backend, world });
  using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
  const mappings = getModule(record.model_type).internEvo!.tensors(record.model);
  using weights = goldenWeights(run.initial_weights.split(" ")[0]!);
  importWeights(model, mappings, weights);
  const expected = run.ranks[rank]!, { mesh } = world;
  assertEquals(mesh.logs, expected.is_rank_for_log);
  const shard = { dataRank: mesh.index("data"), dataWorldSize: mesh.size("data") };
  const loader = createTrainLoader({ ...record.data, files: listedFiles() }, shard);
  try {
    for (const [index, step] of expected.steps.entries()) {
      const where = `rank ${rank}, step ${index}`, batch = await loader.next();
      assertEquals([...batch.microBatches[0]!.inputIds], step.first_row, where);
      assertEquals(batch.microBatches.length, step.micro_num, where);
      trainer.zeroGrad();
      const { microBatches, loss } = await trainer.executeSchedule(batch);
      const judged = mesh.index("pipeline") === mesh.size("pipeline") - 1;
      assertEquals(microBatches.length, judged ? step.micro_num : 0);
      const own = judged ? microBatches.reduce((sum, { loss }) => sum + loss, 0) / microBatches.length : 0;
      if (judged) assertAlmostEquals(own, step.loss!, 2e-4, where); // InternEvo's is this rank's own
      const all = await agree(world, [own]);
      assertAlmostEquals(loss, all[0]! / (run.world / mesh.size("pipeline")), 1e-6, where);
      const { gradNorm, success } = await trainer.step();
      assertEquals(success, step.success);
      const norms = Math.hypot(...Object.values(step.grad_norm_groups));
      assert(Math.abs(gradNorm - norms) <= 1e-3 * norms, `${where}: norm ${gradNorm}, expected ${norms}`);
      const metric = new AccPerplex({ typeNames: loader.datasetTypes });
      for (const { nll, correct, microBatch: { labels, typeIds } } of microBatches) {
        metric.add({ nll, correct, labels, typeIds });
      }
      const tells = mesh.index("tensor") === 0; // the ranks of a tensor group have the same rows
      const sums = await agree(world, metric.state().map((sum) => tells ? sum : 0));
      metric.reset();
      metric.merge(sums);
      for (const [name, value] of Object.entries(metric.report())) {
        if (!step.metric) continue;
        const reference = Number(step.metric[name]);
        if (Number.isNaN(reference)) assert(Number.isNaN(value), `${where}: ${name}`);
        else assertAlmostEquals(value, reference, name === "perplexity" ? 0.05 : 3e-4, `${where}: ${name}`);
      }
    }
    for (const mapping of mappings) {
      const whole = await exportTensor(model, mapping);
      // InternEvo's tensors, fused ones too, are divided as their first part is.
      const values = cutPart(whole, mapping.shape, model.layouts.get(mapping.parts[0]!.parameter)!, world),
        reference = expected.final_param_norm_and_first2[mapping.tensor];
      const here = mapping.parts.every(({ parameter }) => model.boxes.has(parameter));
      assertEquals(reference !== undefined, here, `${mapping.tensor} on rank ${rank}`);
      if (!reference) continue;
      const [length, ...first] = reference;
      assert(Math.abs(norm(values) - length) <= 1e-4 * length, `final norm of ${mapping.tensor}`);
      first.forEach((value, i) => assertAlmostEquals(values[i]!, value, 1e-3, `${mapping.tensor}[${i}]`));
    }
  } finally {
    loader.close();
  }
}
