/** However a model is divided over ranks, it trains as on one. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { type Curve, type Division, onWorld, recordOf, type TinyRun, trainSteps } from "./layouts.ts";

const tolerances = { loss: 2e-4, gradNorm: 1e-3 };
const steps = 10;

const runs = {
  internlm2: { model_type: "INTERNLM2" },
  internlm: { model_type: "INTERNLM" },
  llama2: { model_type: "LLAMA2", model: { num_kv_attention_heads: 2 } },
  qwen2: { model_type: "QWEN2", model: { num_kv_attention_heads: 2, qkv_bias: true } },
  gemma: { model_type: "GEMMA", model: { num_kv_attention_heads: 1, head_dim: 16, tie_word_embeddings: true } },
  "internlm2 with norm_head": { model_type: "INTERNLM2", model: { norm_head: true } },
  "internlm2 of 8 layers": { model_type: "INTERNLM2", model: { num_layers: 8, hidden_size: 16 }, microBatches: 4 },
  mixtral: {
    model_type: "MIXTRALMOE",
    model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
  },
  "mixtral, 4 micro-batches": {
    model_type: "MIXTRALMOE",
    model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
    microBatches: 4,
  },
  // Each rank finds the balance of its own tokens: where ranks share a micro-batch, the mean of theirs is another number.
  "mixtral without balance": {
    model_type: "MIXTRALMOE",
    model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
    moeLossCoefficient: 0,
  },
  "qwen2 moe": {
    model_type: "QWEN2MOE",
    model: { num_experts: 4, top_k: 2, num_shared_experts: 2, moe_type: "Dropless" },
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
  },
} satisfies Record<string, TinyRun>;
type RunName = keyof typeof runs;

/** A layout, and what is trained in it. */
interface Layout extends Division {
  /** @default the first run */
  readonly runs?: readonly RunName[];
  /** Wider where a layout rounds elsewhere; it says why. */
  readonly tolerances?: typeof tolerances & { readonly because: string };
}

const families: readonly RunName[] = ["internlm2", "internlm", "llama2", "qwen2", "gemma", "internlm2 with norm_head"];
const deep: readonly RunName[] = ["internlm2 of 8 layers"];
const tensor = (mode: string, size: number, more: Record<string, unknown> = {}) => ({
  tensor: { mode, size },
  ...more,
});
const isp = (size: number, weight: number, more: Record<string, unknown> = {}) =>
  tensor("isp", size, { weight: { size: weight }, ...more });
const half = { dtype: "bfloat16" };
const pipeline = (size: number, more: Record<string, unknown> = {}) => ({ pipeline: { size, ...more } });
const overlap = { interleaved_overlap: true }, zeroBubble = { mode: "ZBH1" };

const layouts: Record<string, Layout> = {
  "mtp 2": { ranks: 2, parallel: tensor("mtp", 2), runs: families },
  "mtp 4": { ranks: 4, parallel: tensor("mtp", 4), runs: ["internlm2", "llama2", "gemma"] },
  "mtp 2, table by vocabulary, logits gathered": {
    ranks: 2,
    parallel: tensor("mtp", 2),
    model: { embed_split_hidden: false, parallel_output: false },
  },
  "mtp 2 x data 2": { ranks: 4, parallel: tensor("mtp", 2) },
  "msp 2": { ranks: 2, parallel: tensor("msp", 2), runs: families },
  "msp 4": { ranks: 4, parallel: tensor("msp", 4) },
  "msp 2, table by vocabulary": { ranks: 2, parallel: tensor("msp", 2), model: { embed_split_hidden: false } },
  "msp 2, all layers recomputed": { ranks: 2, parallel: tensor("msp", 2), model: { checkpoint: 1 } },
  "fsp 2": { ranks: 2, parallel: tensor("fsp", 2), runs: families },
  "fsp 4": { ranks: 4, parallel: tensor("fsp", 4), runs: ["internlm2", "qwen2"] },
  "fsp 2 x data 2, one layer recomputed": { ranks: 4, parallel: tensor("fsp", 2), model: { checkpoint: 0.5 } },
  "isp 2": { ranks: 2, parallel: isp(2, 1), runs: families },
  "isp 4": { ranks: 4, parallel: isp(4, 1), runs: ["internlm2", "gemma"] },
  "isp weight 2": { ranks: 2, parallel: isp(1, 2), runs: families },
  "isp weight 4, more ranks than rows": { ranks: 4, parallel: isp(1, 4) },
  "isp 2, weight 2, one layer recomputed": {
    ranks: 2,
    parallel: isp(2, 2),
    model: { checkpoint: 0.5 },
    runs: families,
  },
  "isp 2, weight 4": { ranks: 4, parallel: isp(2, 4) },
  "isp 4, weight 2": { ranks: 4, parallel: isp(4, 2) },
  "isp 2, weight 2 x data 4, state over 4": { ranks: 8, parallel: isp(2, 2, { zero1: { size: 4 } }), runs: deep },
  "mtp 2 x 2 stages": { ranks: 4, parallel: tensor("mtp", 2, { pipeline: { size: 2 } }), runs: families },
  "msp 2 x 2 stages": { ranks: 4, parallel: tensor("msp", 2, { pipeline: { size: 2 } }) },
  "fsp 2 x 2 stages of 2 chunks, recomputed": {
    ranks: 4,
    parallel: tensor("fsp", 2, { pipeline: { size: 2, interleaved_overlap: true } }),
    model: { num_chunks: 2, checkpoint: 0.5 },
    runs: deep,
  },
  "isp 2, weight 2 x 2 stages, ZB-H1": {
    ranks: 4,
    parallel: isp(2, 2, { pipeline: { size: 2, mode: "ZBH1" } }),
    runs: deep,
  },
  "msp 2 x 2 stages x data 2, state and tensors over 2, recomputed": {
    ranks: 8,
    parallel: tensor("msp", 2, { pipeline: { size: 2 }, zero1: { size: 2 } }),
    model: { checkpoint: 0.5 },
    hybrid_zero_optimizer: { use_split_tensor_optim: true },
    runs: deep,
  },
  "mtp 2 x 4 stages": { ranks: 8, parallel: tensor("mtp", 2, { pipeline: { size: 4 } }), runs: deep },
  "8 stages": { ranks: 8, parallel: { pipeline: { size: 8 } }, runs: deep },
  "2 stages": { ranks: 2, parallel: pipeline(2), runs: families },
  "3 stages of 2 and 3 layers": { ranks: 3, parallel: pipeline(3), runs: deep },
  "4 stages": { ranks: 4, parallel: pipeline(4), runs: deep },
  "2 stages of 2 chunks": { ranks: 2, parallel: pipeline(2, overlap), model: { num_chunks: 2 }, runs: deep },
  "4 stages of 2 chunks, messages not overlapped": {
    ranks: 4,
    parallel: pipeline(4),
    model: { num_chunks: 2 },
    runs: deep,
  },
  "2 stages of 4 chunks, half recomputed": {
    ranks: 2,
    parallel: pipeline(2, overlap),
    model: { num_chunks: 4, checkpoint: 0.5 },
    runs: deep,
  },
  "2 stages, ZB-H1": { ranks: 2, parallel: pipeline(2, zeroBubble), runs: families },
  "4 stages, ZB-H1": { ranks: 4, parallel: pipeline(4, zeroBubble), runs: deep },
  "2 stages, ZB-H1, all recomputed": {
    ranks: 2,
    parallel: pipeline(2, zeroBubble),
    model: { checkpoint: 1 },
    runs: deep,
  },
  "2 stages x data 2": { ranks: 4, parallel: pipeline(2), runs: ["internlm2", "gemma"] },
  "2 stages, bfloat16": { ranks: 2, parallel: pipeline(2), model: half },
  "fsdp over 2": { ranks: 2, parallel: { zero1: { fsdp: true } }, runs: ["internlm2", "gemma"] },
  "fsdp over 2 of 4, one layer recomputed": {
    ranks: 4,
    parallel: { zero1: { fsdp: true, size: 2 } },
    model: { checkpoint: 0.5 },
  },
  "isp 2, weight 2, bfloat16": { ranks: 2, parallel: isp(2, 2), model: half },
  "msp 2, bfloat16": {
    ranks: 2,
    parallel: tensor("msp", 2),
    model: half,
    tolerances: { loss: 2e-2, gradNorm: 3e-2, because: "each rank's term of a sum is rounded to bfloat16" },
  },
  "expert 2": { ranks: 2, parallel: { expert: 2 }, runs: ["mixtral", "qwen2 moe", "internlm moe, GShard"] },
  "expert 4": {
    ranks: 4,
    parallel: { expert: 4 },
    runs: ["mixtral, 4 micro-batches", "qwen2 moe", "internlm moe, GShard"],
  },
  "expert 2 x data 2, one layer recomputed": {
    ranks: 4,
    parallel: { expert: 2 },
    model: { checkpoint: 0.5 },
    runs: ["mixtral, 4 micro-batches", "internlm moe, GShard"],
  },
  "experts whole on data 2": { ranks: 2, parallel: { expert: 1 }, runs: ["mixtral"] },
  "expert 2, fewer micro-batches than ranks": {
    ranks: 4,
    parallel: { expert: 2 },
    runs: ["mixtral"],
  },
  "mtp 2 x expert 2": {
    ranks: 4,
    parallel: tensor("mtp", 2, { expert: 2 }),
    runs: ["mixtral", "qwen2 moe", "internlm moe, GShard"],
  },
  "msp 2 x expert 2": { ranks: 4, parallel: tensor("msp", 2, { expert: 2 }), runs: ["mixtral", "qwen2 moe"] },
  "fsp 2 x expert 2": { ranks: 4, parallel: tensor("fsp", 2, { expert: 2 }), runs: ["internlm moe, GShard"] },
  "mtp 2, tokens divided, expert 2": {
    ranks: 2,
    parallel: tensor("mtp", 2, { expert: { size: 2, no_tp: true } }),
    runs: ["mixtral without balance"],
  },
  "mtp 2, tokens divided, expert 4": {
    ranks: 4,
    parallel: tensor("mtp", 2, { expert: { size: 4, no_tp: true } }),
    runs: ["mixtral without balance"],
  },
  "msp 2, tokens divided, experts whole": {
    ranks: 2,
    parallel: tensor("msp", 2, { expert: { size: 1, no_tp: true } }),
    runs: ["mixtral without balance"],
  },
  "fsp 2, tokens divided, expert 2 x data 2": {
    ranks: 4,
    parallel: tensor("fsp", 2, { expert: { size: 2, no_tp: true } }),
    runs: ["mixtral without balance"],
  },
  "isp 2, expert 2": {
    ranks: 2,
    parallel: tensor("isp", 2, { expert: 2 }),
    runs: ["mixtral without balance"],
  },
  "isp 2, weight 2, expert 4": {
    ranks: 4,
    parallel: tensor("isp", 2, { weight: { size: 2 }, expert: 4 }),
    runs: ["mixtral without balance"],
  },
  "isp weight 2, expert 2": {
    ranks: 2,
    parallel: tensor("isp", 1, { weight: { size: 2 }, expert: 2 }),
    runs: ["mixtral", "qwen2 moe"],
  },
  "pipeline 2 x expert 2": {
    ranks: 4,
    parallel: { pipeline: { size: 2 }, expert: 2 },
    runs: ["qwen2 moe", "internlm moe, GShard"],
  },
};

const onOneRank = new Map<string, Promise<Curve>>();
/** The same training on one rank. */
function alone(name: RunName, { model: { dtype = "float32" } = {} }: Layout): Promise<Curve> {
  const run: TinyRun = runs[name], key = `${name} ${dtype}`, known = onOneRank.get(key);
  if (known) return known;
  const record = recordOf(run, { ranks: 1, model: { dtype } });
  const curves = onWorld(record, 1, (trainer, world) => trainSteps(trainer, world, run, 0, steps));
  onOneRank.set(key, curves.then(([one]) => one));
  return onOneRank.get(key)!;
}

for (const [layout, division] of Object.entries(layouts)) {
  const allowed = division.tolerances ?? tolerances;
  const because = division.tolerances ? `, within ${allowed.loss}: ${division.tolerances.because}` : "";
  for (const name of division.runs ?? ["internlm2"] as const) {
    Deno.test(`${name} trains on ${layout} as on one rank${because}`, async () => {
      const run: TinyRun = runs[name], one = await alone(name, division);
      const work = (...[trainer, world]: Parameters<Parameters<typeof onWorld>[2]>) =>
        trainSteps(trainer, world, run, 0, steps);
      const all = await onWorld(recordOf(run, division), division.ranks, work);
      const { losses, gradNorms } = all[0];
      for (const other of all) {
        assertEquals([other.losses, other.gradNorms], [losses, gradNorms], "ranks agree to the bit");
      }
      assert(losses.at(-1)! < losses[0] - 0.1, `it learns: ${losses}`);
      for (let step = 0; step < steps; step++) {
        assertAlmostEquals(losses[step], one.losses[step], allowed.loss, `loss of step ${step}`);
        const margin = allowed.gradNorm * one.gradNorms[step];
        assertAlmostEquals(gradNorms[step], one.gradNorms[step], margin, `gradient norm of step ${step}`);
      }
    });
  }
}

Deno.test("weights that are gathered ahead of need change no bit, and no byte more moves", async () => {
  const run: TinyRun = { ...runs["internlm2 of 8 layers"], microBatches: 2 };
  const train = async (weight: Record<string, unknown>) => {
    const division: Division = {
      ranks: 2,
      parallel: { tensor: { mode: "isp", size: 2 }, weight: { size: 2, ...weight } },
      model: { num_layers: 4, checkpoint: 0.5 },
    };
    const work = (...[trainer, world]: Parameters<Parameters<typeof onWorld>[2]>) =>
      trainSteps(trainer, world, run, 0, 3);
    return (await onWorld(recordOf(run, division), 2, work))[0];
  };
  const plain = await train({});
  assertEquals(await train({ overlap: true, forward_overlap_per: "module" }), plain);
  for (const launch_allgather_before of ["wqkv", "attn", "wo", "w1"]) {
    assertEquals(await train({ overlap: true, launch_allgather_before }), plain, launch_allgather_before);
  }
});
