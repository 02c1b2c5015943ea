/** A model from `runtime.plugins` trains as the built-in ones do. */
import { assert, assertEquals, assertLess, assertRejects } from "@std/assert";
import { fileURLToPath } from "node:url";
import { openBackend } from "../src/backend/open.ts";
import { ConfigError, resolveConfig } from "../src/config/mod.ts";
import { moduleNames } from "../src/models/registry.ts";
import { drawnMicroBatch, openTrainer, takeStep } from "../src/train/_testing.ts";
import { initializeModel, loadPlugins } from "../src/train/model.ts";
import { exportHuggingFace } from "../src/train/weights.ts";

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
