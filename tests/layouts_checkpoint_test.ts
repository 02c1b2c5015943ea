/** A checkpoint of any layout goes on in any other: the curve is that of one rank that never stopped. */
import { assertAlmostEquals, assertEquals } from "@std/assert";
import { beginCheckpoint, commitCheckpoint, openCheckpoint, writeShard } from "../src/checkpoint/mod.ts";
import { globalTensors, loadTensors, shardEntries } from "../src/train/checkpoint.ts";
import type { TrainerState } from "../src/train/trainer.ts";
import { type Division, onWorld, recordOf, type TinyRun, trainSteps } from "./layouts.ts";

const run: TinyRun = { model_type: "GEMMA", model: { num_kv_attention_heads: 1, head_dim: 16 } };
const mode = (mode: string, size: number, more: Record<string, unknown> = {}) => ({ tensor: { mode, size }, ...more });

/** One after the other, two steps each, and back to the first. */
const layouts: Division[] = [
  { ranks: 2, parallel: mode("mtp", 2) },
  { ranks: 1 },
  { ranks: 4, parallel: mode("isp", 2, { weight: { size: 2 } }) },
  { ranks: 4, parallel: mode("msp", 2, { pipeline: { size: 2 } }) },
  {
    ranks: 4,
    parallel: mode("fsp", 2, { zero1: { size: 2 } }),
    hybrid_zero_optimizer: { use_split_tensor_optim: true },
  },
  { ranks: 2, parallel: mode("mtp", 2) },
];

Deno.test("a run goes from layout to layout by checkpoints, and trains as one that never stopped", async () => {
  const folder = await Deno.makeTempDir();
  const end = 2 * layouts.length;
  const [one] = await onWorld(
    recordOf(run, { ranks: 1 }),
    1,
    (trainer, world) => trainSteps(trainer, world, run, 0, end),
  );
  try {
    let state: TrainerState | undefined;
    const losses: number[] = [], gradNorms: number[] = [];
    for (const [index, division] of layouts.entries()) {
      const step = 2 * index, directory = await beginCheckpoint(folder, step + 2);
      const saved = await onWorld(recordOf(run, division), division.ranks, async (trainer, world) => {
        if (state) {
          using checkpoint = openCheckpoint(`${folder}/${step}`);
          loadTensors(trainer.model, checkpoint);
          trainer.loadState(state);
        }
        const curve = await trainSteps(trainer, world, run, step, step + 2);
        const shard = await writeShard({ directory, writer: world.mesh.rank, entries: shardEntries(trainer.model) });
        return { curve, shard, tensors: globalTensors(trainer.model), state: trainer.state() };
      });
      const shards = saved.map(({ shard }) => shard), { tensors } = saved[0];
      // A checkpoint that is not whole, or holds something twice, is refused here.
      await commitCheckpoint({ directory, step: step + 2, shards, tensors, layout: {}, state: {}, config: "" });
      for (const other of saved) assertEquals(other.state, saved[0].state);
      state = saved[0].state;
      losses.push(...saved[0].curve.losses);
      gradNorms.push(...saved[0].curve.gradNorms);
    }
    losses.forEach((loss, step) => assertAlmostEquals(loss, one.losses[step], 2e-4, `loss of step ${step}`));
    gradNorms.forEach((norm, step) =>
      assertAlmostEquals(norm, one.gradNorms[step], 1e-3 * one.gradNorms[step], `gradient norm of step ${step}`)
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
