/** `initializeModel`: from a run record to a program on a device, weights in place. */
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import type { Backend } from "../backend/backend.ts";
import { ConfigError, type ResolvedConfig } from "../config/mod.ts";
import { differentiate } from "../graph/differentiate.ts";
import { elementCount, Graph } from "../graph/graph.ts";
import { crossEntropy } from "../graph/operators.ts";
import { estimateMemory, type MemoryEstimate, plan as planProgram } from "../graph/plan.ts";
import { Program } from "../graph/program.ts";
import type { ModelFamily } from "../models/family.ts";
import { getModule, hasModule, moduleNames } from "../models/registry.ts";
import { declareInputs } from "../nn/inputs.ts";
import { initialTensor } from "../nn/random.ts";
import { adamwBytes } from "../optimizer/adamw.ts";
import type { Box } from "../parallel/layout.ts";
import type { Mesh, Mode } from "../parallel/mesh.ts";
import { shard } from "../parallel/shard.ts";
import { solo, type World } from "../parallel/world.ts";

export interface Model extends Disposable {
  readonly config: ResolvedConfig;
  readonly world: World;
  readonly family: ModelFamily;
  readonly program: Program;
  readonly memory: MemoryEstimate;
  /** What this rank holds of each parameter, by canonical name. */
  readonly boxes: ReadonlyMap<string, Box>;
  /** Number of parameters in the whole model. */
  readonly parameterCount: number;
}

/** Loads the modules of `runtime.plugins`: each registers models when it is imported. */
export async function loadPlugins(modules: readonly string[], relativeTo = Deno.cwd()): Promise<void> {
  for (const module of modules) {
    const url = /^[a-z]+:/.test(module) ? module : pathToFileURL(resolve(relativeTo, module)).href;
    try {
      await import(url);
    } catch (error) {
      throw new Error(`Cannot load plugin ${module} of runtime.plugins: ${(error as Error).message}`, { cause: error });
    }
  }
}

/** Traces, shards, differentiates and plans, without a device: what `troupe plan` prints. */
export function planModel(config: ResolvedConfig, { limits }: Pick<Backend["traits"], "limits">, mesh: Mesh) {
  if (!hasModule(config.model_type)) {
    const message = `unknown model type ${JSON.stringify(config.model_type)}; ${moduleNames().join(", ")} work, and ` +
      "those that a module in runtime.plugins registers";
    throw new ConfigError([{ path: "model_type", message }]);
  }
  const family = getModule(config.model_type);
  const tokens = config.data.packed_length;
  const trace = (training: boolean) => {
    const graph = new Graph();
    const { inputs, labels, lossWeight } = declareInputs(graph, { tokens, training });
    const logits = family.model(graph, inputs, config.model);
    const attributes = { labelSmoothing: config.loss.label_smoothing };
    return { graph, logits, loss: crossEntropy({ logits, labels, weight: lossWeight }, attributes) };
  };
  const training = trace(true), evaluation = trace(false);
  const recomputed = Math.trunc(config.model.num_layers * config.model.checkpoint);
  const boxes = shard(training.graph, family.sharding, mesh);
  const plan = planProgram({
    chunks: [{
      training: differentiate(training.graph, { recompute: (layer) => layer < recomputed }),
      trainingOutputs: { ...training.loss },
      evaluation: { graph: evaluation.graph, outputs: { ...evaluation.loss, logits: evaluation.logits } },
    }],
    limits,
  });
  const memory = estimateMemory(plan, {
    frames: 1,
    microBatches: config.data.micro_num,
    optimizerBytes: adamwBytes(plan.arenas),
  });
  return { family, plan, boxes, memory };
}

/**
 * @param backend where the model lives; stays the caller's
 * @param world the ranks that train together. @default this one alone
 * @throws {ConfigError} for an unknown model type
 * @throws {RangeError} when a tensor or the whole does not fit the device
 */
export async function initializeModel(
  config: ResolvedConfig,
  { backend, world = solo }: { backend: Backend; world?: World },
): Promise<Model> {
  const { family, plan, boxes, memory } = planModel(config, backend.traits, world.mesh);
  const program = await Program.create(backend, plan, {
    microBatches: config.data.micro_num,
    groups: (axis) => world.group(axis as Mode),
  });
  let parameterCount = 0;
  for (const { name, shape, initialization } of plan.parameters) {
    const length = elementCount(shape);
    parameterCount += length;
    program.writeParameter(
      "parameter",
      name,
      initialTensor(initialization, { seed: config.runtime.seed, name, length }),
    );
  }
  return {
    config,
    world,
    family,
    program,
    memory,
    boxes,
    parameterCount,
    [Symbol.dispose]: () => program[Symbol.dispose](),
  };
}
