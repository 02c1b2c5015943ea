/** However a model is divided over ranks, it trains as on one. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { type Curve, type Division, onWorld, recordOf, type TinyRun, trainSteps } from "./layouts.ts";

const tolerances = { loss: 2e-4, gradNorm: 1e-3 };
const steps = 10;

/** Runs by name. The first is trained in every layout, the others in those that name them. */
const runs = {
  internlm2: { model_type: "INTERNLM2", model: { num_kv_attention_heads: 4 } },
  internlm: { model_type: "INTERNLM", model: { num_kv_attention_heads: 4 } },
  llama2: { model_type: "LLAMA2", model: { num_kv_attention_heads: 2 } },
  qwen2: { model_type: "QWEN2", model: { num_kv_attention_heads: 2, qkv_bias: true } },
  gemma: { model_type: "GEMMA", model: { num_kv_attention_heads: 2, head_dim: 16 } },
  "internlm2, norm_head": { model_type: "INTERNLM2", model: { num_kv_attention_heads: 4, norm_head: true } },
  mixtral: {
    model_type: "MIXTRALMOE",
    model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
  },
  "mixtral, 4 micro-batches": {
    model_type: "MIXTRALMOE",
    model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
    microBatches: 4,
  },
  "qwen2 moe": {
    model_type: "QWEN2MOE",
    model: { num_experts: 4, top_k: 2, num_shared_experts: 2, moe_type: "Dropless" },
    microBatches: 4,
  },
  // Room is counted in the tokens of a micro-batch: it does not change with the ranks, as these share no micro-batch.
  "internlm moe, GShard": {
    model_type: "INTERNLM_MoE",
    model: {
      num_experts: 4,
      top_k: 2,
      num_shared_experts: 1,
      moe_layer_kwargs: { noisy_gate_policy: "Jitter", min_capacity: 2 },
    },
    microBatches: 4,
  },
} satisfies Record<string, TinyRun>;
type RunName = keyof typeof runs;

/** A layout, and what is trained in it beside the first run. */
interface Layout extends Division {
  readonly also?: readonly RunName[];
  /** What is trained in it, and nothing else: layouts that only some families have. */
  readonly only?: readonly RunName[];
}

const tensor = (mode: string, size: number, more: Record<string, unknown> = {}) => ({
  tensor: { mode, size },
  ...more,
});
const isp = (size: number, weight: number) => tensor("isp", size, { weight: { size: weight } });
const dense = (Object.keys(runs) as RunName[]).filter((name) => !("num_experts" in runs[name].model));
const every = dense.slice(1);

const layouts: Record<string, Layout> = {
  "mtp 2": { ranks: 2, parallel: tensor("mtp", 2), also: every },
  "mtp 4": { ranks: 4, parallel: tensor("mtp", 4) },
  "mtp 2, table by vocabulary, logits gathered": {
    ranks: 2,
    parallel: tensor("mtp", 2),
    model: { embed_split_hidden: false, parallel_output: false },
  },
  "mtp 2 x data 2": { ranks: 4, parallel: tensor("mtp", 2) },
  "msp 2": { ranks: 2, parallel: tensor("msp", 2), also: every },
  "msp 4": { ranks: 4, parallel: tensor("msp", 4) },
  "msp 2, table by vocabulary": { ranks: 2, parallel: tensor("msp", 2), model: { embed_split_hidden: false } },
  "msp 2, all layers recomputed": { ranks: 2, parallel: tensor("msp", 2), model: { checkpoint: 1 } },
  "fsp 2": { ranks: 2, parallel: tensor("fsp", 2), also: every },
  "fsp 4": { ranks: 4, parallel: tensor("fsp", 4) },
  "fsp 2 x data 2, one layer recomputed": { ranks: 4, parallel: tensor("fsp", 2), model: { checkpoint: 0.5 } },
  "isp 2": { ranks: 2, parallel: isp(2, 1), also: every },
  "isp 4": { ranks: 4, parallel: isp(4, 1) },
  "isp weight 2": { ranks: 2, parallel: isp(1, 2), also: every },
  "isp weight 4": { ranks: 4, parallel: isp(1, 4) },
  "isp 2, weight 2, one layer recomputed": { ranks: 2, parallel: isp(2, 2), model: { checkpoint: 0.5 }, also: every },
  "isp 2, weight 4": { ranks: 4, parallel: isp(2, 4) },
  "isp 4, weight 2": { ranks: 4, parallel: isp(4, 2) },
  "expert 2": { ranks: 2, parallel: { expert: 2 }, only: ["mixtral", "qwen2 moe", "internlm moe, GShard"] },
  "expert 4": {
    ranks: 4,
    parallel: { expert: 4 },
    only: ["mixtral, 4 micro-batches", "qwen2 moe", "internlm moe, GShard"],
  },
  "expert 2 x data 2, one layer recomputed": {
    ranks: 4,
    parallel: { expert: 2 },
    model: { checkpoint: 0.5 },
    only: ["mixtral, 4 micro-batches", "internlm moe, GShard"],
  },
  "experts whole on data 2": { ranks: 2, parallel: { expert: 1 }, only: ["mixtral"] },
  "expert 2, fewer micro-batches than ranks": {
    ranks: 4,
    parallel: { expert: 2 },
    only: ["mixtral"],
  },
  "mtp 2 x expert 2": { ranks: 4, parallel: tensor("mtp", 2, { expert: 2 }), only: ["mixtral", "qwen2 moe"] },
  "msp 2 x expert 2": { ranks: 4, parallel: tensor("msp", 2, { expert: 2 }), only: ["mixtral", "qwen2 moe"] },
  "fsp 2 x expert 2": { ranks: 4, parallel: tensor("fsp", 2, { expert: 2 }), only: ["internlm moe, GShard"] },
  "pipeline 2 x expert 2": { ranks: 4, parallel: { pipeline: 2, expert: 2 }, only: ["qwen2 moe"] },
};

const onOneRank = new Map<RunName, Promise<Curve>>();
function alone(name: RunName): Promise<Curve> {
  const known = onOneRank.get(name);
  if (known) return known;
  const run: TinyRun = runs[name];
  const curve = onWorld(recordOf(run, { ranks: 1 }), 1, (trainer, world) => trainSteps(trainer, world, run, 0, steps));
  onOneRank.set(name, curve.then(([one]) => one));
  return onOneRank.get(name)!;
}

for (const [layout, division] of Object.entries(layouts)) {
  for (const name of division.only ?? (["internlm2", ...division.also ?? []] as RunName[])) {
    Deno.test(`${name} trains on ${layout} as on one rank`, async () => {
      const run: TinyRun = runs[name], one = await alone(name);
      const work = (...[trainer, world]: Parameters<Parameters<typeof onWorld>[2]>) =>
        trainSteps(trainer, world, run, 0, steps);
      const all = await onWorld(recordOf(run, division), division.ranks, work);
      const { losses, gradNorms } = all[0];
      for (const other of all) {
        assertEquals([other.losses, other.gradNorms], [losses, gradNorms], "ranks agree to the bit");
      }
      assert(losses.at(-1)! < losses[0] - 0.1, `it learns: ${losses}`);
      for (let step = 0; step < steps; step++) {
        assertAlmostEquals(losses[step], one.losses[step], tolerances.loss, `loss of step ${step}`);
        const allowed = tolerances.gradNorm * one.gradNorms[step];
        assertAlmostEquals(gradNorms[step], one.gradNorms[step], allowed, `gradient norm of step ${step}`);
      }
    });
  }
}
