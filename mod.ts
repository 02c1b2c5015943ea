/**
 * Troupe: trains large language models from one Deno program, on any GPU with a WebGPU driver.
 *
 * The names are InternEvo's, in TypeScript's spelling. A training loop of your own:
 *
 * ```ts ignore
 * import { createTrainLoader, deviceOptions, initializeModel, initializeOptimizer, initializeTrainer } from "./mod.ts";
 * import { loadConfig, openBackend, resolveConfig } from "./mod.ts";
 *
 * const config = resolveConfig(await loadConfig("configs/demo.yaml"));
 * using backend = await openBackend(config.runtime.backend, deviceOptions(config.runtime));
 * const model = await initializeModel(config, { backend });
 * using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
 * const loader = createTrainLoader(config.data, { dataRank: 0, dataWorldSize: 1 });
 * for (let step = 0; step < config.data.total_steps; step++) {
 *   trainer.zeroGrad();
 *   const { loss } = await trainer.executeSchedule(await loader.next());
 *   const { success, gradNorm } = await trainer.step();
 *   console.log(step, loss, gradNorm, success);
 * }
 * ```
 *
 * @module
 */

// The run record
export { ConfigError, loadConfig, printResolved, resolveConfig, type ResolvedConfig } from "./src/config/mod.ts";
export { type ArgumentParser, getDefaultParser } from "./src/cli/parser.ts";

// Training
export { initializeModel, type Model } from "./src/train/model.ts";
export { loadPlugins } from "./src/train/plugins.ts";
export { initializeOptimizer, initializeTrainer } from "./src/train/initialize.ts";
export { type ScheduleResult, type StepResult, Trainer } from "./src/train/trainer.ts";
export { evaluateSets } from "./src/train/evaluate.ts";
export type { Backend } from "./src/backend/backend.ts";
export { deviceOptions, openBackend } from "./src/backend/open.ts";
export { createTrainLoader, createValidationLoaders, type MicroBatch } from "./src/data/mod.ts";

// Models of your own
export { registerModule } from "./src/models/registry.ts";
export type { ModelFamily, ModelSection } from "./src/models/family.ts";
export type { ModelInputs } from "./src/nn/inputs.ts";
export { Graph, type Tensor } from "./src/graph/graph.ts";
export {
  add,
  attention,
  crossEntropy,
  dropout,
  embedding,
  gate,
  layerNorm,
  linear,
  rmsNorm,
  rotate,
  rowNormalize,
  scale,
} from "./src/graph/operators.ts";
export { decoder } from "./src/nn/decoder.ts";
export { declareRotaryTables } from "./src/nn/inputs.ts";
export { replicated, type ShardingPlan, split } from "./src/parallel/layout.ts";

// Files
export { HuggingFaceFolder, newestUsable, openCheckpoint, writeHuggingFace } from "./src/checkpoint/mod.ts";
export { loadHuggingFace } from "./src/train/load_hugging_face.ts";
export { exportHuggingFace } from "./src/train/weights.ts";
