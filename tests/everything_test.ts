/**
 * All of it together: tensor, pipeline, data, expert and weight parallelism, divided optimizer state, recomputation, half
 * types with a loss scale that overflows, clipping over the whole model, evaluation, and one checkpoint from which other
 * layouts go on.
 */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { beginCheckpoint, commitCheckpoint, openCheckpoint, writeShard } from "../src/checkpoint/mod.ts";
import type { World } from "../src/parallel/world.ts";
import { globalTensors, loadTensors, shardEntries } from "../src/train/checkpoint.ts";
import type { Trainer, TrainerState } from "../src/train/trainer.ts";
import { batchOf, type Division, onWorld, recordOf, type TinyRun } from "./layouts.ts";

const runIn = (dtype: string): TinyRun => ({
  model_type: "MIXTRALMOE",
  model: {
    hidden_size: 16,
    num_kv_attention_heads: 2,
    num_experts: 4,
    // In a half type a rounded token may choose another expert; where it goes to all of them, nothing is chosen.
    top_k: dtype === "float32" ? 2 : 4,
    num_shared_experts: 1,
    moe_type: "Dropless",
    dtype,
    checkpoint: 0.5,
  },
  tokens: 8,
  microBatches: 4,
  moeLossCoefficient: 0,
  learningRate: 1e-3, // Adam's first updates are the gradient's sign times this, and rounding turns signs
  grad_scaler: { fp16: { initial_scale: 2 ** 20, growth_interval: 4 }, hysteresis: 1 },
});
const zero = { use_split_tensor_optim: true, reduce_bucket_size: 5000 };
/** Two ranks to a layer, with the experts' width; two stages; two replicas, which divide experts and state. */
const all: Division = {
  ranks: 8,
  parallel: { tensor: { mode: "msp", size: 2 }, pipeline: { size: 2 }, expert: 2 },
  hybrid_zero_optimizer: zero,
};
const others: Record<string, Division> = {
  "one rank": { ranks: 1 },
  "isp 2, weight 2, expert 2, expert weight 2, 2 stages": {
    ranks: 8,
    parallel: {
      tensor: { mode: "isp", size: 2 },
      weight: 2,
      expert: 2,
      expert_weight: 2,
      pipeline: { size: 2, mode: "ZBH1" },
    },
    model: { checkpoint: 1 },
  },
  "fsdp over 2, mtp 2, 4 experts on 2 ranks": {
    ranks: 4,
    parallel: { tensor: { mode: "mtp", size: 2 }, zero1: { fsdp: true }, expert: 2 },
  },
};

interface Taken {
  readonly loss: number;
  readonly gradNorm: number;
  readonly lossScale: number;
  readonly success: boolean;
}
async function steps(run: TinyRun, trainer: Trainer, { mesh }: World, first: number, end: number): Promise<Taken[]> {
  const taken: Taken[] = [];
  for (let step = first; step < end; step++) {
    const batch = batchOf(run, step), data = { index: mesh.index("data"), size: mesh.size("data") };
    trainer.zeroGrad();
    const own = batch.filter((_, index) => index % data.size === data.index);
    const { loss } = await trainer.executeSchedule({ microBatches: own, globalRows: batch.length });
    const { gradNorm, lossScale, success } = await trainer.step();
    taken.push({ loss, gradNorm, lossScale, success });
  }
  return taken;
}

const [saveAt, end] = [4, 6];

/** In `float16` sums between ranks are rounded elsewhere. */
const tolerances = { float32: { loss: 2e-4, gradNorm: 1e-3 }, float16: { loss: 2e-4, gradNorm: 3e-3 } };
for (const [dtype, allowed] of Object.entries(tolerances)) {
  Deno.test(`everything together trains, evaluates and saves as one rank, and any other layout goes on from there, in ${dtype}`, async () => {
    const run = runIn(dtype);
    const folder = await Deno.makeTempDir();
    try {
      const [one] = await onWorld(recordOf(run, { ranks: 1 }), 1, async (trainer, world) => {
        const taken = await steps(run, trainer, world, 0, saveAt),
          evaluated = (await trainer.evaluate(batchOf(run, 0))).loss;
        return { taken: [...taken, ...await steps(run, trainer, world, saveAt, end)], evaluated };
      });
      const assertFollows = (taken: readonly Taken[], from: number, who: string) =>
        taken.forEach(({ loss, gradNorm, lossScale, success }, index) => {
          const expected = one.taken[from + index], where = `${who}, step ${from + index}`;
          assertEquals([lossScale, success], [expected.lossScale, expected.success], where);
          assertAlmostEquals(loss, expected.loss, allowed.loss, `loss: ${where}`);
          if (success) assertAlmostEquals(gradNorm / expected.gradNorm, 1, allowed.gradNorm, `gradient norm: ${where}`);
        });

      const directory = await beginCheckpoint(folder, saveAt);
      const saved = await onWorld(recordOf(run, all), all.ranks, async (trainer, world) => {
        const taken = await steps(run, trainer, world, 0, saveAt), evaluation = await trainer.evaluate(batchOf(run, 0));
        const shard = await writeShard({ directory, writer: world.mesh.rank, entries: shardEntries(trainer.model) });
        const state = trainer.state(), tensors = globalTensors(trainer.model);
        const last = world.mesh.index("pipeline") === world.mesh.size("pipeline") - 1;
        const evaluated = last ? evaluation.loss : undefined;
        return {
          taken: [...taken, ...await steps(run, trainer, world, saveAt, end)],
          evaluated,
          shard,
          state,
          tensors,
        };
      });
      for (const { taken, state } of saved) {
        assertEquals([taken, state], [saved[0].taken, saved[0].state], "ranks agree to the bit");
      }
      assertFollows(saved[0].taken, 0, "all together");
      const skipped = saved[0].taken.filter(({ success }) => !success).length;
      if (dtype === "float32") assertEquals(skipped, 0);
      else assert(skipped >= 1 && skipped < end - 2, `some steps overflow, and some do not: ${skipped} did`);
      const last = saved.flatMap(({ evaluated }) => evaluated === undefined ? [] : [evaluated]);
      assertEquals(last.length, 4);
      for (const loss of last) assertAlmostEquals(loss, one.evaluated, allowed.loss, "evaluation");

      // A checkpoint that is not whole, or holds something twice, is refused here.
      const shards = saved.map(({ shard }) => shard), { tensors } = saved[0];
      await commitCheckpoint({ directory, step: saveAt, shards, tensors, layout: {}, state: {}, config: "" });
      const state: TrainerState = saved[0].state;
      for (const [who, division] of Object.entries({ "all together, again": all, ...others })) {
        const [taken] = await onWorld(recordOf(run, division), division.ranks, async (trainer, world) => {
          using checkpoint = openCheckpoint(`${folder}/${saveAt}`);
          loadTensors(trainer.model, checkpoint);
          trainer.loadState(state);
          return await steps(run, trainer, world, saveAt, end);
        });
        if (division === all) assertEquals(taken, saved[0].taken.slice(saveAt), "on the same layout to the bit");
        else assertFollows(taken, saveAt, who);
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}
