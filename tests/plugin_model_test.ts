/** A model from `runtime.plugins` trains as the built-in ones do. */
import { assert, assertAlmostEquals, assertEquals, assertLess, assertRejects } from "@std/assert";
import { fileURLToPath } from "node:url";
import { openBackend } from "../src/backend/open.ts";
import { ConfigError, resolveConfig } from "../src/config/mod.ts";
import { moduleNames } from "../src/models/registry.ts";
import { drawnMicroBatch, openTrainer, takeStep } from "../src/train/_testing.ts";
import { initializeModel } from "../src/train/model.ts";
import { loadPlugins } from "../src/train/plugins.ts";
import { exportHuggingFace } from "../src/train/weights.ts";
import { onWorld, recordOf, type TinyRun, trainSteps } from "./layouts.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
const record = (module: string) =>
  resolveConfig({
    model_type: "PLACES",
    model: { num_layers: 1, hidden_size: 8, num_attention_heads: 1, vocab_size: 17, options: { init_std: 0.3 } },
    data: { seq_len: 9, micro_bsz: 1, total_steps: 40 },
    adam: { lr: 3e-2 },
    lr_scheduler: { eta_min: 3e-2 },
    ckpt: { enable_save_ckpt: false },
    runtime: { plugins: [module] },
  });

Deno.test("a model from runtime.plugins learns, and says what it lacks", async () => {
  const config = record("./plugin_model.ts");
  using backend = await openBackend("cpu");
  const unknown = await assertRejects(() => initializeModel(config, { backend }), ConfigError);
  assert(unknown.message.includes('unknown model type "PLACES"'), unknown.message);

  await loadPlugins(config.runtime.plugins, here);
  assert(moduleNames().includes("PLACES"));
  using trainer = await openTrainer(config, backend);
  assertEquals([...trainer.model.boxes.keys()], ["words.weight", "places.weight", "gate.weight", "head.weight"]);
  const microBatch = drawnMicroBatch("plugin", [9]);
  const { loss: first } = await takeStep(trainer, [microBatch]);
  let last = first;
  for (let step = 1; step < 40; step++) last = (await takeStep(trainer, [microBatch])).loss;
  assertLess(last, 0.1 * first);

  await assertRejects(
    async () => await exportHuggingFace(trainer.model, "/nowhere"),
    RangeError,
    "model type PLACES declares no Hugging Face format",
  );
});

Deno.test("loadPlugins() names a module that cannot be loaded", async () => {
  await assertRejects(
    () => loadPlugins(["./no_such_plugin.ts"], here),
    Error,
    "Cannot load plugin ./no_such_plugin.ts",
  );
});

Deno.test("a model from runtime.plugins has stages, experts and divided weights too, alone and together", async () => {
  await loadPlugins(["./plugin_deep_model.ts"], here);
  const run: TinyRun = {
    model_type: "DEEP_PLACES",
    model: { num_layers: 4, hidden_size: 16, num_experts: 4, top_k: 2 },
    tokens: 8,
    microBatches: 4,
    moeLossCoefficient: 0,
    learningRate: 1e-3,
    plugins: ["./plugin_deep_model.ts"],
  };
  const train = (ranks: number, parallel: Record<string, unknown>, model = {}) =>
    onWorld(
      recordOf(run, { ranks, parallel, model }),
      ranks,
      (trainer, world) => trainSteps(trainer, world, run, 0, 4),
    );
  const [one] = await train(1, {});
  assertLess(one.losses[2], one.losses[0]);
  const divided: [ranks: number, parallel: Record<string, unknown>, model?: Record<string, unknown>][] = [
    [4, { pipeline: { size: 4 } }],
    [2, { pipeline: { size: 2, interleaved_overlap: true } }, { num_chunks: 2 }],
    [2, { pipeline: { size: 2, mode: "ZBH1" } }],
    [2, { expert: 2 }],
    [2, { zero1: { fsdp: true }, expert: 1 }],
    [4, { tensor: { mode: "mtp", size: 2 }, expert: 2 }],
    [4, { tensor: { mode: "isp", size: 2 }, weight: { size: 2 }, expert: 2, expert_weight: 2 }],
    [8, { tensor: { mode: "msp", size: 2 }, pipeline: { size: 2 }, expert: 2 }, { checkpoint: 0.5 }],
  ];
  for (const [ranks, parallel, model] of divided) {
    const [{ losses, gradNorms }] = await train(ranks, parallel, model), where = JSON.stringify(parallel);
    losses.forEach((loss, step) => assertAlmostEquals(loss, one.losses[step], 2e-4, `${where}, step ${step}`));
    gradNorms.forEach((norm, step) =>
      assertAlmostEquals(norm, one.gradNorms[step], 1e-3 * one.gradNorms[step], `${where}, step ${step}`)
    );
  }
});

Deno.test("a model from runtime.plugins trains in every tensor mode, which it knows nothing of", async () => {
  await loadPlugins(["./plugin_model.ts"], here);
  const run: TinyRun = { model_type: "PLACES", model: { options: { init_std: 0.3 } }, plugins: ["./plugin_model.ts"] };
  const train = (ranks: number, parallel: Record<string, unknown>) =>
    onWorld(recordOf(run, { ranks, parallel }), ranks, (trainer, world) => trainSteps(trainer, world, run, 0, 5));
  const [one] = await train(1, {});
  const divided = [
    ...["mtp", "msp", "fsp", "isp"].map((mode) => ({ tensor: { mode, size: 2 } })),
    { tensor: { mode: "isp", size: 1 }, weight: { size: 2 } },
    { tensor: { mode: "isp", size: 2 }, weight: { size: 2 } },
  ];
  for (const parallel of divided) {
    const [{ losses, gradNorms, traffic }] = await train(2, parallel), where = JSON.stringify(parallel);
    assert(traffic.length > 0 || parallel.tensor.mode === "isp", `${where} moves nothing`);
    losses.forEach((loss, step) => assertAlmostEquals(loss, one.losses[step], 2e-4, `${where}, step ${step}`));
    gradNorms.forEach((norm, step) =>
      assertAlmostEquals(norm, one.gradNorms[step], 1e-3 * one.gradNorms[step], `${where}, step ${step}`)
    );
  }
});
